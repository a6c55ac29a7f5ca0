"""DeepSpeed's configuration: the recipe's `deepspeed:` section merged with what the recipe states elsewhere."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddscale.training.settings import TrainingSettings

# DeepSpeed ignores a section it does not know, so a misspelt one would be lost without a word.
_SECTIONS = (
    "activation_checkpointing", "aio", "amp", "autotuning", "bf16", "bfloat16", "checkpoint", "comms_logger",
    "communication_data_type", "compile", "compression_training", "data_efficiency", "data_types",
    "disable_allgather", "dump_state", "elasticity", "flops_profiler", "fp16", "gradient_accumulation_steps",
    "gradient_clipping", "gradient_predivide_factor", "memory_breakdown", "optimizer", "prescale_gradients",
    "scheduler", "seq_parallel_communication_data_type", "sparse_gradients", "steps_per_print", "tensorboard",
    "timers", "torch_autocast", "train_batch_size", "train_micro_batch_size_per_gpu", "wall_clock_breakdown",
    "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "zero_optimization",
)  # fmt: skip

# Key in DeepSpeed's configuration -> key of the recipe that decides it.
_DECIDED_BY_RECIPE = {
    "train_batch_size": "global_batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "gradient_clipping": "clip",
    "zero_optimization.stage": "zero_stage",
    "bf16.enabled": "precision",
    "bfloat16.enabled": "precision",
    "fp16.enabled": "precision",
}
_ACCUMULATE_IN = "data_types.grad_accum_dtype"
_OWNED_BY_RECIPE = {"optimizer": "optimiser", "scheduler": "schedule"}


def conflicts(recipe: TrainingSettings) -> list[str]:
    """Where the `deepspeed:` section contradicts the recipe; each names both keys and both values."""
    decided = {
        "global_batch_size": recipe.global_batch_size,
        "micro_batch_size": recipe.micro_batch_size,
        "clip": recipe.clip,
        "zero_stage": recipe.zero_stage,
    }
    found = []
    for path, key in _DECIDED_BY_RECIPE.items():
        theirs = _at(recipe.deepspeed, path)
        ours = recipe.precision in path if key == "precision" else decided[key]
        if theirs not in (None, "auto", ours):
            shown = recipe.precision if key == "precision" else ours
            found.append(
                f"deepspeed.{path} is {theirs}, but `{key}` is {shown}: remove one, or make them agree."
            )
    for section, key in _OWNED_BY_RECIPE.items():
        if section in recipe.deepspeed:
            found.append(
                f"deepspeed.{section} cannot be given beside the recipe's `{key}`: use that section."
            )
    if (
        recipe.precision == "bf16"
        and recipe.zero_stage == 1
        and _at(recipe.deepspeed, _ACCUMULATE_IN) == "fp32"
    ):
        found.append(
            f"deepspeed.{_ACCUMULATE_IN} is fp32, but with `zero_stage` 1 in bf16 that gives checkpoints which "
            "cannot be exported: set zero_stage to 2."
        )
    for section in recipe.deepspeed:
        near = difflib.get_close_matches(section, _SECTIONS, n=1, cutoff=0.8)
        if section not in _SECTIONS and near:
            found.append(f"deepspeed.{section}: DeepSpeed has no such section. Did you mean `{near[0]}`?")
    return found


def warnings(recipe: TrainingSettings, world_size: int) -> list[str]:
    """What will work, though hardly as meant."""
    accumulation = recipe.global_batch_size // (recipe.micro_batch_size * world_size)
    if recipe.precision == "bf16" and recipe.zero_stage < 2 and accumulation > 1:
        return [
            f"the gradients of {accumulation} micro-batches are added in bf16 at zero_stage {recipe.zero_stage}, which "
            "rounds small ones away: zero_stage 2 adds them in float32."
        ]
    return []


def build(recipe: TrainingSettings, world_size: int) -> dict[str, Any]:
    """The configuration given to `deepspeed.initialize`; raises ValueError when it cannot hold for `world_size`."""
    problems = [*recipe.problems_at(world_size), *conflicts(recipe)]
    accumulation = recipe.global_batch_size // (recipe.micro_batch_size * world_size)
    theirs = recipe.deepspeed.get("gradient_accumulation_steps")
    if not problems and theirs not in (None, "auto", accumulation):
        problems.append(
            f"deepspeed.gradient_accumulation_steps is {theirs}, but `global_batch_size` "
            f"{recipe.global_batch_size} over {world_size} ranks of `micro_batch_size` "
            f"{recipe.micro_batch_size} is {accumulation}: remove one, or make them agree."
        )
    if problems:
        raise ValueError("\n".join(problems))
    ours: dict[str, Any] = {
        "train_batch_size": recipe.global_batch_size,
        "train_micro_batch_size_per_gpu": recipe.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        # Where no DeepSpeed optimiser wraps ours, ours clips (optimiser.GuardedAdamW).
        "gradient_clipping": 0.0 if recipe.unwrapped_optimiser else recipe.clip,
        "zero_optimization": {"stage": recipe.zero_stage},
        "bf16": {"enabled": recipe.precision == "bf16"},
        "fp16": {"enabled": recipe.precision == "fp16"},
    }
    # Overlap has a history of wrong gradients (DeepSpeed #5545, #7965, #8061), and is on by default at stage 3.
    defaults: dict[str, Any] = {
        "zero_optimization": {"overlap_comm": False},
        "steps_per_print": None,
        # With the optimiser offloaded DeepSpeed insists on its own Adam, which it would compile; torch's is fused too.
        "zero_force_ds_cpu_optimizer": False,
        # It knows torch's AdamW by its exact class; the averaging one differs by a state that it treats as any other.
        "zero_allow_untested_optimizer": recipe.ema is not None,
    }
    if recipe.precision == "bf16" and recipe.zero_stage > 1 and accumulation > 1:
        # bf16 sums of many micro-batches lose their small terms. (Stage 0 cannot, and at stage 1 DeepSpeed would
        # change to an optimiser whose checkpoints its own tools cannot read.)
        defaults["data_types"] = {"grad_accum_dtype": "fp32"}
    given = {("bf16" if key == "bfloat16" else key): value for key, value in recipe.deepspeed.items()}
    return _merge(_merge(defaults, given), ours)


def _at(tree: Any, path: str) -> Any:
    for key in path.split("."):
        if not isinstance(tree, dict):
            return None
        tree = tree.get(key)
    return tree


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
