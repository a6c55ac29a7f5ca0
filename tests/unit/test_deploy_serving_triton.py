"""The Triton repository: configurations that Triton's own schema reads, and a pipeline that draws the same pictures.

Triton itself is not run here: its Python backend's module is stood in for, the graphs run in ONNX Runtime.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from deployed import CHANNELS, SAMPLES, eeg, tiny_folder
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from ddscale.deploy.manifest import Manifest, ManifestError
from ddscale.deploy.runtime import EEGToImage
from ddscale.deploy.serving.triton import write_repository

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("eeg_encoder", "unet", "vae_decoder")

# Fields with their numbers as in Triton's model_config.proto; * is repeated, > another message, = an enumeration.
SCHEMA = {
    "ModelConfig": "name:1 backend:17 max_batch_size#:4 *input>ModelInput:5 *output>ModelOutput:6 "
    "*instance_group>ModelInstanceGroup:7 default_model_filename:8 dynamic_batching>ModelDynamicBatching:11 "
    "*parameters>ParametersEntry:14",
    "ModelInput": "name:1 data_type=DataType:2 *dims#:4 reshape>ModelTensorReshape:5 optional?:8",
    "ModelOutput": "name:1 data_type=DataType:2 *dims#:3 reshape>ModelTensorReshape:5",
    "ModelTensorReshape": "*shape#:1",
    "ModelInstanceGroup": "count#:2 kind=Kind:4 *profile:5",
    "ModelDynamicBatching": "*preferred_batch_size#:1 max_queue_delay_microseconds#:2",
    "ParametersEntry": "key:1 value>ModelParameter:2",
    "ModelParameter": "string_value:1",
}
ENUMS = {
    "DataType": {
        "TYPE_UINT8": 2,
        "TYPE_INT32": 8,
        "TYPE_INT64": 9,
        "TYPE_FP16": 10,
        "TYPE_FP32": 11,
        "TYPE_STRING": 13,
    },
    "Kind": {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2},
}


def schema():
    """The class of ModelConfig, whose parser refuses whatever Triton's would."""
    file = descriptor_pb2.FileDescriptorProto(name="config.proto", package="inference", syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        # proto3 wants a zero, which Triton calls TYPE_INVALID.
        for value, number in {**({} if 0 in values.values() else {"TYPE_INVALID": 0}), **values}.items():
            enum.value.add(name=value, number=number)
    field_type = descriptor_pb2.FieldDescriptorProto
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for text in fields.split():
            text, number = text.rsplit(":", 1)
            label = field_type.LABEL_REPEATED if text.startswith("*") else field_type.LABEL_OPTIONAL
            text = text.removeprefix("*")
            kind, target = field_type.TYPE_STRING, None
            for mark, of_mark in ((">", field_type.TYPE_MESSAGE), ("=", field_type.TYPE_ENUM)):
                if mark in text:
                    (text, target), kind = text.split(mark), of_mark
            if text.endswith("#"):
                text, kind = text[:-1], field_type.TYPE_INT64
            if text.endswith("?"):
                text, kind = text[:-1], field_type.TYPE_BOOL
            field = message.field.add(name=text, number=int(number), label=label, type=kind)
            if target is not None:
                field.type_name = f".inference.{target}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def parse(path):
    return text_format.Parse(path.read_text(), schema()())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("tiny") / "fp32")


@pytest.fixture(scope="module")
def repository(folder, tmp_path_factory):
    return write_repository(folder, tmp_path_factory.mktemp("triton") / "repository")


def test_the_schema_refuses_what_triton_would():
    for wrong in (
        'name: "a" colour: "red"',
        "max_batch_size: many",
        "input [ { dims: [ 1.5 ] } ]",
        "input [ {",
    ):
        with pytest.raises(text_format.ParseError):
            text_format.Parse(wrong, schema()())


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_of_a_graph(folder, repository, name):
    config = parse(repository / name / "config.pbtxt")
    manifest = Manifest.load(folder)
    graph = manifest.graph(name)
    assert (config.name, config.backend) == (name, "onnxruntime")
    assert (repository / name / "1" / config.default_model_filename).is_file()
    # Guidance doubles what the U-Net sees.
    assert config.max_batch_size == (8 if name == "unet" else 4)
    assert list(config.dynamic_batching.preferred_batch_size) == ([2] if name == "unet" else [1])
    assert config.dynamic_batching.max_queue_delay_microseconds > 0
    assert [group.kind for group in config.instance_group] == [ENUMS["Kind"]["KIND_CPU"]]
    for stated, tensors in ((config.input, graph.inputs), (config.output, graph.outputs)):
        assert [s.name for s in stated] == [t.name for t in tensors]
        assert {s.data_type for s in stated} == {ENUMS["DataType"]["TYPE_FP32"]}
        assert [tuple(s.dims) for s in stated] == [t.shape[1:] or (1,) for t in tensors]
        assert [s.HasField("reshape") for s in stated] == [len(t.shape) == 1 for t in tensors]


def test_the_configuration_of_the_pipeline(repository):
    config = parse(repository / "eeg_to_image" / "config.pbtxt")
    assert (config.backend, config.max_batch_size) == ("python", 0)
    assert tuple(config.input[0].dims) == (-1, CHANNELS, SAMPLES)
    assert not config.input[0].optional
    assert {i.name for i in config.input if i.optional} == {
        "steps",
        "scheduler",
        "guidance",
        "seed",
        "samples",
        "sfreq",
        "unit",
    }
    assert tuple(config.output[0].dims) == (-1, 8, 8, 3)


def test_on_a_gpu(folder, tmp_path):
    config = parse(write_repository(folder, tmp_path / "cuda", "cuda") / "unet" / "config.pbtxt")
    assert [group.kind for group in config.instance_group] == [ENUMS["Kind"]["KIND_GPU"]]


def test_engines_in_place_of_graphs(folder, tmp_path):
    from ddscale.deploy.engines import EngineInfo, EngineRecord
    from ddscale.deploy.manifest import sha256_of

    with pytest.raises(ManifestError, match=r"it has none: build them with python export/to_tensorrt\.py"):
        write_repository(folder, tmp_path / "none", "tensorrt")
    export = shutil.copytree(folder, tmp_path / "fp32")
    manifest = Manifest.load(export)
    engines = export / "engines" / "datacentre-sm90"
    engines.mkdir(parents=True)
    infos = {}
    for name, graph in manifest.graphs.items():
        path = engines / f"{name}.engine"
        path.write_bytes(b"an engine")
        infos[name] = EngineInfo(path.name, sha256_of(path), graph.sha256, 1.0)
    EngineRecord("datacentre", "10.13", "sm90", "linux-x86_64", "fp32", manifest.profiles, infos).save(
        engines
    )
    repository = write_repository(export, tmp_path / "repository", "tensorrt")
    config = parse(repository / "unet" / "config.pbtxt")
    assert (config.backend, config.default_model_filename) == ("tensorrt", "unet.engine")
    assert list(config.instance_group[0].profile) == ["0"]
    assert not list(repository.glob("*/1/*.onnx"))


def test_a_damaged_folder_and_a_repository_that_is_there_are_refused(folder, repository, tmp_path):
    import shutil

    with pytest.raises(FileExistsError, match="there already"):
        write_repository(folder, repository)
    damaged = shutil.copytree(folder, tmp_path / "fp32")
    (damaged / "unet.onnx").write_bytes(b"0")
    with pytest.raises(ManifestError, match=r"unet\.onnx has 1 bytes"):
        write_repository(damaged, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()
    with pytest.raises(ValueError, match="openvino"):
        write_repository(folder, tmp_path / "repository", "openvino")


# Triton's Python backend as far as the pipeline uses it; graphs get batches without the dimension that Triton adds.
STAND_IN = """
import sys, types
import numpy as np
import onnxruntime
from google.protobuf import text_format

class TritonModelException(Exception):
    pass

class Tensor:
    def __init__(self, name, array):
        self._name, self._array = name, array
    def name(self):
        return self._name
    def as_numpy(self):
        return self._array

class TritonError:
    def __init__(self, message):
        self._message = message
    def message(self):
        return self._message

class InferenceResponse:
    def __init__(self, output_tensors=(), error=None):
        self.tensors, self._error = {t.name(): t for t in output_tensors}, error
    def has_error(self):
        return self._error is not None
    def error(self):
        return self._error

class PreferredMemory:
    def __init__(self, kind):
        pass

TRITONSERVER_MEMORY_CPU = 0
MOST = {"eeg_encoder": 4, "unet": 8, "vae_decoder": 4}
SESSIONS = {}

class InferenceRequest:
    def __init__(self, model_name="", requested_output_names=(), inputs=(), preferred_memory=None):
        self.model_name, self.outputs = model_name, list(requested_output_names)
        self.tensors = {t.name(): t for t in inputs}
    def is_cancelled(self):
        return getattr(self, "cancelled", False)
    def exec(self):
        path = f"{REPOSITORY}/{self.model_name}/1/{self.model_name}.onnx"
        session = SESSIONS.setdefault(self.model_name, onnxruntime.InferenceSession(path))
        given = {name: t.as_numpy() for name, t in self.tensors.items()}
        batch = max(len(array) for array in given.values())
        if batch > MOST[self.model_name]:
            return InferenceResponse(error=TritonError(f"batch {batch} is more than {MOST[self.model_name]}"))
        if "timestep" in given:
            assert given["timestep"].shape == (batch, 1)
            given["timestep"] = given["timestep"][:, 0]
        made = session.run(self.outputs, given)
        return InferenceResponse([Tensor(n, a) for n, a in zip(self.outputs, made)])

def get_input_tensor_by_name(request, name):
    return request.tensors.get(name)

def get_output_tensor_by_name(response, name):
    return response.tensors.get(name)
"""
DRIVER = """
import importlib.util, json, sys
import numpy as np
repository, work = sys.argv[1:]
sys.path.insert(0, work)
import triton_python_backend_utils as pb
pb.REPOSITORY = repository
folder = f"{repository}/eeg_to_image"
spec = importlib.util.spec_from_file_location("model", f"{folder}/1/model.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
import ddscale
assert ddscale.__file__.startswith(folder), ddscale.__file__
model = module.TritonPythonModel()
model.initialize({"model_config": json.dumps({"parameters": {
    "decoder": {"string_value": "full"}, "max_pictures": {"string_value": "9"}}})})
eeg = np.load(f"{work}/eeg.npy")
def tensors(eeg, **settings):
    given = {"eeg": eeg}
    for name, value in settings.items():
        given[name] = np.array([value], object if isinstance(value, bytes) else None)
    return pb.InferenceRequest(inputs=[pb.Tensor(name, array) for name, array in given.items()])
left = tensors(eeg)
left.cancelled = True
plain, full, *wrong = model.execute([
    tensors(eeg),
    tensors(eeg, steps=3, scheduler=b"lcm", guidance=2.0, seed=7, samples=3, sfreq=256.0, unit=b"uV"),
    tensors(eeg * np.float32("nan")),
    tensors(eeg, sfreq=250.0),
    tensors(eeg, unit=b"V"),
    tensors(eeg, samples=4),
    left,
])
np.savez(f"{work}/pictures.npz", plain=plain.tensors["images"].as_numpy(), full=full.tensors["images"].as_numpy())
print(json.dumps([answer.error().message() for answer in wrong]))
print(json.dumps(sorted(sys.modules.keys() & {"torch", "diffusers", "pydantic", "mne", "fastapi"})))
"""


def test_the_pipeline_draws_the_runtime_pictures_from_the_repository_alone(folder, repository, tmp_path):
    (tmp_path / "triton_python_backend_utils.py").write_text(STAND_IN)
    np.save(tmp_path / "eeg.npy", eeg(3))
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(repository), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    complaints, unwanted = done.stdout.splitlines()
    for complaint, expected in zip(
        json.loads(complaints), ("NaN", "250 Hz", "stated in V", "12 pictures", "cancelled"), strict=True
    ):
        assert expected in complaint
    assert json.loads(unwanted) == []
    model = EEGToImage.load(folder)
    with np.load(tmp_path / "pictures.npz") as pictures:
        expected = model.generate(eeg(3), batch_size=4)
        assert np.abs(pictures["plain"].astype(int) - expected).max() <= 1
        expected = model.generate(eeg(3), 3, "lcm", 2.0, 7, samples=3, batch_size=4)
        assert np.abs(pictures["full"].astype(int) - expected).max() <= 1


def test_a_repository_whose_graph_was_changed_is_not_started(repository, tmp_path):
    changed = tmp_path / "repository"
    shutil.copytree(repository, changed)
    graph = changed / "unet" / "1" / "unet.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    (tmp_path / "triton_python_backend_utils.py").write_text(STAND_IN)
    np.save(tmp_path / "eeg.npy", eeg(3))
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(changed), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "unet.onnx is not what was exported: write the repository again" in done.stderr


def test_the_command_writes_it(folder, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ddscale.deploy.serving",
            str(folder),
            "--triton",
            str(tmp_path / "repository"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert done.stdout.strip() == str(tmp_path / "repository")
    assert {path.name for path in (tmp_path / "repository").iterdir()} == {*NAMES, "eeg_to_image"}
