"""Training on Kubernetes: run.sh really run, two nodes as two processes, and train.yaml as the API wants it."""

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
from launching import ROOT, curve, free_port, launch, rows, tiny_recipe, write_synthetic_store

SCRIPT = ROOT / "launchers" / "kubernetes" / "run.sh"
TEMPLATE = ROOT / "launchers" / "kubernetes" / "train.yaml"
FINISHED, CALLED_WRONGLY, TO_BE_CONTINUED = 0, 2, 75

# In place of DeepSpeed's launcher where training itself does not matter: notes that it was started, and does what
# the test tells it.
STAND_IN = """#!/usr/bin/env bash
echo "$@" >> "$RUN/started-$JOB_COMPLETION_INDEX"
sleep 600 & echo $! > "$RUN/rank-$JOB_COMPLETION_INDEX"
until [ -e "$RUN/orders-$JOB_COMPLETION_INDEX" ]; do sleep 0.1; done
. "$RUN/orders-$JOB_COMPLETION_INDEX"
"""


class Cluster:
    """Starts nodes of one Job as the kubelet would and ends them all when the test does."""

    def __init__(self, folder: Path, bin: Path, job: str = "job-1") -> None:
        self.run, self.bin, self.job = folder / "run", bin, job
        self.run.mkdir()
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text("{}")
        self.port = free_port()
        self.pods: list[subprocess.Popen[str]] = []

    def start(self, index: int, *sets: str, **environment: str) -> subprocess.Popen[str]:
        pod = subprocess.Popen(
            ["bash", str(SCRIPT), "pretrain", str(self.recipe), *sets],
            env={
                **os.environ,
                "PATH": f"{self.bin}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "JOB_UID": self.job,
                "JOB_COMPLETION_INDEX": str(index),
                "NODES": "2",
                "GPUS": "1",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self.port),
                "RUN": str(self.run),
                **environment,
            },
            text=True,
            stdout=(self.run.parent / f"node-{index}.log").open("a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        self.pods.append(pod)
        return pod

    def ended(self, *pods: subprocess.Popen[str]) -> list[int]:
        """Exit codes, with what was said when one does not end."""
        try:
            return [pod.wait(timeout=120) for pod in pods]
        except subprocess.TimeoutExpired:
            pytest.fail(self.said())

    def said(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.run.parent.glob("node-*.log")))

    def wait_for(self, *paths: str) -> None:
        for _ in range(600):
            if all((self.run / path).exists() for path in paths):
                return
            time.sleep(0.1)
        pytest.fail(f"no {paths} in {self.run}: {self.said()}")

    def order(self, index: int, *commands: str) -> None:
        """Let the stand-in on a node go on, in its shell."""
        (self.run / f"orders-{index}").write_text("\n".join(commands))

    def close(self) -> None:
        for pod in self.pods:
            # The launcher and its ranks have a process group of their own in the pod's session.
            subprocess.run(["pkill", "-KILL", "-s", str(pod.pid)], check=False)
            pod.wait()
        for buffer in Path("/dev/shm").glob(f"deepspeed_*_{self.port}_*"):
            buffer.unlink(missing_ok=True)


@pytest.fixture
def cluster(tmp_path):
    """Two nodes whose launcher is the stand-in."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "deepspeed").write_text(STAND_IN)
    (tmp_path / "bin" / "deepspeed").chmod(0o755)
    cluster = Cluster(tmp_path, tmp_path / "bin")
    yield cluster
    cluster.close()


FINISH = ('touch "$DDSCALE_FINISHED_FILE"', "exit 0")
NEW_CHECKPOINT = ('mkdir -p "$RUN/checkpoints"', 'echo step-00000007 > "$RUN/checkpoints/latest"')


@pytest.mark.distributed
def test_one_node_is_drained_both_write_a_checkpoint_and_go_on_to_the_same_end(tmp_path):
    store = write_synthetic_store(tmp_path / "store")
    cluster = Cluster(tmp_path, Path(sys.executable).parent)
    cluster.recipe.write_text(yaml.safe_dump(tiny_recipe(store, tmp_path / "elsewhere", zero_stage=2)))
    try:
        pods = [cluster.start(1), cluster.start(0)]
        cluster.wait_for(".kubernetes/job-1/roster")
        # The ranks look for the stop file at their first step and then every 5 s, in which this run would be over.
        os.kill(pods[0].pid, signal.SIGTERM)  # to the script alone, as the kubelet does
        assert cluster.ended(*pods) == [TO_BE_CONTINUED] * 2, cluster.said()
        stopped_at = rows(cluster.run)[-1]["step"]
        assert 1 <= stopped_at < 12
        assert (cluster.run / "checkpoints" / "latest").read_text() == f"step-{stopped_at:08d}"
        assert "with a checkpoint; the same command continues" in cluster.said()

        pods = [cluster.start(0), cluster.start(1)]
        assert cluster.ended(*pods) == [FINISHED] * 2, cluster.said()
    finally:
        cluster.close()
    assert f"continuing from {cluster.run / 'checkpoints'}" in cluster.said()

    alone = tmp_path / "alone"
    launch(tiny_recipe(store, alone, zero_stage=2)).succeeded()
    assert curve(cluster.run) == curve(alone)
    weights = "encoder/model.safetensors"
    assert (cluster.run / weights).read_bytes() == (alone / weights).read_bytes()


def test_a_finished_run_ends_every_pod_that_is_started_again(cluster):
    pods = [cluster.start(0), cluster.start(1)]
    cluster.wait_for("started-0", "started-1")
    cluster.order(0, *FINISH)
    cluster.order(1, "kill -KILL $PPID")  # the node is lost when its peer has finished already
    assert cluster.ended(*pods)[0] == FINISHED, cluster.said()
    assert cluster.ended(cluster.start(1)) == [FINISHED], cluster.said()
    assert len((cluster.run / "started-1").read_text().splitlines()) == 1


def test_both_are_started_alike_and_see_their_run_and_settings(cluster):
    pods = [cluster.start(index, "--set", "steps=3", GPUS="4") for index in (0, 1)]
    cluster.wait_for("started-0", "started-1")
    for index in (0, 1):
        cluster.order(index, *FINISH)
        given = (cluster.run / f"started-{index}").read_text()
        assert f"--no_ssh --node_rank {index} " in given
        assert f"--master_addr 127.0.0.1 --master_port {cluster.port} launchers/pretrain.py" in given
        assert given.endswith(f"{cluster.recipe} --set steps=3 --set run={cluster.run}\n")
    assert cluster.ended(*pods) == [FINISHED] * 2


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_node_takes_the_other_with_it_and_both_start_again(cluster, lost):
    other = 1 - lost
    pods = {index: cluster.start(index) for index in (0, 1)}
    cluster.wait_for("rank-0", "rank-1")
    rank = int((cluster.run / f"rank-{other}").read_text())
    subprocess.run(["pkill", "-KILL", "-s", str(pods[lost].pid)], check=True)
    replaced = cluster.start(lost)
    # The other hangs in a collective: only its script can know.
    assert cluster.ended(pods[other]) == [TO_BE_CONTINUED], cluster.said()
    assert not Path(f"/proc/{rank}").exists() or "Z" in Path(f"/proc/{rank}/stat").read_text()
    assert len((cluster.run / f"started-{lost}").read_text().splitlines()) == 1, "it joined a group under way"
    assert replaced.poll() is None

    cluster.order(0, *FINISH)
    cluster.order(1, *FINISH)
    assert cluster.ended(replaced, cluster.start(other)) == [FINISHED] * 2, cluster.said()


@pytest.mark.parametrize(
    ("orders", "quick_s", "code"),
    [
        (("exit 9",), "0", 9),
        ((*NEW_CHECKPOINT, "exit 9"), "0", TO_BE_CONTINUED),
        ((*NEW_CHECKPOINT, "exit 9"), "600", 9),  # it may save a little each time and fail for ever
        (("exit 0",), "0", 1),  # what DeepSpeed's launcher reports of ranks that were killed with it
        ((*NEW_CHECKPOINT, "exit 0"), "600", TO_BE_CONTINUED),
        (FINISH, "600", FINISHED),
    ],
)
def test_exit_codes(cluster, orders, quick_s, code):
    pod = cluster.start(0, NODES="1", DDSCALE_QUICK_FAILURE_S=quick_s)
    cluster.order(0, *orders)
    assert cluster.ended(pod) == [code], cluster.said()


def test_a_pod_that_waits_for_others_ends_when_it_is_told_to(cluster):
    pod = cluster.start(0)
    cluster.wait_for(".kubernetes/job-1/node-0")
    os.kill(pod.pid, signal.SIGTERM)
    assert cluster.ended(pod) == [TO_BE_CONTINUED]
    assert "node 0 of 2 waits for node 1" in cluster.said()
    assert not (cluster.run / "started-0").exists()


def test_another_job_into_the_same_run_does_not_take_the_first_ones_end_for_its_own(cluster):
    for job in ("job-1", "job-2"):
        pod = cluster.start(0, NODES="1", JOB_UID=job)
        cluster.order(0, *FINISH)
        assert cluster.ended(pod) == [FINISHED]
    assert len((cluster.run / "started-0").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"RUN": ""}, "RUN is not set"),
        ({"JOB_COMPLETION_INDEX": "2"}, "node 2 of NODES=2: set NODES to the Job's completions"),
    ],
)
def test_a_wrong_environment_is_told_and_is_not_tried_again(cluster, wrong, said):
    assert cluster.ended(cluster.start(0, **wrong)) == [CALLED_WRONGLY]
    assert said in cluster.said()


@pytest.mark.parametrize("arguments", [[], ["pretrain"], ["ingest", "x.yaml"], ["pretrain", "nowhere.yaml"]])
def test_wrong_arguments_are_told_and_are_not_tried_again(tmp_path, arguments):
    needed = dict.fromkeys(("JOB_UID", "MASTER_ADDR", "RUN"), str(tmp_path))
    counts = {"JOB_COMPLETION_INDEX": "0", "NODES": "1", "GPUS": "1"}
    done = subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env={**os.environ, **needed, **counts},
        capture_output=True,
        text=True,
    )
    assert done.returncode == CALLED_WRONGLY
    assert re.search(r"usage: .* pretrain\|finetune RECIPE|no recipe nowhere.yaml", done.stderr)


# train.yaml


@pytest.fixture(scope="module")
def service():
    return next(yaml.safe_load_all(TEMPLATE.read_text()))


@pytest.fixture(scope="module")
def job():
    return list(yaml.safe_load_all(TEMPLATE.read_text()))[1]


@pytest.fixture(scope="module")
def pod(job):
    return job["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def train(pod):
    (container,) = pod["containers"]
    return container


def environment(train: dict) -> dict:
    return {entry["name"]: entry.get("value") for entry in train["env"]}


def test_it_is_an_indexed_job_with_a_headless_service_of_the_same_name(service, job, pod, train):
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert service["spec"]["clusterIP"] == "None"  # the word, not null
    name = job["metadata"]["name"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert environment(train)["MASTER_ADDR"] == f"{name}-0.{pod['subdomain']}"
    # The pods' host names are NAME-INDEX, labels of DNS.
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,55}[a-z0-9])?", name)


def test_all_nodes_are_there_at_once_and_are_as_many_as_the_script_is_told(job, train):
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(environment(train)["NODES"])
    assert train["resources"]["limits"]["nvidia.com/gpu"] == int(environment(train)["GPUS"])
    assert all(value is None or isinstance(value, str) for value in environment(train).values())


def test_the_script_gets_all_it_asks_for(train):
    asked = re.search(r"^for name in (.+); do$", SCRIPT.read_text(), re.MULTILINE)[1].split()
    assert set(asked) <= {*environment(train), "JOB_COMPLETION_INDEX"}
    fields = [entry["valueFrom"]["fieldRef"]["fieldPath"] for entry in train["env"] if "valueFrom" in entry]
    assert fields == ["metadata.labels['batch.kubernetes.io/controller-uid']"]
    shell, script = train["command"]
    assert shell == "bash"
    assert (ROOT / Path(script).relative_to("/app")).samefile(SCRIPT)
    stage, recipe, *sets = train["args"]
    assert (ROOT / "launchers" / f"{stage}.py").is_file()
    assert (ROOT / recipe).is_file()
    assert sets[0::2] == ["--set"] * (len(sets) // 2)


def test_the_shipped_arguments_are_a_valid_recipe(train):
    from ddscale import recipes
    from ddscale.training.settings import PretrainRecipe

    _, recipe, *sets = train["args"]
    loaded = recipes.load(ROOT / recipe, PretrainRecipe, [*sets[1::2], f"run={environment(train)['RUN']}"])
    assert loaded.run == environment(train)["RUN"]


def test_exit_codes_mean_to_kubernetes_what_they_mean_to_the_script(job, pod, train):
    spec = job["spec"]
    # The API refuses podFailurePolicy and backoffLimitPerIndex without these two.
    assert pod["restartPolicy"] == "Never"
    assert spec["podReplacementPolicy"] == "Failed"
    actions = {}
    for rule in spec["podFailurePolicy"]["rules"]:
        assert len({"onExitCodes", "onPodConditions"} & set(rule)) == 1
        if codes := rule.get("onExitCodes"):
            assert codes["containerName"] == train["name"]
            assert codes["operator"] == "In"
            assert 0 not in codes["values"]  # refused by the API
            actions |= dict.fromkeys(codes["values"], rule["action"])
        else:
            assert rule["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
            assert rule["action"] == "Ignore"
    assert actions == {CALLED_WRONGLY: "FailJob", TO_BE_CONTINUED: "Ignore"}
    assert spec["backoffLimitPerIndex"] > 0
    assert spec["maxFailedIndexes"] == 0, "one node that gives up would leave the others waiting for ever"
    assert "backoffLimit" not in spec  # the sum over all nodes


def test_volumes_exist_and_shared_memory_is_larger_than_a_containers_own(pod, train):
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in train["volumeMounts"]}
    assert len(mounts) == len(volumes)
    assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    assert "claimName" in mounts["/data"]["persistentVolumeClaim"]
    assert environment(train)["RUN"].startswith("/data/")
    shared, all_of_it = mounts["/dev/shm"]["emptyDir"]["sizeLimit"], train["resources"]["limits"]["memory"]
    assert int(shared.removesuffix("Gi")) < int(all_of_it.removesuffix("Gi"))


def test_a_checkpoint_has_time_and_nothing_runs_as_root(pod, train):
    assert pod["terminationGracePeriodSeconds"] >= 300
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert train["securityContext"]["allowPrivilegeEscalation"] is False


def test_it_says_that_it_was_never_run(job):
    assert "NEVER RUN ON A CLUSTER" in TEMPLATE.read_text()
