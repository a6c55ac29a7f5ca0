"""One fine-tuning step at Stable Diffusion 1.5's full size, random weights, batch 1: time and memory by part.

`python tests/benchmarks/bench_sd15_step.py` prints a table and writes bench/sd15_step.json. The conditioner is
DreamDiffusion's (151.8 M encoder, projector, time condition, alignment head); trained are it, `attn2` and the time
condition's projection; float32, AdamW. Activations are the tensors that autograd keeps for the backward pass,
weights not counted, each storage once. About 10 GB.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any


def run(gradient_checkpointing: bool = False) -> dict[str, Any]:
    """Build, one step, count."""
    import torch
    from diffusers import DDPMScheduler, UNet2DConditionModel

    from ddscale.diffusion.alignment import cosine_errors
    from ddscale.diffusion.conditioning import EEGConditioner
    from ddscale.diffusion.objective import NoiseLevels, add_noise, noise_errors
    from ddscale.diffusion.reference_sizes import SD15_SCHEDULER, SD15_UNET
    from ddscale.diffusion.unet import UNetTraining, add_time_condition, choose_trained, count_parameters
    from ddscale.models import MAEConfig

    torch.manual_seed(0)
    unet = UNet2DConditionModel(**SD15_UNET)
    add_time_condition(unet, 768)
    choose_trained(unet, UNetTraining(gradient_checkpointing=gradient_checkpointing))
    unet.train()
    sizes = MAEConfig(preset="dreamdiffusion").encoder.model_dump(mode="json")
    conditioner = EEGConditioner(encoder_sizes=sizes, time_condition=True)
    counts = count_parameters({"unet": unet, "conditioner": conditioner})
    parameters = [p for module in (unet, conditioner) for p in module.parameters()]
    trained = [p for p in parameters if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=5.3e-5)
    levels = NoiseLevels.of(DDPMScheduler.from_config(SD15_SCHEDULER))
    positions = torch.arange(1)

    weights = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, int] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    started = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        condition = conditioner(torch.randn(1, 512, 128), torch.zeros(1, dtype=torch.bool))
        noised = add_noise(levels, torch.randn(1, 4, 64, 64), positions, seed=0)
        predicted = unet(
            noised.latents, noised.timesteps, condition.hidden_states, class_labels=condition.time
        ).sample
        loss = (
            noise_errors(predicted, noised, levels) + cosine_errors(condition.clip, torch.randn(1, 768))
        ).sum()
    forward = time.perf_counter()
    loss.backward()
    backward = time.perf_counter()
    gradients = sum(p.grad.nbytes for p in parameters if p.grad is not None)
    optimiser.step()
    done = time.perf_counter()
    states = sum(v.nbytes for state in optimiser.state.values() for v in state.values())
    return {
        "threads": torch.get_num_threads(),
        "gradient_checkpointing": gradient_checkpointing,
        "parameters": {c.part: {"trained": c.trained, "frozen": c.frozen} for c in counts},
        "gb": {
            "weights": sum(p.nbytes for p in parameters) / 1e9,
            "gradients": gradients / 1e9,
            "optimiser": states / 1e9,
            "activations": sum(kept.values()) / 1e9,
            "peak_of_process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        },
        "seconds": {"forward": forward - started, "backward": backward - forward, "step": done - backward},
        "loss": loss.item(),
    }


def main() -> None:
    folder = Path("bench")
    folder.mkdir(exist_ok=True)
    result = run(gradient_checkpointing="--checkpointing" in sys.argv)
    (folder / "sd15_step.json").write_text(json.dumps(result, indent=2) + "\n")
    for name, value in result.items():
        print(f"{name:24} {value}")
    print(f"written: {folder / 'sd15_step.json'}")


if __name__ == "__main__":
    main()
