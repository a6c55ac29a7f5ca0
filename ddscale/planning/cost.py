"""`ddscale plan`: what a pretraining recipe would need on a cluster. Arithmetic, not measurement.

Every figure follows from the recipe, published hardware figures and the formulas named beside them; the model
FLOPs utilisation is assumed, and stated with the result.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ddscale.models.config import MAEConfig
from ddscale.models.flops import training_flops

if TYPE_CHECKING:
    from ddscale.training.settings import PretrainRecipe

GIB = 1 << 30
# CUDA context, NCCL buffers and allocator fragmentation, as commonly seen beside what a model itself asks for.
OVERHEAD_BYTES = 4 * GIB
ASSUMED_MFU = 0.4
# fp32 master copy and Adam's two moments of a parameter (ZeRO, arXiv 1910.02054, section 3.1).
OPTIMISER_BYTES = 12


@dataclass(frozen=True)
class Gpu:
    """Figures of NVIDIA's data sheets: dense FLOP/s, bytes of memory, bytes/s of NVLink in both directions."""

    bf16_flops: float
    fp32_flops: float
    memory_bytes: float
    nvlink_bytes_s: float


GPUS = {
    "a100": Gpu(312e12, 19.5e12, 80e9, 600e9),
    "h100": Gpu(989e12, 67e12, 80e9, 900e9),
    "h200": Gpu(989e12, 67e12, 141e9, 900e9),
    "b200": Gpu(2250e12, 75e12, 180e9, 1800e9),
}
NETWORK_BYTES_S = 50e9  # one 400 Gb/s adapter per GPU, as DGX systems have


@dataclass(frozen=True)
class Estimate:
    """What `plan_pretraining` found; bytes, seconds, windows per second."""

    gpus: int
    gpu: str
    parameters: int
    memory: dict[str, float]
    """Bytes per GPU by part; `total` and `capacity` among them."""
    fits: bool
    windows_per_s: float
    step_s: float
    """Computing one global batch at the assumed utilisation."""
    communication_s: float
    """Moving gradients (and ZeRO-3's weights) each step if nothing of it were hidden behind computing."""
    read_bytes_s_per_node: float
    hours_of_eeg: float | None
    pass_s: float | None
    run_s: float
    checkpoint_bytes: float
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
    channels: float | None = None,
    sfreq: float = 256.0,
    mfu: float = ASSUMED_MFU,
) -> Estimate:
    """Estimate memory, bandwidth and time of `recipe` on `nodes` × `gpus_per_node` GPUs.

    hours, channels: EEG hours of one pass and mean channels of a recording; without channels the model's own
    number is taken, the most that is ever read. Raises ValueError for an unknown GPU, or a batch that does not
    divide among the GPUs.
    """
    if gpu not in GPUS:
        raise ValueError(f"No figures for GPU {gpu!r}; known: {', '.join(GPUS)}.")
    figures = GPUS[gpu]
    model = recipe.model
    ranks = nodes * gpus_per_node
    if recipe.global_batch_size % (ranks * recipe.micro_batch_size):
        raise ValueError(
            f"global_batch_size {recipe.global_batch_size} does not divide by {ranks} GPUs × micro_batch_size "
            f"{recipe.micro_batch_size}: choose a multiple of {ranks * recipe.micro_batch_size}."
        )
    parameters = count_parameters(model)
    memory = _memory(recipe, parameters, ranks)
    memory["capacity"] = figures.memory_bytes
    peak = figures.fp32_flops if recipe.precision == "fp32" else figures.bf16_flops
    per_gpu = peak * mfu / training_flops(model)
    windows_per_s = per_gpu * ranks
    bytes_per_window = model.n_samples * 2 * (channels or model.n_channels)
    window_s = model.n_samples / sfreq
    assumptions = [
        f"model FLOPs utilisation {mfu:.0%} of {gpu}'s dense {'fp32' if recipe.precision == 'fp32' else 'bf16'} peak",
        f"{channels:.0f} channels in a recording"
        if channels
        else f"{model.n_channels} channels: the most that is read",
        f"{OVERHEAD_BYTES / GIB:.0f} GiB per GPU for CUDA, NCCL and fragmentation",
        "NVLink inside a node, one 400 Gb/s adapter per GPU between nodes",
    ]
    return Estimate(
        gpus=ranks,
        gpu=gpu,
        parameters=parameters,
        memory=memory,
        fits=memory["total"] <= memory["capacity"],
        windows_per_s=windows_per_s,
        step_s=recipe.global_batch_size / windows_per_s,
        communication_s=_communication_s(recipe, parameters, ranks, nodes, figures),
        read_bytes_s_per_node=per_gpu * gpus_per_node * bytes_per_window,
        hours_of_eeg=hours,
        pass_s=hours * 3600 / window_s / windows_per_s if hours else None,
        run_s=recipe.steps * recipe.global_batch_size / windows_per_s,
        checkpoint_bytes=parameters * (4 + OPTIMISER_BYTES - (4 if recipe.precision == "fp32" else 0)),
        assumptions=assumptions,
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


def _communication_s(recipe: PretrainRecipe, parameters: int, ranks: int, nodes: int, gpu: Gpu) -> float:
    """Bytes every GPU sends a step: twice the gradients, and ZeRO-3 half as much again (arXiv 1910.02054, 7.2)."""
    if ranks == 1:
        return 0.0
    element = _element_bytes(recipe)
    volume = parameters * element * (3 if recipe.zero_stage >= 3 else 2) * (ranks - 1) / ranks
    return volume / (NETWORK_BYTES_S if nodes > 1 else gpu.nvlink_bytes_s / 2)
