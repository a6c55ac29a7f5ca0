"""The runtime on a folder of tiny graphs: what it draws, and the folders and engines that it refuses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from deployed import CHANNELS, SAMPLES, eeg, tiny_folder
from PIL import Image

from ddscale.deploy.manifest import FileInfo, Manifest, ManifestError, sha256_of
from ddscale.deploy.runtime import EEGError, EEGToImage, Encoder, ProviderError
from ddscale.deploy.runtime.generation import as_pixels

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "fp32")


@pytest.fixture(scope="module")
def model(kept):
    return EEGToImage.load(kept)


@pytest.fixture
def folder(kept, tmp_path):
    """A copy to damage."""
    return shutil.copytree(kept, tmp_path / "fp32")


def rewrite(folder, **changes):
    """Change fields of a manifest and bring its checksums up to date."""
    manifest = Manifest.load(folder)
    files = {
        name: FileInfo(sha256_of(folder / name), (folder / name).stat().st_size)
        for name in manifest.files
        if (folder / name).is_file()
    }
    graphs = {
        name: dataclasses.replace(graph, sha256=sha256_of(folder / graph.file))
        for name, graph in manifest.graphs.items()
    }
    dataclasses.replace(manifest, **{"files": files, "graphs": graphs, **changes}).save(folder)


# Drawing


def test_pictures_of_windows_and_samples(model):
    pictures = model.generate(eeg(3), samples=2)
    assert pictures.shape == (6, 8, 8, 3)
    assert pictures.dtype == np.uint8
    assert len({picture.tobytes() for picture in pictures}) == 6


def test_the_same_seed_gives_the_same_bits_and_another_does_not(model, kept):
    first = model.generate(eeg(2), seed=5)
    np.testing.assert_array_equal(EEGToImage.load(kept).generate(eeg(2), seed=5), first)
    assert (model.generate(eeg(2), seed=6) != first).any()


@pytest.mark.parametrize("scheduler", ["ddim", "lcm"])
def test_a_picture_does_not_depend_on_its_batch(model, scheduler):
    windows = eeg(3)
    together = model.generate(windows, samples=2, scheduler=scheduler, batch_size=6)
    by_two = model.generate(windows, samples=2, scheduler=scheduler, batch_size=2)
    alone = model.generate(windows[2], samples=2, scheduler=scheduler, first_window=2)
    assert np.abs(together.astype(int) - by_two).max() <= 1
    assert np.abs(together[4:].astype(int) - alone).max() <= 1


def test_eeg_guidance_and_steps_matter(model):
    pictures = [
        model.generate(eeg(1)),
        model.generate(eeg(1, seed=1)),
        model.generate(eeg(1), guidance=1.0),
        model.generate(eeg(1), steps=50),
        model.generate(eeg(1), scheduler="lcm"),
    ]
    assert len({picture.tobytes() for picture in pictures}) == 5


def test_any_real_type_and_order_of_memory_is_taken(model):
    windows = eeg(2).round()
    expected = model.generate(windows)
    for given in (
        windows.astype(np.float64),
        windows.astype(np.int16),
        np.asfortranarray(windows),
        windows.tolist(),
    ):
        np.testing.assert_array_equal(model.generate(given), expected)


def test_stages_are_timed_and_steps_are_told(model):
    told = []
    model.generate(eeg(3), samples=2, batch_size=4, on_step=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    times = model.timings
    assert (times.unet_calls, times.pictures) == (4, 6)
    parts = times.encoder + times.unet + times.sampler + times.decoder
    assert parts == pytest.approx(times.total)
    assert min(times.encoder, times.unet, times.sampler, times.decoder) > 0


def test_drawing_can_be_ended_between_steps(model):
    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.generate(eeg(1), steps=50, on_step=stop)
    assert model.generate(eeg(1)).shape == (1, 8, 8, 3)


def test_openvino_draws_the_same(model, kept):
    other = EEGToImage.load(kept, "openvino")
    assert other.provider == "openvino"
    for scheduler in ("ddim", "lcm"):
        ours, theirs = (
            m.generate(eeg(2), scheduler=scheduler, samples=2).astype(int) for m in (model, other)
        )
        assert np.abs(ours - theirs).max() <= 1


def test_the_encoder_alone(kept):
    encoder = Encoder.load(kept)
    assert encoder.encode(eeg(3))["encoder_hidden_states"].shape == (3, 2, 3)
    with pytest.raises(EEGError, match="NaN"):
        encoder.encode(np.full((CHANNELS, SAMPLES), np.nan))


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_an_encoder_is_used_by_several_threads(kept, provider):
    encoder = Encoder.load(kept, provider)
    windows = eeg(300)
    (expected,) = (Encoder.load(kept).encode(windows[n : n + 3])["encoder_hidden_states"] for n in (0,))
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: encoder.encode(windows[:3])["encoder_hidden_states"], range(200)))
    assert all(np.allclose(one, expected, atol=1e-5) for one in made)
    # More windows than are encoded at once.
    assert encoder.encode(windows)["encoder_hidden_states"].shape[0] == 300


def script(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "export" / "generate.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_the_script_writes_the_pictures(model, kept, tmp_path):
    np.save(tmp_path / "eeg.npy", eeg(20))
    out = tmp_path / "pictures"
    options = ["--samples", 2, "--seed", 9, "--steps", 50, "--sfreq", 256]
    done = script(kept, "--eeg", tmp_path / "eeg.npy", "--out", out, *options)
    assert done.returncode == 0, done.stderr
    assert "40 pictures" in done.stdout
    expected = model.generate(eeg(20), steps=50, seed=9, samples=2)
    for window, sample in ((0, 0), (15, 1), (16, 0), (19, 1)):
        picture = np.asarray(Image.open(out / f"{window}-{sample}.png")).astype(int)
        assert np.abs(picture - expected[2 * window + sample]).max() <= 1
    assert Image.open(out / "grid.png").size == (2 * 8 + 4, 16 * 8 + 15 * 4)
    facts = json.loads((out / "pictures.json").read_text())
    assert (facts["scheduler"], facts["steps"], facts["seed"], len(facts["pictures"])) == ("ddim", 50, 9, 40)


def test_pictures_of_an_earlier_call_do_not_stay_among_new_ones(model, tmp_path):
    from ddscale.deploy.runtime.files import Settings, draw

    draw(model, eeg(3), tmp_path, Settings(samples=2), {})
    (tmp_path / "mine.png").write_bytes(b"not of this program")
    (tmp_path / "9-9.png").write_bytes(b"nor this")
    draw(model, eeg(1), tmp_path, Settings(), {})
    assert {path.name for path in tmp_path.glob("*.png")} == {"0-0.png", "grid.png", "mine.png", "9-9.png"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no EEG in"),
        (lambda path: path.write_bytes(b"EDF"), "not a .npy file"),
        (lambda path: path.write_bytes(b""), "not a .npy file"),
        (lambda path: path.write_bytes(b"PK\x03\x04broken"), "not a .npy file"),
        (lambda path: np.save(path, eeg(2)[:, :2]), "give 4 channels"),
        (lambda path: np.save(path, eeg(2) * np.float32(np.nan)), "NaN"),
    ],
)
def test_the_script_ends_with_one_line(kept, tmp_path, make, message):
    make(tmp_path / "eeg.npy")
    done = script(kept, "--eeg", tmp_path / "eeg.npy", "--out", tmp_path / "pictures")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


# What is asked wrongly; windows that are refused are in test_deploy_runtime_windows.py


def test_what_recordings_must_have_had_is_said(folder):
    rewrite(folder, preprocessing={"highpass": 0.5, "notch": 50})
    with pytest.raises(EEGError, match=r"filtered as in training \(highpass 0\.5, notch 50\)"):
        EEGToImage.load(folder).generate(eeg(1)[:, :3])


@pytest.mark.parametrize(
    "setting",
    [
        {"samples": 0},
        {"samples": 2.5},
        {"batch_size": 0},
        {"guidance": 0.5},
        {"guidance": float("nan")},
        {"guidance": "3"},
        {"seed": -1},
        {"seed": 2**64},
    ],
)
def test_settings_out_of_range(model, setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        model.generate(eeg(1), **setting)


def test_a_sampler_that_was_not_exported(model):
    with pytest.raises(
        ManifestError, match=r"no table for unipc with 8 steps.*ddim with 2 steps.*export again"
    ):
        model.generate(eeg(1), scheduler="unipc", steps=8)
    with pytest.raises(ManifestError, match="ddim with 7 steps"):
        model.generate(eeg(1), scheduler="ddim", steps=7)
    with pytest.raises(ManifestError, match="no table for unipc; it has"):
        model.generate(eeg(1), scheduler="unipc")
    with pytest.raises(ManifestError, match="no table for a sampler with 999 steps; it has"):
        model.generate(eeg(1), steps=999)


def test_a_table_of_another_sampler_is_refused_and_none_is_read_later(folder):
    model = EEGToImage.load(folder)
    before = model.generate(eeg(1), scheduler="ddim", steps=2)
    shutil.copy(folder / "schedules" / "lcm-3.npz", folder / "schedules" / "ddim-2.npz")
    assert np.array_equal(model.generate(eeg(1), scheduler="ddim", steps=2), before)
    content = (folder / "schedules" / "ddim-2.npz").read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["schedules/ddim-2.npz"] = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ManifestError, match="holds lcm with 3 steps, the manifest says ddim with 2"):
        EEGToImage.load(folder)


def test_a_picture_of_nan_is_an_error_and_not_black():
    images = np.zeros((2, 3, 4, 4), np.float32)
    images[1, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"picture 1 .*overflows"):
        as_pixels(images)


# Folders that must not be used


@pytest.mark.parametrize(
    "name", ["unet.onnx", "eeg_encoder.onnx", "vae_decoder.onnx", "constants.npz", "schedules/ddim-2.npz"]
)
def test_a_flipped_bit_is_refused_by_name(folder, name):
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=rf"{name.replace('+', '.')} has SHA-256.*export again"):
        EEGToImage.load(folder)


def test_a_graph_of_another_export_is_refused(folder):
    shutil.copy(folder / "vae_decoder.onnx", folder / "unet.onnx")
    with pytest.raises(ManifestError, match=r"unet\.onnx has \d+ bytes instead of"):
        EEGToImage.load(folder)


def test_a_graph_with_other_inputs_than_the_manifest_says_is_refused(folder):
    shutil.copy(folder / "vae_decoder.onnx", folder / "unet.onnx")
    rewrite(folder)
    with pytest.raises(
        ProviderError, match=r"unet\.onnx has the inputs latent, its manifest says .*export again"
    ):
        EEGToImage.load(folder)


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_a_graph_that_is_no_onnx_is_refused(folder, provider):
    (folder / "unet.onnx").write_bytes(b"this was once a graph")
    rewrite(folder)
    with pytest.raises(ProviderError, match=r"cannot (load|compile) .*unet\.onnx"):
        EEGToImage.load(folder, provider)


def test_a_missing_file_is_refused(folder):
    (folder / "vae_decoder.onnx").unlink()
    with pytest.raises(ManifestError, match=r"vae_decoder\.onnx is missing"):
        EEGToImage.load(folder)


@pytest.mark.parametrize("version", [0, 2, "1"])
def test_a_manifest_of_another_version_is_refused(folder, version):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": version}))
    with pytest.raises(ManifestError, match=rf"schema version {version!r}, this ddscale reads version 1"):
        EEGToImage.load(folder)


def test_a_folder_that_is_no_export_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"export/to_onnx\.py"):
        EEGToImage.load(tmp_path)


def test_an_encoder_alone_draws_no_pictures(folder):
    rewrite(folder, kind="encoder", latent=None, constants=None, schedules=())
    with pytest.raises(ManifestError, match=r"encoder alone.*runtime\.Encoder"):
        EEGToImage.load(folder)
    assert Encoder.load(folder).encode(eeg(1))["encoder_hidden_states"].shape == (1, 2, 3)


def test_a_decoder_that_was_not_exported(folder):
    with pytest.raises(ManifestError, match="no tiny_decoder: it has eeg_encoder, unet, vae_decoder"):
        EEGToImage.load(folder, decoder="tiny")


# Engines that are not there


def test_a_provider_that_is_not_there_is_an_error_and_not_the_cpu(kept):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(
        ProviderError, match=r"no CUDAExecutionProvider \(it has .*\): install onnxruntime-gpu"
    ):
        EEGToImage.load(kept, "cuda")


def test_a_provider_that_silently_becomes_the_cpu_is_an_error(kept, monkeypatch):
    # What onnxruntime-gpu does on a machine without CUDA: lists it, is asked for it, and computes on the CPU.
    import onnxruntime

    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, options, providers: real(path, options, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(
        ProviderError, match=r"asked for CUDAExecutionProvider and gives CPUExecutionProvider"
    ):
        EEGToImage.load(kept, "cuda")


def test_a_provider_that_leaves_work_to_the_cpu_is_an_error(kept, monkeypatch):
    import onnxruntime

    class Halfway(onnxruntime.InferenceSession):
        """Says that it computes on CUDA, and has all nodes on the CPU."""

        def __init__(self, path, options, providers):
            super().__init__(path, options, providers=["CPUExecutionProvider"])

        def get_providers(self):
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Halfway)
    with pytest.raises(ProviderError, match=r"would run MatMul, Tanh on the CPU"):
        EEGToImage.load(kept, "cuda")


def test_shapes_may_be_computed_on_the_cpu():
    from types import SimpleNamespace

    from ddscale.deploy.runtime.graphs import heavy_on_cpu

    def part(provider, *kinds):
        nodes = [SimpleNamespace(op_type=kind) for kind in kinds]
        return SimpleNamespace(ep_name=f"{provider}ExecutionProvider", get_nodes=lambda: nodes)

    def session(*parts):
        return SimpleNamespace(get_provider_graph_assignment_info=lambda: parts)

    shapes = part("CPU", "Shape", "Gather", "Concat", "Unsqueeze", "Mul")
    assert heavy_on_cpu(session(part("CUDA", "Conv", "FusedMatMul"), shapes)) == []
    assert heavy_on_cpu(session(part("CPU", "FusedConv"), shapes)) == ["FusedConv"]
    assert heavy_on_cpu(SimpleNamespace()) == []


def test_inputs_that_stay_on_the_device_give_the_same(model, kept):
    # As on CUDA, with the host's memory standing in for the GPU's.
    bound = EEGToImage.load(kept)
    bound._unet._device = "cpu"
    for guidance in (1.0, 3.0):
        expected = model.generate(eeg(3), steps=50, guidance=guidance)
        np.testing.assert_array_equal(bound.generate(eeg(3), steps=50, guidance=guidance), expected)


@pytest.mark.parametrize(("provider", "package"), [("cpu", "onnxruntime"), ("openvino", "openvino")])
def test_an_engine_that_is_not_installed(kept, monkeypatch, provider, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ProviderError, match=rf"{package} is not installed: pip install {package}"):
        EEGToImage.load(kept, provider)


def test_a_provider_of_another_name(kept):
    with pytest.raises(ProviderError, match="'metal' is not known: use one of cpu, cuda, tensorrt, openvino"):
        EEGToImage.load(kept, "metal")


# TensorRT engines: what must be refused is refused before TensorRT sees it, so a machine without a GPU can check it


@pytest.fixture
def on_an_ada_gpu(monkeypatch):
    from ddscale.deploy.engines import Device
    from ddscale.deploy.runtime import tensorrt_engines

    device = Device("rtx", "1.7.1", "sm89")
    monkeypatch.setattr(tensorrt_engines, "this_device", lambda export: (None, None, device))
    return device


def with_engines(folder, device, **changes):
    """Engines as export/to_tensorrt.py leaves them, their contents made up."""
    from ddscale.deploy.engines import EngineInfo, EngineRecord

    manifest = Manifest.load(folder)
    sm = changes.get("sm", device.sm)
    target = folder / "engines" / f"{changes.get('flavour', device.flavour)}-{sm}"
    target.mkdir(parents=True)
    engines = {}
    for name, graph in manifest.graphs.items():
        path = target / f"{name}.engine"
        path.write_bytes(f"engine of {name}".encode())
        engines[name] = EngineInfo(path.name, sha256_of(path), graph.sha256, 1.0)
    record = EngineRecord(
        device.flavour, device.version, sm, device.system, "fp32", manifest.profiles, engines
    )
    dataclasses.replace(record, **changes).save(target)
    return target


def test_no_engines(folder, on_an_ada_gpu):
    with pytest.raises(ManifestError, match=r"no engines.*python export/to_tensorrt\.py"):
        EEGToImage.load(folder, "tensorrt")


def test_engines_for_another_gpu(folder, on_an_ada_gpu):
    with_engines(folder, on_an_ada_gpu, sm="sm120")
    with pytest.raises(ManifestError, match=r"engines for rtx-sm120, this is rtx-sm89.*--target sm89"):
        EEGToImage.load(folder, "tensorrt")


def test_engines_of_another_version(folder, on_an_ada_gpu):
    with_engines(folder, on_an_ada_gpu, version="1.3.0")
    with pytest.raises(ManifestError, match=r"built by TensorRT-RTX 1\.3\.0, this is 1\.7\.1.*Build again"):
        EEGToImage.load(folder, "tensorrt")


def test_swapped_engines(folder, on_an_ada_gpu):
    target = with_engines(folder, on_an_ada_gpu)
    shutil.copy(target / "vae_decoder.engine", target / "eeg_encoder.engine")
    with pytest.raises(ManifestError, match=r"eeg_encoder\.engine is not the file that was built"):
        EEGToImage.load(folder, "tensorrt")


def test_engines_of_other_weights(folder, on_an_ada_gpu):
    from ddscale.deploy.engines import EngineRecord

    target = with_engines(folder, on_an_ada_gpu)
    record = EngineRecord.load(target)
    other = {
        name: dataclasses.replace(engine, graph_sha256="0" * 64) for name, engine in record.engines.items()
    }
    dataclasses.replace(record, engines=other).save(target)
    with pytest.raises(ManifestError, match="built from other weights"):
        EEGToImage.load(folder, "tensorrt")


def test_no_gpu_or_no_tensorrt(folder, monkeypatch):
    from ddscale.deploy.runtime import tensorrt_engines

    if tensorrt_engines.optional("cuda.bindings.runtime") is not None:
        pytest.skip("cuda-python is here, and maybe a GPU")
    for package in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ProviderError, match="TensorRT is not installed: pip install"):
        EEGToImage.load(folder, "tensorrt")
