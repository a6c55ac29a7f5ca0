"""The code that runs TensorRT engines, on a stand-in for TensorRT and CUDA: no GPU here has run it for real.

The stand-in keeps "device" memory apart, has engines with optimisation profiles, and refuses what TensorRT refuses:
inputs without address or shape, batches outside the profile, memory that is too small.
"""

from __future__ import annotations

import ctypes
import dataclasses
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from deployed import eeg, tiny_folder

from ddscale.deploy.engines import Device, EngineError, EngineInfo, EngineRecord
from ddscale.deploy.manifest import FileInfo, Manifest, Profile, sha256_of
from ddscale.deploy.runtime import EEGToImage, tensorrt_engines


class Cuda:
    """Memory of a device: blocks of their own, reached by address alone."""

    cudaError_t = SimpleNamespace(cudaSuccess=0)
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __init__(self):
        self.blocks = {}
        self.uploaded = []

    def cudaStreamCreate(self):
        return 0, "stream"

    def cudaStreamSynchronize(self, stream):
        return (0,)

    def cudaMalloc(self, size):
        block = ctypes.create_string_buffer(size)
        address = ctypes.addressof(block)
        self.blocks[address] = block
        return 0, address

    def cudaFree(self, address):
        del self.blocks[address]
        return (0,)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        on_device = target if kind == 1 else source
        if size > len(self.blocks[on_device]):
            return (1,)
        if kind == 1:
            self.uploaded.append(size)
        ctypes.memmove(target, source, size)
        return (0,)


class Context:
    def __init__(self, engine, cuda):
        self.engine, self.cuda = engine, cuda
        self.active_optimization_profile = 0
        self.shapes, self.addresses = {}, {}

    def set_optimization_profile_async(self, profile, stream):
        self.active_optimization_profile = profile
        self.shapes.clear()

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        least, most = self.engine.ranges[self.active_optimization_profile]
        session = self.engine.session
        given = {}
        for tensor in session.get_inputs():
            shape = self.shapes[tensor.name]
            assert least <= shape[0] <= most
            count = int(np.prod(shape))
            block = self.cuda.blocks[self.addresses[tensor.name]]
            given[tensor.name] = np.frombuffer(block, np.float32, count).reshape(shape)
        for tensor, made in zip(session.get_outputs(), session.run(None, given), strict=True):
            block = self.cuda.blocks[self.addresses[tensor.name]]
            assert made.nbytes <= len(block)
            ctypes.memmove(block, np.ascontiguousarray(made).ctypes.data, made.nbytes)
        return True


class Engine:
    def __init__(self, session, ranges, cuda):
        self.session, self.ranges, self.cuda = session, ranges, cuda
        self.names = [t.name for t in (*session.get_inputs(), *session.get_outputs())]
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, number):
        return self.names[number]

    def get_tensor_mode(self, name):
        return "in" if name in {t.name for t in self.session.get_inputs()} else "out"

    def create_execution_context(self):
        return Context(self, self.cuda)


class TensorRT:
    class Logger:
        ERROR = 1

        def __init__(self, level):
            pass

    TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")

    def __init__(self, ranges, cuda):
        self.ranges, self.cuda = ranges, cuda

    def Runtime(self, logger):
        def deserialize(content):
            if content == b"not for here":
                return None
            name, graph = content.split(b"|", 1)
            return Engine(onnxruntime.InferenceSession(graph), self.ranges[name.decode()], self.cuda)

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


@pytest.fixture
def export(tmp_path):
    """A tiny export with profiles for 1 to 2 and 3 to 5 pictures, and its "engines"."""
    folder = tiny_folder(tmp_path / "fp32")
    manifest = Manifest.load(folder)
    profiles = (Profile("few", 1, 1, 2), Profile("many", 3, 4, 5))
    manifest = dataclasses.replace(manifest, profiles=profiles)
    manifest.save(folder)
    engines = folder / "engines" / "rtx-sm89"
    engines.mkdir(parents=True)
    infos = {}
    for name, graph in manifest.graphs.items():
        path = engines / f"{name}.engine"
        path.write_bytes(name.encode() + b"|" + (folder / graph.file).read_bytes())
        infos[name] = EngineInfo(path.name, sha256_of(path), graph.sha256, 1.0)
    device = Device("rtx", "1.7.1", "sm89")
    EngineRecord("rtx", "1.7.1", "sm89", device.system, "fp32", profiles, infos).save(engines)
    return folder


@pytest.fixture
def cuda(export, monkeypatch):
    cuda = Cuda()
    manifest = Manifest.load(export)
    ranges = {
        name: [(manifest.batches(name, p)[0], manifest.batches(name, p)[2]) for p in manifest.profiles]
        for name in manifest.graphs
    }
    device = Device("rtx", "1.7.1", "sm89")
    monkeypatch.setattr(
        tensorrt_engines, "this_device", lambda export: (TensorRT(ranges, cuda), cuda, device)
    )
    return cuda


@pytest.mark.parametrize("scheduler", ["ddim", "lcm"])
def test_pictures_are_those_of_the_graphs(export, cuda, scheduler):
    model = EEGToImage.load(export, "tensorrt")
    expected = EEGToImage.load(export)
    for windows, samples in ((1, 1), (3, 2), (2, 1), (5, 1)):
        drawn = model.generate(eeg(windows), samples=samples, scheduler=scheduler)
        assert (
            np.abs(
                drawn.astype(int) - expected.generate(eeg(windows), samples=samples, scheduler=scheduler)
            ).max()
            <= 1
        )


def test_what_stays_the_same_is_sent_to_the_gpu_once(export, cuda):
    model = EEGToImage.load(export, "tensorrt")
    model.generate(eeg(2), steps=50)
    states = 4 * 2 * 3 * 4  # guided batch, length, width, bytes
    latents = 4 * 2 * 4 * 4 * 4
    assert cuda.uploaded.count(states) == 1
    assert cuda.uploaded.count(latents) == 50


def test_memory_on_the_gpu_does_not_grow_with_use(export, cuda):
    model = EEGToImage.load(export, "tensorrt")
    model.generate(eeg(5))
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
