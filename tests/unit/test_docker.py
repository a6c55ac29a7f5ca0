"""What can be known of the images without building them: their files, packages and commands, the service really run."""

from __future__ import annotations

import ast
import hashlib
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import urllib.request
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import yaml
from deployed import eeg, tiny_folder
from launching import ROOT, free_port
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TRAIN, RUNTIME, COMPOSE = (
    ROOT / "docker" / name for name in ("train.Dockerfile", "runtime.Dockerfile", "compose.yaml")
)
IMAGES = pytest.mark.parametrize("dockerfile", [TRAIN, RUNTIME], ids=["train", "runtime"])


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(instruction, rest), comments gone and continued lines joined."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def of_kind(dockerfile: Path, kind: str) -> list[str]:
    return [rest for instruction, rest in instructions(dockerfile) if instruction == kind]


def copies(dockerfile: Path) -> list[tuple[list[str], str]]:
    """(sources, target) of every COPY."""
    split = [rest.split() for rest in of_kind(dockerfile, "COPY")]
    return [(parts[:-1], parts[-1]) for parts in split]


def argument(dockerfile: Path, name: str) -> str:
    (value,) = (rest.split("=", 1)[1] for rest in of_kind(dockerfile, "ARG") if rest.startswith(f"{name}="))
    return value


def pip_installs(dockerfile: Path) -> list[list[str]]:
    """What each `pip install` of an image installs, options gone."""
    takes_value = {"--constraint", "--extra-index-url", "--index-url"}
    found = []
    for command in "\n".join(of_kind(dockerfile, "RUN")).replace("\n", " && ").split("&&"):
        words = shlex.split(command)
        if words[:2] == ["pip", "install"]:
            assert "--no-deps" in words or "--constraint" in words, f"{command}: versions are not pinned"
            named = [w for before, w in itertools.pairwise(words[1:]) if before not in takes_value]
            found.append([word for word in named if not word.startswith("-")])
    return found


@pytest.fixture(scope="module")
def pinned() -> set[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {canonicalize_name(line.split("==")[0]) for line in lines if "==" in line}


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def runtime_packages() -> set[str]:
    """All that pip brings into the runtime image, by the metadata of what is installed here."""
    (named,) = pip_installs(RUNTIME)
    wanted = [Requirement(argument(RUNTIME, "ENGINE") if name == "$ENGINE" else name) for name in named]
    found: set[str] = set()
    while wanted:
        name = canonicalize_name(wanted.pop().name)
        if name in found:
            continue
        found.add(name)
        needs = map(Requirement, metadata.requires(name) or [])
        wanted += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


# Both images


@IMAGES
def test_what_is_copied_exists_and_is_not_ignored(dockerfile):
    first, *rest = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")
    ]
    assert first == "*"
    sent = {line[1:] for line in rest if line.startswith("!")}
    assert all((ROOT / name).exists() for name in sent)
    assert not sent & {".venv", ".git", "demo", "runs", "stores", "tests"}
    for sources, target in copies(dockerfile):
        for source in sources:
            assert (ROOT / source).exists(), source
            assert Path(source).parts[0] in sent, f"{source} is not sent to the build"
            # COPY puts a folder's contents into the target, so that a target of another name renames it.
            assert not (ROOT / source).is_dir() or target == source
        assert len(sources) == 1 or target.endswith("/")


@IMAGES
def test_bases_are_named_by_a_full_version_and_the_user_is_not_root(dockerfile):
    (base,) = of_kind(dockerfile, "FROM")
    base = argument(dockerfile, base[1:]) if base.startswith("$") else base
    assert re.fullmatch(
        r"(nvidia/cuda:\d+\.\d+\.\d+-cudnn-devel-ubuntu24\.04|python:3\.11-slim-bookworm)", base
    )
    user = of_kind(dockerfile, "USER")[-1]
    assert int(user.split(":")[0]) > 0
    kinds = [kind for kind, _ in instructions(dockerfile)]
    assert "RUN" not in kinds[kinds.index("USER") :], "as a user nothing can be installed"
    assert "ADD" not in kinds


@pytest.mark.parametrize("file", [TRAIN, RUNTIME, COMPOSE], ids=lambda path: path.name)
def test_it_says_that_it_was_never_built_or_run(file):
    assert re.search("^# NEVER (BUILT|RUN)", file.read_text(), re.MULTILINE)


# The image that trains


def test_torch_is_built_for_the_images_cuda_and_comes_before_deepspeed(pinned):
    (base,) = of_kind(TRAIN, "FROM")
    major, minor = re.search(r"cuda:(\d+)\.(\d+)", base).groups()
    assert argument(TRAIN, "TORCH_INDEX").endswith(f"/cu{major}{minor}")
    installed = pip_installs(TRAIN)
    assert "torch" in installed[0]
    assert installed[1] == ["deepspeed"]
    assert {"torch", "deepspeed"} <= pinned


def test_the_project_is_installed_with_extras_that_exist_and_its_commands_are_there(project):
    requirements = [name for names in pip_installs(TRAIN) for name in names if name.startswith(".")]
    assert requirements == [".[diffusion,evaluation,export,wandb]", "."]
    assert set(requirements[0][2:-1].split(",")) <= set(project["optional-dependencies"])
    copied = {source for sources, _ in copies(TRAIN) for source in sources}
    assert {"launchers", "recipes", "ddscale", "export", project["readme"]} <= copied
    assert "ddscale" in project["scripts"]
    assert json.loads(of_kind(TRAIN, "CMD")[0])[0] == "ddscale"


def test_kubernetes_finds_the_script_and_the_user_that_it_names():
    template = list(yaml.safe_load_all((ROOT / "launchers" / "kubernetes" / "train.yaml").read_text()))[1]
    pod = template["spec"]["template"]["spec"]
    folder = of_kind(TRAIN, "WORKDIR")[0]
    assert pod["containers"][0]["command"][1] == f"{folder}/launchers/kubernetes/run.sh"
    context = pod["securityContext"]
    assert of_kind(TRAIN, "USER")[-1] == f"{context['runAsUser']}:{context['runAsGroup']}"


# The image that serves


def test_the_runtime_image_gets_no_torch_and_nothing_unpinned(runtime_packages, pinned):
    assert {"numpy", "onnxruntime", "fastapi", "uvicorn", "pydantic", "starlette"} <= runtime_packages
    assert not runtime_packages & {
        "torch",
        "deepspeed",
        "diffusers",
        "transformers",
        "scipy",
        "mne",
        "onnx",
        "pandas",
    }
    assert not [name for name in runtime_packages if name.startswith("nvidia-")]
    assert runtime_packages <= pinned


def test_the_runtime_image_names_what_the_serving_extra_names(project):
    (named,) = pip_installs(RUNTIME)
    extras = project["optional-dependencies"]
    serving = {Requirement(text).name for text in extras["serving"]}
    assert set(named) == {"numpy", "$ENGINE", *serving}
    assert argument(RUNTIME, "ENGINE") in {Requirement(text).name for text in extras["export"]}


@pytest.fixture
def image(tmp_path, runtime_packages):
    """(folder, environment): what the runtime image holds of ddscale, and a Python that finds only its packages."""
    app = tmp_path / "app"
    for sources, target in copies(RUNTIME):
        for source in sources:
            into = app / target / Path(source).name if target.endswith("/") else app / target
            into.parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
            copy(ROOT / source, into)
    foreign = [
        module
        for module, distributions in metadata.packages_distributions().items()
        if not {canonicalize_name(name) for name in distributions} & runtime_packages
        and module not in sys.stdlib_module_names
        and module != "ddscale"
    ]
    assert "torch" in foreign
    (app / "sitecustomize.py").write_text(
        "import sys\n"
        f"absent = frozenset({sorted(foreign)!r})\n"
        "class Absent:\n"
        "    @staticmethod\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name.split('.')[0] in absent:\n"
        "            raise ModuleNotFoundError(f'{name} is not in the image', name=name)\n"
        "sys.meta_path.insert(0, Absent)\n"
    )
    environment = dict(re.findall(r"(\w+)=(\S+)", " ".join(of_kind(RUNTIME, "ENV"))))
    environment = {name: value.replace("/app", str(app)) for name, value in environment.items()}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return app, {"OMP_NUM_THREADS": "1", **environment}


def test_whatever_the_copied_files_import_of_ddscale_is_copied_too(image):
    app, _ = image
    for path in app.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                module = app / name.replace(".", "/")
                there = module.with_suffix(".py").is_file() or (module / "__init__.py").is_file()
                assert there or not name.startswith("ddscale"), f"{path.relative_to(app)} imports {name}"


def test_the_images_command_serves_an_export_and_its_healthcheck_agrees(image, tmp_path):
    app, environment = image
    folder = tiny_folder(tmp_path / "export")
    before = contents(folder)
    port = free_port()

    def here(form: str) -> list[str]:
        words = json.loads(form)
        return [word.replace("8000", str(port)).replace("/export", str(folder)) for word in words]

    command = [*here(of_kind(RUNTIME, "ENTRYPOINT")[0]), *here(of_kind(RUNTIME, "CMD")[0])]
    assert str(folder) in command
    healthcheck = here(of_kind(RUNTIME, "HEALTHCHECK")[0].split("CMD", 1)[1])

    def healthy() -> bool:
        return not subprocess.run(
            healthcheck, env=environment, cwd=app, capture_output=True, timeout=60
        ).returncode

    assert not healthy()
    service = subprocess.Popen(
        command, env=environment, cwd=app, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            assert service.poll() is None, service.communicate()[0]
            try:
                urllib.request.urlopen(f"{url}/ready", timeout=10).read()
                break
            except OSError:
                time.sleep(0.1)
        assert healthy()
        body = io.BytesIO()
        np.save(body, eeg(1))
        request = urllib.request.Request(f"{url}/generate?steps=2&scheduler=ddim", body.getvalue())
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.headers["content-type"] == "image/png"
            assert answer.read().startswith(b"\x89PNG")
        service.send_signal(signal.SIGTERM)  # docker stop
        said, _ = service.communicate(timeout=60)
        assert service.returncode == 0, said
        assert "Application shutdown complete" in said
    finally:
        service.kill()
        service.wait()
    assert contents(folder) == before, "the folder is mounted for reading alone"


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# compose.yaml


@pytest.fixture(scope="module")
def services() -> dict:
    return yaml.safe_load(COMPOSE.read_text())["services"]


@pytest.mark.parametrize("name", ["serve", "serve-gpu"])
def test_a_service_mounts_and_publishes_what_the_image_reads_and_listens_on(services, name):
    service = services[name]
    folder, *options = json.loads(of_kind(RUNTIME, "CMD")[0])
    (exposed,) = of_kind(RUNTIME, "EXPOSE")
    assert options[options.index("--port") + 1] == exposed
    assert options[options.index("--host") + 1] == "0.0.0.0"
    assert service.get("command", [folder, *options])[:5] == [folder, *options]
    (volume,) = service["volumes"]
    assert (volume["target"], volume["read_only"]) == (folder, True)
    assert volume["source"].startswith("${EXPORT:?")
    (port,) = service["ports"]
    assert port == f"127.0.0.1:8000:{exposed}"  # not to the world: there is no login
    assert f"127.0.0.1:{exposed}/health" in of_kind(RUNTIME, "HEALTHCHECK")[0]
    assert "healthcheck" not in service  # the image's own
    assert service["read_only"] is True
    build = service["build"]
    assert (COMPOSE.parent / build["context"] / build["dockerfile"]).resolve() == RUNTIME
    assert set(build.get("args", {})) <= {rest.split("=")[0] for rest in of_kind(RUNTIME, "ARG")}


def test_the_gpu_service_asks_for_one_and_does_not_fall_back(services):
    service = services["serve-gpu"]
    assert service["profiles"] == ["gpu"]
    assert service["command"][-2:] == ["--provider", "cuda"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert Requirement(service["build"]["args"]["ENGINE"]).name == "onnxruntime-gpu"
    assert "profiles" not in services["serve"]


def test_requests_under_way_may_end(services):
    source = (ROOT / "ddscale" / "deploy" / "serving" / "__main__.py").read_text()
    graceful = int(re.search(r"timeout_graceful_shutdown=(\d+)", source)[1])
    assert all(
        int(service["stop_grace_period"].removesuffix("s")) > graceful for service in services.values()
    )
