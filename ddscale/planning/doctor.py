"""`ddscale doctor`: what this machine can and cannot do, each finding with its remedy."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One thing looked at. state: `ok`, `limited` (not everything works), `broken` (training cannot start)."""

    subject: str
    state: str
    found: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at interpreter, libraries, accelerator, DeepSpeed's kernels, memory, disk and name lookup."""
    findings = [_python(), _memory(), _disk(), _shared_memory(), _host_name(), _extension_locks()]
    torch_found = _torch()
    findings += torch_found
    if all(finding.state != "broken" for finding in torch_found):
        findings += _deepspeed()
    findings += [_optional(name, use) for name, use in _OPTIONAL.items()]
    return findings


_OPTIONAL = {
    "moabb": "the `moabb` source; pip install 'ddscale[moabb]'",
    "wandb": "mirroring metrics to Weights & Biases; pip install 'ddscale[wandb]'",
    "dask_jobqueue": "starting Dask workers through Slurm; pip install 'ddscale[cluster]'",
}


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()}, {os.cpu_count()} CPU cores")


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    text = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB available"
    if memory.available < 4 * GIB:
        return Finding("memory", "limited", text, "the demo needs about 4 GiB; close other programs")
    return Finding("memory", "ok", text)


def _disk() -> Finding:
    free = shutil.disk_usage(".").free
    text = f"{free / GIB:.0f} GiB free in {Path.cwd()}"
    if free < 5 * GIB:
        return Finding(
            "disk",
            "limited",
            text,
            "stores and checkpoints go here unless recipes say otherwise",
        )
    return Finding("disk", "ok", text)


def _shared_memory() -> Finding:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding(
            "/dev/shm", "limited", "missing", "NCCL and DeepSpeed's CPU kernel use it; mount a tmpfs there"
        )
    free = shutil.disk_usage(folder).free
    if free < GIB:
        return Finding(
            "/dev/shm", "limited", f"{free / GIB:.2f} GiB free", "in a container start it with --shm-size=16g"
        )
    return Finding("/dev/shm", "ok", f"{free / GIB:.1f} GiB free")


def _host_name() -> Finding:
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        return Finding(
            "host name",
            "limited",
            f"{name} does not resolve ({error})",
            "ranks find each other by name: add it to /etc/hosts, or pass --master_addr to deepspeed",
        )
    return Finding("host name", "ok", f"{name} is {address}")


def _extension_locks() -> Finding:
    """A build killed half-way leaves a lock on which every later run waits for ever, saying nothing."""
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache" / "torch_extensions"))
    locks = [str(lock) for lock in sorted(folder.glob("**/lock"))] if folder.is_dir() else []
    if locks:
        return Finding(
            "extension builds",
            "broken",
            f"locked: {', '.join(locks)}",
            "delete these files unless a build is running now: every run waits on them",
        )
    return Finding("extension builds", "ok", f"no stale lock in {folder}")


def _torch() -> list[Finding]:
    try:
        import torch
    except Exception as error:  # a half-installed torch raises many kinds
        return [Finding("torch", "broken", str(error), "run make setup")]
    if not torch.cuda.is_available():
        return [
            Finding("torch", "ok", torch.__version__),
            Finding(
                "accelerator",
                "limited",
                "none: CPU with gloo",
                "fine for the demo, tests and small labs' data; fp16 and real scale need CUDA GPUs",
            ),
        ]
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [
        Finding("torch", "ok", f"{torch.__version__}, CUDA {torch.version.cuda}"),
        Finding(
            "accelerator",
            "ok",
            f"{len(names)}: {', '.join(sorted(set(names)))}; "
            f"bf16 {'yes' if torch.cuda.is_bf16_supported() else 'no'}",
        ),
    ]


def _deepspeed() -> list[Finding]:
    import torch

    if not torch.cuda.is_available():
        # Said ahead, or DeepSpeed warns on its own about what the finding above has already said.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        version = importlib.metadata.version("deepspeed")
        from deepspeed.git_version_info import installed_ops
    except Exception as error:
        return [Finding("deepspeed", "broken", str(error), "run make setup")]
    findings = [Finding("deepspeed", "ok", version)]
    if torch.cuda.is_available():
        return findings
    if installed_ops.get("deepspeed_shm_comm"):
        findings.append(Finding("CPU communication kernel", "ok", "compiled ahead of time"))
    else:
        compiler = shutil.which("g++")
        findings.append(
            Finding(
                "CPU communication kernel",
                "limited" if compiler else "broken",
                "not compiled: the first run builds it, for minutes"
                if compiler
                else "not compiled, and no g++",
                "run make setup, which compiles it once",
            )
        )
    return findings


def _optional(name: str, use: str) -> Finding:
    try:
        return Finding(name, "ok", importlib.metadata.version(name.replace("_", "-")))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "limited", "not installed", f"only needed for {use}")
