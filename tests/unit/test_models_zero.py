"""The autoencoder under DeepSpeed's ZeRO-3, which empties every weight outside its module's own forward."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

PROGRAM = """
import contextlib, json, sys, torch, deepspeed
from ddscale.models import MAEConfig, MaskedAutoencoder
stage, checkpointing, partitioned, precision = json.loads(sys.argv[1])
torch.set_num_threads(1)
deepspeed.init_distributed("gloo")
settings = {
    "train_micro_batch_size_per_gpu": 4, "gradient_clipping": 1.0,
    "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
    "bf16": {"enabled": precision == "bf16"},
}
config = MAEConfig(n_channels=6, n_samples=64, width=16, depth=2, heads=2, decoder_width=12, decoder_depth=1,
                   decoder_heads=2, activation_checkpointing=checkpointing)
torch.manual_seed(0)
with deepspeed.zero.Init(config_dict_or_path=settings) if partitioned else contextlib.nullcontext():
    model = MaskedAutoencoder(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
engine = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]
generator = torch.Generator().manual_seed(1)
losses = []
for step in range(4):
    x, seeds = torch.randn(4, 64, 6, generator=generator), torch.arange(4) + 4 * step
    output = engine(x, seeds, torch.ones(4, dtype=torch.bool))
    loss = output.sum_squared_error / output.masked_values
    engine.backward(loss)
    engine.step()
    losses.append(loss.item())
engine.module.reconstruct(x, seeds)
print("LOSSES", json.dumps(losses))
"""


def losses(*arguments: object) -> list[float]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    alone = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(arguments)],
        env={**os.environ, **alone, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("LOSSES ")]
    return json.loads(line.removeprefix("LOSSES "))


@pytest.mark.distributed
def test_partitioned_weights_give_the_same_losses():
    whole = losses(0, False, False, "fp32")
    assert whole[-1] < whole[0]
    assert losses(3, False, False, "fp32") == pytest.approx(whole, rel=1e-5)
    assert losses(3, True, True, "fp32") == pytest.approx(whole, rel=1e-5)


@pytest.mark.distributed
def test_built_partitioned_in_half_precision_it_trains():
    assert losses(3, True, True, "bf16") == pytest.approx(losses(0, False, False, "fp32"), rel=0.02)
