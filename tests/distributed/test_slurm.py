"""The Slurm script really run: two nodes of one rank each on this machine; only srun and scontrol are stand-ins."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from launching import ROOT, curve, launch, rows, tiny_recipe, write_synthetic_store

pytestmark = pytest.mark.distributed

CONSTANT = {"kind": "wsd", "warmup_steps": 2, "decay_steps": 1}
SCRIPT = ROOT / "launchers" / "slurm" / "train.sbatch"

# Like srun with one task per node: runs the command once for each and tells it its number.
SRUN = """#!/usr/bin/env bash
shift  # --kill-on-bad-exit=1
SLURM_NODEID=0 "$@" & first=$!
SLURM_NODEID=1 "$@" & second=$!
wait $first && wait $second
"""
SCONTROL = "#!/usr/bin/env bash\necho 127.0.0.1\necho localhost\n"


@pytest.fixture
def slurm(tmp_path):
    """(start, store): start(recipe) submits the script as Slurm would run it on the first node."""
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (stand_ins / name).write_text(text)
        (stand_ins / name).chmod(0o755)

    def start(recipe: dict, *sets: str) -> subprocess.Popen[str]:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        environment = {
            **os.environ,
            "PATH": f"{stand_ins}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "SLURM_GPUS_ON_NODE": "1",
            "SLURM_JOB_NODELIST": "node[0-1]",
            "SLURM_JOB_ID": str(os.getpid()),
        }
        return subprocess.Popen(
            ["bash", str(SCRIPT), recipe["stage"], str(path), *sets], cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    return start, write_synthetic_store(tmp_path / "store")


def test_two_nodes_train_together_and_stop_cleanly_when_slurm_says_so(slurm, tmp_path):
    start, store = slurm
    run = tmp_path / "run"
    job = start(
        tiny_recipe(
            store, run, steps=5000, log_every=1, schedule=CONSTANT, checkpoint={"every": 1000, "keep": 2}
        )
    )
    try:
        for _ in range(600):
            if (run / "metrics.jsonl").is_file() and len(rows(run)) >= 5:
                break
            assert job.poll() is None, job.communicate()[0]
            time.sleep(0.2)
        os.kill(job.pid, signal.SIGTERM)  # to the script alone, as --signal=B:TERM does
        output, _ = job.communicate(timeout=120)
    finally:
        subprocess.run(["pkill", "-KILL", "-s", str(job.pid)], check=False)
    stopped_at = rows(run)[-1]["step"]
    assert re.search(r"stopped by .*\.stop-\d+, with a checkpoint", output), output
    assert 5 <= stopped_at < 5000
    assert job.returncode == 0, output
    assert (run / "checkpoints" / f"step-{stopped_at:08d}").is_dir()
    assert not [*ROOT.glob(".hostfile-*"), *ROOT.glob(".stop-*")]

    alone = tmp_path / "alone"
    launch(
        tiny_recipe(store, alone, steps=6, log_every=1, schedule=CONSTANT, validation={"every": 0})
    ).succeeded()
    for (step, loss, *_), (other, expected, *_) in zip(curve(run)[:4], curve(alone), strict=False):
        assert step == other
        assert loss == pytest.approx(expected, rel=1e-5)


def test_without_a_recipe_it_says_how_it_is_called(slurm):
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage: sbatch" in done.stderr
