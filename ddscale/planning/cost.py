"""`ddscale plan`: what a pretraining recipe would need on a cluster. Arithmetic, not measurement.

Every figure follows from the recipe, published hardware figures and the formulas named beside them; the model
FLOPs utilisation is assumed, and stated with the result.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ddscale.models.config import MAEConfig
from ddscale.models.flops import executed_training_flops
from ddscale.models.gpus import GPUS, Gpu

if TYPE_CHECKING:
    from ddscale.planning.data import DataAtHand
    from ddscale.training.settings import PretrainRecipe

GIB = 1 << 30
# CUDA context, NCCL buffers and allocator fragmentation, as commonly seen beside what a model itself asks for.
OVERHEAD_BYTES = 4 * GIB
ASSUMED_MFU = 0.4
# fp32 master copy and Adam's two moments of a parameter (ZeRO, arXiv 1910.02054, section 3.1).
OPTIMISER_BYTES = 12
NETWORK_BYTES_S = 50e9  # one 400 Gb/s adapter per GPU, as DGX systems have
# What collectives reach of the links' rate. 256 H100 with such adapters measured 200 of 400 GB/s in all-gathers and
# 340 GB/s in all-reduces of 2 GB (github.com/NVIDIA/nccl/issues/1218); small messages get less.
COLLECTIVE_EFFICIENCY = 0.5


@dataclass(frozen=True)
class Estimate:
    """What `plan_pretraining` found; bytes, seconds, windows per second."""

    gpus: int
    gpu: str
    parameters: int
    memory: dict[str, float]
    """Bytes per GPU by part; `total` and `capacity` among them."""
    fits: bool
    accumulation: int
    """Micro-batches a GPU takes for one global batch."""
    windows_per_s: float
    """Of all GPUs together, communication included."""
    step_s: float
    """One global batch: computing and communication one after the other, or the longer one where they overlap."""
    compute_s: float
    """Computing it at the assumed utilisation, what activation checkpointing repeats included."""
    communication_s: float
    """Moving its gradients and weights."""
    overlapped: bool
    """Whether the recipe turns on DeepSpeed's overlap_comm."""
    reads_s_per_node: float
    """Windows a second that the stream has to read, each by one positioned read."""
    read_bytes_s_per_node: float
    hours_of_eeg: float | None
    pass_s: float | None
    passes: float | None
    """Passes over the data that the recipe's steps are."""
    run_s: float
    checkpoint_bytes: float
    checkpoint_every_s: float
    warnings: list[str]
    assumptions: list[str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan_pretraining(
    recipe: PretrainRecipe,
    *,
    nodes: int,
    gpus_per_node: int,
    gpu: str,
    hours: float | None = None,
    data: DataAtHand | None = None,
    channels: float | None = None,
    sfreq: float = 256.0,
    mfu: float = ASSUMED_MFU,
) -> Estimate:
    """Estimate memory, bandwidth and time of `recipe` on `nodes` × `gpus_per_node` GPUs.

    hours, channels: EEG hours of one pass and mean channels of a recording; without channels the model's own
    number is taken, the most that is ever read. data: what its stores hold, for what is not given.
    Raises ValueError for an unknown GPU, or a batch that does not divide among the GPUs, with numbers that would.
    """
    if gpu not in GPUS:
        raise ValueError(f"No figures for GPU {gpu!r}; known: {', '.join(GPUS)}.")
    figures = GPUS[gpu]
    model = recipe.model
    ranks = nodes * gpus_per_node
    _check_batch(recipe, ranks)
    if data is not None:
        sfreq, channels = data.sfreq, channels or data.channels
    hop_s = recipe.data.hop_samples / sfreq
    windows = hours * 3600 / hop_s if hours else None
    if data is not None and hours is None:
        windows, hours = float(data.windows), data.windows * hop_s / 3600
    parameters = count_parameters(model)
    memory = _memory(recipe, parameters, ranks)
    memory["capacity"] = figures.memory_bytes
    peak = figures.fp32_flops if recipe.precision == "fp32" else figures.half_flops
    accumulation = recipe.global_batch_size // (ranks * recipe.micro_batch_size)
    compute_s = recipe.global_batch_size * executed_training_flops(model) / (peak * mfu * ranks)
    communication_s = _communication_s(recipe, parameters, nodes, gpus_per_node, accumulation, figures)
    overlapped = bool(recipe.deepspeed.get("zero_optimization", {}).get("overlap_comm", False))
    step_s = max(compute_s, communication_s) if overlapped else compute_s + communication_s
    windows_per_s = recipe.global_batch_size / step_s
    bytes_per_window = model.n_samples * 2 * (channels or model.n_channels)
    assumptions = [
        f"model FLOPs utilisation {mfu:.0%} of {gpu}'s dense {recipe.precision} peak",
        f"{channels:.0f} channels in a recording"
        if channels
        else f"{model.n_channels} channels: the most that is read",
        f"{OVERHEAD_BYTES / GIB:.0f} GiB per GPU for CUDA, NCCL and fragmentation",
        f"collectives at {COLLECTIVE_EFFICIENCY:.0%} of {figures.link} in a node, of a 400 Gb/s adapter per GPU "
        "between nodes",
    ]
    warnings = []
    if recipe.precision == "bf16" and not figures.bf16:
        warnings.append(f"{gpu} has no bf16: set precision: fp16, which the same time was taken for.")
    if communication_s > compute_s:
        warnings.append(
            f"communication takes {communication_s / compute_s:.1f} times as long as computing: take fewer nodes, a "
            "larger micro_batch_size with less accumulation, or a lower zero_stage."
        )
    return Estimate(
        gpus=ranks,
        gpu=gpu,
        parameters=parameters,
        memory=memory,
        fits=memory["total"] <= memory["capacity"],
        accumulation=accumulation,
        windows_per_s=windows_per_s,
        step_s=step_s,
        compute_s=compute_s,
        communication_s=communication_s,
        overlapped=overlapped,
        reads_s_per_node=windows_per_s / nodes,
        read_bytes_s_per_node=windows_per_s / nodes * bytes_per_window,
        hours_of_eeg=hours,
        pass_s=windows / windows_per_s if windows else None,
        passes=recipe.steps * recipe.global_batch_size / windows if windows else None,
        run_s=recipe.steps * step_s,
        checkpoint_bytes=parameters * (4 + OPTIMISER_BYTES - (4 if recipe.precision == "fp32" else 0)),
        checkpoint_every_s=recipe.checkpoint.every * step_s,
        warnings=warnings,
        assumptions=assumptions,
    )


def _check_batch(recipe: PretrainRecipe, ranks: int) -> None:
    """Raise ValueError, with numbers that would do, for a batch that does not divide among the GPUs."""
    batch, micro = recipe.global_batch_size, recipe.micro_batch_size
    at_once = ranks * micro
    if batch % at_once == 0:
        return
    near = [size for size in (batch // at_once * at_once, -(-batch // at_once) * at_once) if size]
    ways = [f"--set global_batch_size={' or '.join(map(str, near))}"]
    share, rest = divmod(batch, ranks)
    if not rest:
        smaller = max(size for size in range(1, micro + 1) if share % size == 0)
        ways.append(f"--set micro_batch_size={smaller}")
    fitting = [str(gpus) for gpus in range(1, ranks) if batch // micro % gpus == 0]
    ways.append(f"{' or '.join(fitting)} GPUs (--nodes, --gpus-per-node)")
    raise ValueError(
        f"global_batch_size {batch} does not divide by {ranks} GPUs × micro_batch_size {micro}. What does: "
        f"{'; '.join(ways)}."
    )


def count_parameters(model: MAEConfig) -> int:
    """Parameters of encoder and decoder together, counted on a model without storage."""
    import torch

    from ddscale.models import MaskedAutoencoder

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in MaskedAutoencoder(model).parameters())


def _element_bytes(recipe: PretrainRecipe) -> int:
    return 4 if recipe.precision == "fp32" else 2


def _memory(recipe: PretrainRecipe, parameters: int, ranks: int) -> dict[str, float]:
    element = _element_bytes(recipe)
    stage = recipe.zero_stage
    memory = {
        "weights": parameters * element / (ranks if stage >= 3 else 1),
        "gradients": parameters * element / (ranks if stage >= 2 else 1),
        "optimiser": parameters * OPTIMISER_BYTES / (ranks if stage >= 1 else 1),
        "activations": activation_bytes(recipe.model, element) * recipe.micro_batch_size,
        "overhead": float(OVERHEAD_BYTES),
    }
    memory["total"] = sum(memory.values())
    return memory


def activation_bytes(model: MAEConfig, element: int) -> float:
    """Bytes kept for the backward pass of one window.

    Per token of width w, a pre-norm block with fused attention keeps 2 normalisation inputs, the inputs of
    qkv, of the attention (q, k, v) and of its projection, of the MLP's two layers and of GELU: (8 + 2r) w
    values at MLP ratio r (the count of Korthikanti et al., arXiv 2205.05198, without dropout and attention
    scores). With checkpointing a block keeps its input, and one block at a time is kept whole.
    """
    total = 0.0
    for tokens, width, depth in (
        (model.n_visible + 1, model.width, model.depth),
        (model.n_tokens + 1, model.decoder_width, model.decoder_depth),
    ):
        whole_block = (8 + 2 * model.mlp_ratio) * tokens * width
        total += (
            depth * tokens * width + whole_block if model.activation_checkpointing else depth * whole_block
        )
    # In float32 whatever the precision: the window, and as much again in visible patches and masked errors.
    ends = 2 * 4 * model.n_samples * model.n_channels
    return total * element + ends


def _communication_s(
    recipe: PretrainRecipe, parameters: int, nodes: int, gpus_per_node: int, accumulation: int, gpu: Gpu
) -> float:
    """Seconds of a step's collectives, by the bytes each GPU sends (arXiv 1910.02054, section 7).

    Gradients are scattered and updated weights gathered, once a step; stage 2 scatters the gradients of every
    micro-batch, stage 3 gathers the weights for its forward and its backward pass as well. NCCL lays rings through
    all GPUs of a node and out by every one of its adapters, so a GPU's bytes cross between nodes at the rate of all
    adapters of the node together, unless NVLink is slower.
    """
    ranks = nodes * gpus_per_node
    if ranks == 1:
        return 0.0
    times = {0: 2, 1: 2, 2: accumulation + 1, 3: 3 * accumulation}[recipe.zero_stage]
    volume = parameters * _element_bytes(recipe) * times * (ranks - 1) / ranks
    rate = gpu.link_bytes_s / 2
    if nodes > 1:
        rate = min(rate, gpus_per_node * NETWORK_BYTES_S)
    return volume / (rate * COLLECTIVE_EFFICIENCY)
