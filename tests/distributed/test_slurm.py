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
[ "$1 $2" = "--kill-on-bad-exit=1 --cpus-per-task=2" ] || { echo "srun was given $1 $2"; exit 1; }
shift 2
SLURM_NODEID=0 "$@" & first=$!
SLURM_NODEID=1 "$@" & second=$!
wait $first && wait $second
"""
# Knows the job's nodes, what the test says of its state, and notes that it is to be queued again.
SCONTROL = """#!/usr/bin/env bash
case $1-$2 in
    show-hostnames) echo 127.0.0.1; echo localhost ;;
    show-job) cat "$(dirname "$0")/job" ;;
    requeue-*) echo "$2" >> "$(dirname "$0")/requeued" ;;
    *) exit 1 ;;
esac
"""
RUNNING = "JobId=1 JobName=ddscale\n   Requeue=1 Restarts=0\n   JobState=RUNNING Reason=None\n"
FINISHED, CALLED_WRONGLY, TO_BE_CONTINUED = 0, 2, 75


class Slurm:
    """Submits the script as Slurm would run it on the job's first node."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.run, self._recipe = folder / "bin", folder / "run", folder / "recipe.yaml"
        self.bin.mkdir()
        self.stand_in("srun", SRUN)
        self.stand_in("scontrol", SCONTROL)
        (self.bin / "job").write_text(RUNNING)
        self.environment = {
            **os.environ,
            "PATH": f"{self.bin}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "SLURM_GPUS_ON_NODE": "1",
            "SLURM_CPUS_PER_TASK": "2",
            "SLURM_JOB_NODELIST": "node[0-1]",
            "SLURM_JOB_ID": str(os.getpid()),
        }

    def stand_in(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def start(self, recipe: dict, *sets: str) -> subprocess.Popen[str]:
        self._recipe.write_text(yaml.safe_dump(recipe))
        return subprocess.Popen(
            ["bash", str(SCRIPT), "pretrain", str(self._recipe), *sets], cwd=ROOT, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def ends(self, orders: str) -> tuple[int, str]:
        """(exit code, output) of a job whose training is `orders`, a piece of bash in the run's folder."""
        (self.run / "checkpoints").mkdir(parents=True, exist_ok=True)
        self.stand_in("srun", f"#!/usr/bin/env bash\ncd '{self.run}'\n{orders}\n")
        job = self.start({"stage": "pretrain", "run": str(self.run)})
        output, _ = job.communicate(timeout=60)
        return job.returncode, output

    @property
    def requeued(self) -> int:
        path = self.bin / "requeued"
        return len(path.read_text().splitlines()) if path.is_file() else 0


@pytest.fixture
def slurm(tmp_path):
    yield Slurm(tmp_path)
    left = [path for kind in ("hostfile", "stop", "finished", "failures") for path in ROOT.glob(f".{kind}-*")]
    for path in left:
        path.unlink()
    assert not left


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_synthetic_store(tmp_path_factory.mktemp("stores") / "store")


def test_two_nodes_train_together_and_stop_cleanly_when_slurm_says_so(slurm, store, tmp_path):
    run = tmp_path / "run"
    job = slurm.start(
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
    assert job.returncode == TO_BE_CONTINUED, output
    assert f"ended with the checkpoint step-{stopped_at:08d}; the job is queued again" in output
    assert slurm.requeued == 1
    assert (run / "checkpoints" / f"step-{stopped_at:08d}").is_dir()

    alone = tmp_path / "alone"
    launch(
        tiny_recipe(store, alone, steps=6, log_every=1, schedule=CONSTANT, validation={"every": 0})
    ).succeeded()
    for (step, loss, *_), (other, expected, *_) in zip(curve(run)[:4], curve(alone), strict=False):
        assert step == other
        assert loss == pytest.approx(expected, rel=1e-5)


CHECKPOINT = "printf %s step-$RANDOM$RANDOM > checkpoints/latest"


def test_a_finished_run_is_not_queued_again(slurm):
    assert slurm.ends(f'{CHECKPOINT}; touch "$DDSCALE_FINISHED_FILE"')[0] == FINISHED
    assert slurm.requeued == 0


@pytest.mark.parametrize(("code", "reported"), [(0, TO_BE_CONTINUED), (1, 1)])
def test_a_run_that_ended_early_with_a_new_checkpoint_is_queued_again_however_often(slurm, code, reported):
    slurm.environment["DDSCALE_QUICK_FAILURE_S"] = "0"
    for starts in range(1, 6):
        assert slurm.ends(f"{CHECKPOINT}; exit {code}")[0] == reported
        assert slurm.requeued == starts


def test_a_run_that_fails_soon_after_every_start_is_given_up_though_it_saves(slurm):
    assert [slurm.ends(f"{CHECKPOINT}; exit 1")[0] for _ in range(2)] == [1, 1]
    slurm.ends(CHECKPOINT)  # stopped and not failed: that is progress
    outputs = [slurm.ends(f"{CHECKPOINT}; exit 1")[1] for _ in range(3)]
    assert slurm.requeued == 5
    assert re.search(r"error: ended after \d+ s with the checkpoint step-\d+, 3 times in a row", outputs[-1])


def test_a_run_that_gets_nowhere_is_given_up_after_three_starts_in_a_row(slurm):
    slurm.environment["DDSCALE_QUICK_FAILURE_S"] = "0"
    slurm.ends(f"{CHECKPOINT}; exit 1")
    codes = [
        slurm.ends(orders)[0] for orders in ("exit 3", "exit 0", f"{CHECKPOINT}; exit 1", "exit 3", "exit 3")
    ]
    assert codes == [
        3,
        1,
        1,
        3,
        3,
    ]  # 0 without a new checkpoint is a signal that DeepSpeed's launcher kept to itself
    assert slurm.requeued == 6
    code, output = slurm.ends("exit 3")
    assert code == 3
    assert slurm.requeued == 6
    assert "error: ended without a new checkpoint, 3 times in a row" in output
    assert f"it continues from {(slurm.run / 'checkpoints' / 'latest').read_text()}" in output
    slurm.environment["DDSCALE_MAX_FAILURES"] = "1"
    slurm.ends("exit 3")
    assert slurm.requeued == 6


@pytest.mark.parametrize("change", [("JobState=RUNNING", "JobState=CANCELLED"), ("Requeue=1", "Requeue=0")])
def test_a_job_that_was_cancelled_or_may_not_be_requeued_stays_ended(slurm, change):
    (slurm.bin / "job").write_text(RUNNING.replace(*change))
    code, output = slurm.ends(f"{CHECKPOINT}; exit 0")
    assert code == TO_BE_CONTINUED
    assert "not queued again" in output
    assert slurm.requeued == 0


def test_a_recipe_that_is_not_there_is_said_at_once(slurm):
    job = slurm.start({"stage": "pretrain"})
    output, _ = job.communicate(timeout=60)
    assert job.returncode == CALLED_WRONGLY
    assert "no `run:` key" in output
    job = slurm.start({"stage": "pretrain"}, "--set", "run")
    assert "write it as key.path=value" in job.communicate(timeout=60)[0]
    assert slurm.requeued == 0


def test_without_a_recipe_it_says_how_it_is_called(slurm):
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == CALLED_WRONGLY
    assert "usage: sbatch" in done.stderr
