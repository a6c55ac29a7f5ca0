"""The code that runs TensorRT engines, on a stand-in for TensorRT and CUDA: no GPU here has run it for real."""

from __future__ import annotations

import dataclasses
import gc
import warnings
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from deployed import eeg, tiny_folder
from tensorrt_standin import Context, Cuda, Engine, TensorRT

from ddscale.deploy import tensorrt
from ddscale.deploy.engines import Device, EngineError, EngineInfo, EngineRecord
from ddscale.deploy.manifest import FileInfo, Manifest, Profile, sha256_of
from ddscale.deploy.replaying import measure_latency, replay_golden
from ddscale.deploy.runtime import EEGToImage, tensorrt_engines

FEW, MANY = Profile("few", 1, 1, 2), Profile("many", 3, 4, 5)
ONE, FOUR = Profile("one", 1, 1, 1), Profile("four", 4, 4, 4)


@pytest.fixture
def engines(tmp_path, monkeypatch):
    """Makes a tiny export with profiles, its "engines" of a flavour, and the machine that they run on."""

    def make(*profiles, flavour="datacentre"):
        folder = tiny_folder(tmp_path / "fp32")
        manifest = dataclasses.replace(Manifest.load(folder), profiles=profiles)
        manifest.save(folder)
        device = Device(flavour, "1.7.1", "sm89")
        target = folder / "engines" / f"{flavour}-sm89"
        target.mkdir(parents=True)
        infos = {}
        for name, graph in manifest.graphs.items():
            path = target / f"{name}.engine"
            path.write_bytes(name.encode() + b"|" + (folder / graph.file).read_bytes())
            infos[name] = EngineInfo(path.name, sha256_of(path), graph.sha256, 1.0)
        EngineRecord(flavour, "1.7.1", "sm89", device.system, "fp32", profiles, infos).save(target)
        ranges = {
            name: [(manifest.batches(name, p)[0], manifest.batches(name, p)[2]) for p in profiles]
            for name in manifest.graphs
        }
        cuda = Cuda()
        module = TensorRT(ranges, cuda, rtx=flavour == "rtx")
        monkeypatch.setattr(tensorrt_engines, "this_device", lambda export: (module, cuda, device))
        return SimpleNamespace(export=folder, cuda=cuda, module=module)

    return make


@pytest.fixture
def on_gpu(engines):
    return engines(FEW, MANY, flavour="rtx")


@pytest.fixture
def export(on_gpu):
    return on_gpu.export


@pytest.fixture
def cuda(on_gpu):
    return on_gpu.cuda


def assert_same_pictures(model, expected, windows, **settings):
    drawn = model.generate(eeg(windows), **settings)
    difference = drawn.astype(int) - expected.generate(eeg(windows), **settings)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("scheduler", ["ddim", "lcm"])
def test_pictures_are_those_of_the_graphs(export, cuda, scheduler):
    model = EEGToImage.load(export, "tensorrt")
    expected = EEGToImage.load(export)
    for windows, samples in ((1, 1), (3, 2), (2, 1), (5, 1)):
        assert_same_pictures(model, expected, windows, samples=samples, scheduler=scheduler)


def test_what_stays_the_same_is_sent_to_the_gpu_once(export, cuda):
    model = EEGToImage.load(export, "tensorrt")
    model.generate(eeg(2), steps=50)
    states = 4 * 2 * 3 * 4  # guided batch, length, width, bytes
    latents = 4 * 2 * 4 * 4 * 4
    assert cuda.uploaded.count(states) == 1
    assert cuda.uploaded.count(latents) == 50


def test_memory_on_the_gpu_does_not_grow_with_use(export, cuda):
    model = EEGToImage.load(export, "tensorrt")
    before = sum(len(block) for block in cuda.blocks.values())
    for windows in (1, 5, 3, 2):
        model.generate(eeg(windows), steps=50)
    assert sum(len(block) for block in cuda.blocks.values()) == before


def test_batches_beyond_the_profiles_are_refused_or_split(export, cuda):
    model = EEGToImage.load(export, "tensorrt")
    assert len(model.generate(eeg(6))) == 6
    with pytest.raises(EngineError, match=r"were built for 1 to 2, 3 to 5"):
        model.generate(eeg(6), batch_size=6)


def test_an_engine_that_tensorrt_refuses(export, cuda):
    path = export / "engines" / "rtx-sm89" / "unet.engine"
    path.write_bytes(b"not for here")
    record = EngineRecord.load(path.parent)
    engines = record.engines | {"unet": dataclasses.replace(record.engines["unet"], sha256=sha256_of(path))}
    dataclasses.replace(record, engines=engines).save(path.parent)
    with pytest.raises(ValueError, match=r"TensorRT cannot load .*unet\.engine"):
        EEGToImage.load(export, "tensorrt")


def test_a_changed_graph_beside_its_engine_is_refused_too(export, cuda):
    path = export / "unet.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    manifest = Manifest.load(export)
    with pytest.raises(ValueError, match=r"unet\.onnx has"):
        EEGToImage.load(export, "tensorrt")
    files = manifest.files | {"unet.onnx": FileInfo(sha256_of(path), path.stat().st_size)}
    graph = dataclasses.replace(manifest.graphs["unet"], sha256=sha256_of(path))
    dataclasses.replace(manifest, files=files, graphs=manifest.graphs | {"unet": graph}).save(export)
    with pytest.raises(EngineError, match="that of unet was built from other weights"):
        EEGToImage.load(export, "tensorrt")


def test_static_profiles_run_as_captured_graphs(engines):
    here = engines(ONE)
    model, expected = EEGToImage.load(here.export, "tensorrt"), EEGToImage.load(here.export)
    assert_same_pictures(model, expected, 1, steps=50)
    encoder, unet, decoder = here.module.contexts
    # Nothing is captured that has not run: then only the U-Net comes again, 49 times.
    assert (encoder.alone, unet.alone, decoder.alone) == (1, 1, 1)
    assert (here.cuda.begun, here.cuda.launched) == (1, 49)
    for seed in (1, 2):
        assert_same_pictures(model, expected, 1, steps=50, seed=seed)
    assert (encoder.alone, unet.alone, decoder.alone) == (1, 1, 1)
    assert (here.cuda.begun, here.cuda.launched) == (3, 49 + 2 * 52)
    assert not here.cuda.graphs


def test_a_graph_of_another_batch_replaces_the_captured_one(engines):
    """The U-Net's batch is one with guidance and one without, on the same context."""
    here = engines(ONE)
    model, expected = EEGToImage.load(here.export, "tensorrt"), EEGToImage.load(here.export)
    for guidance in (3.0, 1.0, 3.0):
        assert_same_pictures(model, expected, 1, steps=50, guidance=guidance)
    assert here.module.contexts[1].alone == 3
    assert len(here.cuda.executables) == 3


def test_static_beside_other_profiles(engines):
    here = engines(ONE, Profile("some", 2, 2, 3), FOUR)
    model, expected = EEGToImage.load(here.export, "tensorrt"), EEGToImage.load(here.export)
    for windows in (1, 1, 3, 2, 4, 4, 1, 7):
        assert_same_pictures(model, expected, windows, steps=50)
    here.cuda.launched = 0
    model.generate(eeg(2), steps=50)
    model.generate(eeg(3), steps=50)
    assert here.cuda.launched == 0


def test_profiles_with_a_range_are_not_captured(engines):
    here = engines(FEW)
    EEGToImage.load(here.export, "tensorrt").generate(eeg(1), steps=50)
    assert here.cuda.begun == 0


@pytest.mark.parametrize("refused", ["enqueue", "end", "instantiate"])
def test_a_network_that_cannot_be_captured_runs_without(engines, refused):
    here = engines(ONE)
    here.module.refuses["unet"] = refused
    here.cuda.cannot_instantiate = refused == "instantiate"
    model, expected = EEGToImage.load(here.export, "tensorrt"), EEGToImage.load(here.export)
    with pytest.warns(UserWarning, match="unet cannot be captured as a CUDA graph") as warned:
        assert_same_pictures(model, expected, 1, steps=50)
    assert len(warned) == 1
    here.cuda.cannot_instantiate = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for guidance in (3.0, 1.0):
            assert_same_pictures(model, expected, 1, steps=50, guidance=guidance)
    assert here.module.contexts[1].alone == 150
    assert not here.cuda.graphs


def test_tensorrt_rtx_captures_by_itself(engines):
    here = engines(ONE, MANY, flavour="rtx")
    model = EEGToImage.load(here.export, "tensorrt")
    assert_same_pictures(model, EEGToImage.load(here.export), 1, steps=50)
    assert [context.graphs_of_its_own for context in here.module.contexts] == [True] * 3
    assert here.cuda.begun == 0


def test_tensorrt_rtx_captures_nothing_of_profiles_with_a_range(on_gpu):
    EEGToImage.load(on_gpu.export, "tensorrt")
    assert [context.graphs_of_its_own for context in on_gpu.module.contexts] == [False] * 3


def test_the_stand_in_has_the_names_of_tensorrt_rtx():
    import tensorrt_rtx as real

    assert "WHOLE_GRAPH_CAPTURE" in dir(real.CudaGraphStrategy)
    assert "cuda_graph_strategy" in dir(real.IRuntimeConfig)
    assert "runtime_config: tensorrt_rtx" in real.ICudaEngine.create_execution_context.__doc__.replace(
        "tensorrt_rtx_bindings.", ""
    )
    for ours, theirs in ((Engine, real.ICudaEngine), (Context, real.IExecutionContext)):
        called = {name for name in vars(ours) if not name.startswith("_")}
        assert called <= {*dir(theirs)}


def test_fewer_pictures_than_a_profile_begins_with(engines):
    """One window with two pictures is a batch of 1 for the encoder, 2 for the decoder, 4 or 2 for the U-Net."""
    here = engines(FOUR, Profile("eight", 8, 8, 8))
    model, expected = EEGToImage.load(here.export, "tensorrt"), EEGToImage.load(here.export)
    for windows, samples, guidance in ((1, 2, 3.0), (1, 1, 1.0), (3, 2, 3.0), (8, 1, 1.0)):
        assert_same_pictures(model, expected, windows, samples=samples, guidance=guidance)


def test_a_model_that_is_let_go_gives_the_gpu_back(engines):
    here = engines(ONE)
    model = EEGToImage.load(here.export, "tensorrt")
    for _ in range(2):
        model.generate(eeg(1), steps=50)
    assert here.cuda.blocks
    assert len(here.cuda.executables) == len(here.cuda.streams) == 3
    del model
    gc.collect()
    assert not here.cuda.blocks
    assert not here.cuda.executables
    assert not here.cuda.streams


def test_a_gpu_without_enough_memory(engines):
    here = engines(FEW)
    here.cuda.room = 500
    with pytest.raises(ValueError, match=r"engine: \d+ bytes for .* build engines with profiles for fewer"):
        EEGToImage.load(here.export, "tensorrt")
    gc.collect()
    assert not here.cuda.blocks
    here.module.refuses["unet"] = "context"
    here.cuda.room = 1e9
    with pytest.raises(ValueError, match=r"cannot prepare .*unet\.engine.* for fewer"):
        EEGToImage.load(here.export, "tensorrt")


def test_inputs_larger_than_their_memory_never_reach_it(on_gpu):
    manifest = Manifest.load(on_gpu.export)
    graph = tensorrt_engines.TensorRTGraph(on_gpu.export, manifest.graphs["eeg_encoder"])
    with pytest.raises(ValueError, match=r"eeg of shape .* float64 is larger"):
        graph.run({"eeg": np.tile(eeg(1), (5, 1, 1)).astype(np.float64)})


def test_the_gpu_is_found_without_pytorch(monkeypatch):
    names = {"cudaDevAttrComputeCapabilityMajor": 8, "cudaDevAttrComputeCapabilityMinor": 9}
    found = SimpleNamespace(
        cudaError_t=Cuda.cudaError_t,
        cudaDeviceAttr=SimpleNamespace(**names),
        cudaDeviceGetAttribute=lambda attribute, device: (0, attribute),
    )
    missing = SimpleNamespace(
        **{**vars(found), "cudaDeviceGetAttribute": lambda attribute, device: (35, None)}
    )
    for cuda, expected in ((found, "sm89"), (missing, None), (None, None)):
        modules = {"cuda.bindings.runtime": cuda, "torch": None}
        monkeypatch.setattr(tensorrt, "optional", modules.get)
        assert tensorrt.gpu_here() == expected


@pytest.fixture
def golden():
    """Gives a tiny export golden inputs and outputs of three rows, as ONNX Runtime computes them."""

    def make(folder):
        manifest, random, arrays = Manifest.load(folder), np.random.default_rng(0), {}
        for name, graph in manifest.graphs.items():
            inputs = {
                t.name: random.standard_normal((3, *t.shape[1:])).astype(np.float32) for t in graph.inputs
            }
            session = onnxruntime.InferenceSession(folder / graph.file)
            outputs = dict(zip([t.name for t in graph.outputs], session.run(None, inputs), strict=True))
            arrays |= {f"{name}/{tensor}": value for tensor, value in (inputs | outputs).items()}
        path = folder / "golden.npz"
        np.savez(path, **arrays)
        files = manifest.files | {path.name: FileInfo(sha256_of(path), path.stat().st_size)}
        tolerances = dict.fromkeys(manifest.graphs, 1e-4)
        told = dataclasses.replace(manifest.golden, file=path.name, tolerances=tolerances)
        dataclasses.replace(manifest, files=files, golden=told).save(folder)

    return make


@pytest.mark.parametrize(
    "profiles", [(ONE,), (FOUR,), (FEW, MANY), (ONE, Profile("ten", 10, 10, 10))], ids=len
)
def test_golden_inputs_are_replayed_in_every_profile(engines, golden, profiles):
    here = engines(*profiles)
    golden(here.export)
    replayed = replay_golden(here.export, "tensorrt")
    assert {one.graph for one in replayed} == {"eeg_encoder", "unet", "vae_decoder"}
    assert all(one.error < 1e-5 for one in replayed)
    for position in range(len(profiles)):
        assert all(position in context.profiles_run for context in here.module.contexts)
    assert here.cuda.launched >= 3 * sum(profile.min == profile.max for profile in profiles)


def test_an_engine_whose_captured_graph_is_wrong_is_found(engines, golden):
    here = engines(FEW, FOUR)
    golden(here.export)
    here.cuda.captured_are_wrong = True
    with pytest.raises(ValueError, match="does not give its golden outputs"):
        replay_golden(here.export, "tensorrt")


def test_latencies_are_of_the_batches_that_engines_are_tuned_for(engines, golden):
    here = engines(FEW, FOUR)
    golden(here.export)
    measured = measure_latency(here.export, "tensorrt", repeats=3)
    assert [(one.graph, one.batch) for one in measured] == [
        ("eeg_encoder", 1),
        ("eeg_encoder", 4),
        ("unet", 2),
        ("unet", 8),
        ("vae_decoder", 1),
        ("vae_decoder", 4),
    ]
    assert all(one.median_ms > 0 for one in measured)
    # What is timed in a static profile is the captured graph alone.
    assert here.cuda.launched >= 3 * 3
