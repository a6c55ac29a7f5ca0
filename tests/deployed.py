"""A whole exported folder in milliseconds: graphs of a few operations, for what does not depend on the networks."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from ddscale.deploy.manifest import (
    FileInfo,
    GoldenInfo,
    GraphInfo,
    LatentInfo,
    Manifest,
    Profile,
    ScheduleInfo,
    SourceInfo,
    TensorInfo,
    sha256_of,
)
from ddscale.deploy.runtime.sampler import Table

CHANNELS, SAMPLES, SFREQ = 4, 32, 256.0
LENGTH, WIDTH = 2, 3
LATENT = (2, 4, 4)


def tiny_folder(
    folder: Path,
    channels: int = CHANNELS,
    samples: int = SAMPLES,
    latent: tuple[int, int, int] = LATENT,
) -> Path:
    """A folder that the runtime loads: its pictures depend on EEG, seed, guidance and step."""
    (folder / "schedules").mkdir(parents=True)
    random = np.random.default_rng(0)
    flat = channels * samples
    graphs = {
        "eeg_encoder": _graph(
            [
                ("Reshape", ["eeg", "flat"], ["rows"], {}),
                ("MatMul", ["rows", "weight"], ["mixed"], {}),
                ("Tanh", ["mixed"], ["bounded"], {}),
                ("Reshape", ["bounded", "states"], ["encoder_hidden_states"], {}),
            ],
            {"eeg": ("batch", channels, samples)},
            {"encoder_hidden_states": ("batch", LENGTH, WIDTH)},
            {
                "flat": np.array([-1, flat]),
                "weight": (random.standard_normal((flat, LENGTH * WIDTH)) * 0.01).astype(np.float32),
                "states": np.array([-1, LENGTH, WIDTH]),
            },
        ),
        "unet": _graph(
            [
                ("ReduceMean", ["encoder_hidden_states", "axes"], ["mean"], {"keepdims": 1}),
                ("Unsqueeze", ["mean", "last"], ["pixel"], {}),
                ("Reshape", ["timestep", "column"], ["time"], {}),
                ("Mul", ["time", "scale"], ["small"], {}),
                ("Add", ["pixel", "small"], ["push"], {}),
                ("Mul", ["sample", "half"], ["kept"], {}),
                ("Add", ["kept", "push"], ["noise_pred"], {}),
            ],
            {
                "sample": ("batch", *latent),
                "timestep": ("batch",),
                "encoder_hidden_states": ("batch", LENGTH, WIDTH),
            },
            {"noise_pred": ("batch", *latent)},
            {
                "axes": np.array([1, 2]),
                "last": np.array([3]),
                "column": np.array([-1, 1, 1, 1]),
                "scale": np.array(1e-4, np.float32),
                "half": np.array(0.5, np.float32),
            },
        ),
        "vae_decoder": _graph(
            [("ConvTranspose", ["latent", "kernel"], ["image"], {"strides": [2, 2]})],
            {"latent": ("batch", *latent)},
            {"image": ("batch", 3, 2 * latent[1], 2 * latent[2])},
            {"kernel": (random.standard_normal((latent[0], 3, 2, 2)) * 0.3).astype(np.float32)},
        ),
    }
    infos = {}
    for name, model in graphs.items():
        onnx.save(model, folder / f"{name}.onnx")
        infos[name] = _info(model, folder / f"{name}.onnx")
    np.savez(folder / "constants.npz", null_hidden_states=np.zeros((1, LENGTH, WIDTH), np.float32))
    schedules = []
    for name, steps in (("ddim", 2), ("ddim", 50), ("ddim", 1000), ("lcm", 3)):
        table = _table(name, steps)
        file = table.save(folder / "schedules" / f"{name}-{steps}.npz").relative_to(folder).as_posix()
        schedules.append(ScheduleInfo(name, steps, file, 0.0))
    files = {
        path.relative_to(folder).as_posix(): FileInfo(sha256_of(path), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    Manifest(
        kind="pipeline",
        precision="fp32",
        created="2026-01-01T00:00:00+00:00",
        graphs=infos,
        files=files,
        sfreq=SFREQ,
        channels=channels,
        samples=samples,
        preprocessing=None,
        normalisation={"kind": "zscore"},
        latent=LatentInfo(*latent, downsampling=2),
        vae_scale=1.0,
        prediction_type="epsilon",
        constants="constants.npz",
        schedules=tuple(schedules),
        profiles=(Profile("default", 1, 1, 4),),
        golden=GoldenInfo("constants.npz", {}, None),
        parity=(),
        versions={},
        source=SourceInfo("none", hashlib.sha256(b"").hexdigest()),
        weight_names="constants.npz",
    ).save(folder)
    return folder


def eeg(windows: int = 1, seed: int = 0, channels: int = CHANNELS, samples: int = SAMPLES) -> np.ndarray:
    """Windows (B, C, T) float32 that the tiny folder takes: 20 µV."""
    random = np.random.default_rng(seed)
    return (random.standard_normal((windows, channels, samples)) * 20).astype(np.float32)


def _table(name: str, steps: int) -> Table:
    noises = steps - 1 if name == "lcm" else 0
    inputs_NK = np.zeros((steps, 1 + steps + noises))
    inputs_NK[:, 0] = 1
    for call in range(1, steps):
        inputs_NK[call, call] = -0.5
        if noises:
            inputs_NK[call, steps + call] = 0.25
    final_K = inputs_NK[-1].copy()
    final_K[steps] = -0.5
    return Table(name, steps, "epsilon", np.linspace(999, 1, steps), inputs_NK, final_K)


def _graph(nodes: list, inputs: dict, outputs: dict, constants: dict) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(kind, given, made, **settings) for kind, given, made, settings in nodes],
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def _info(model: onnx.ModelProto, path: Path) -> GraphInfo:
    def tensors(values: object) -> tuple[TensorInfo, ...]:
        return tuple(
            TensorInfo(
                v.name,
                "float32",
                tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim),
            )
            for v in values
        )

    return GraphInfo(
        file=path.name,
        data_file=None,
        sha256=sha256_of(path),
        inputs=tensors(model.graph.input),
        outputs=tensors(model.graph.output),
        opset=18,
        precision="fp32",
        parameters=0,
        largest_activation=None,
    )
