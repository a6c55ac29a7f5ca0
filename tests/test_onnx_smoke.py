"""The toy pipeline exported, compared, run, and built into TensorRT-RTX engines: `pytest -m onnx_smoke`."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from deploying import CHANNELS, ENCODER_SIZES, toy_recipe
from diffusers import AutoencoderTiny
from torch import nn

from ddscale.deploy import exporting
from ddscale.deploy.engines import Device, EngineError, usable_engines
from ddscale.deploy.exporting import export
from ddscale.deploy.graphs import Part, parts_of
from ddscale.deploy.manifest import DECODER, ENCODER, TINY_DECODER, UNET, Manifest, ManifestError
from ddscale.deploy.parity import ParityError
from ddscale.deploy.replaying import replay_golden
from ddscale.deploy.runtime import EEGToImage, starting_noise
from ddscale.deploy.source import load_source
from ddscale.deploy.tensorrt import BuildError, build, build_engines, library
from ddscale.deploy.writing import write_graph
from ddscale.diffusion.conditioning import Condition
from ddscale.diffusion.pipeline import scheduler_named
from ddscale.models import EEGEncoder, EncoderConfig, save_encoder

pytestmark = pytest.mark.onnx_smoke

PRECISIONS = ["fp32", "fp16", "int8", "fp8"]
GRAPHS = [ENCODER, UNET, DECODER, TINY_DECODER]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """`pipeline`, and `export` in all precisions with a tiny decoder; not to be written into but for engines."""
    folder = tmp_path_factory.mktemp("smoke")
    torch.manual_seed(3)
    tiny = AutoencoderTiny(
        latent_channels=4,
        encoder_block_out_channels=(16, 16, 16),
        decoder_block_out_channels=(16, 16, 16),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    )
    tiny.save_pretrained(folder / "tiny")
    recipe = toy_recipe(folder, precisions=PRECISIONS, tiny_decoder=str(folder / "tiny"))
    export(recipe)
    return folder


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_export_holds_all_graphs_and_every_check_within_its_limit(toy, precision):
    folder = toy / "export" / precision
    manifest = Manifest.load(folder)
    manifest.check_files(folder)
    assert list(manifest.graphs) == GRAPHS
    assert {check.graph for check in manifest.parity} == {*GRAPHS, None}
    assert all(check.value <= check.limit for check in manifest.parity)
    for graph in manifest.graphs.values():
        assert {tensor.dtype for tensor in (*graph.inputs, *graph.outputs)} == {"float32"}
        assert all(tensor.shape[0] == "batch" for tensor in (*graph.inputs, *graph.outputs))
        assert not any(isinstance(size, str) for tensor in graph.inputs for size in tensor.shape[1:])
    on_disk = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {name for name in on_disk if not name.startswith("engines/")} == {*manifest.files, "manifest.json"}


def test_the_limits_are_those_that_were_promised(toy):
    limits = {}
    for precision in ("fp32", "fp16"):
        for check in Manifest.load(toy / "export" / precision).parity:
            limits.setdefault((precision, check.graph), set()).add(check.limit)
    assert limits["fp32", ENCODER] == limits["fp32", UNET] == {1e-5}
    assert max(limits["fp32", DECODER] - {0.5}) == 1e-4
    assert limits["fp16", UNET] == {5e-3, 16_000.0}
    assert 1e-6 in limits["fp32", None]


@pytest.mark.parametrize(
    ("precision", "limit", "stored"), [("int8", 0.2, "INT8"), ("fp8", 0.3, "FLOAT8E4M3FN")]
)
def test_quantised_graphs_are_quantised_and_draw_nearly_the_same(toy, precision, limit, stored):
    folder = toy / "export" / precision
    manifest = Manifest.load(folder)
    (drawn,) = (check for check in manifest.parity if check.name == "latents, relative L2 to PyTorch")
    assert 0.01 < drawn.value < limit == drawn.limit
    assert manifest.golden.end_to_end.tolerance == pytest.approx(1.5 * limit)
    assert "nvidia-modelopt" in manifest.versions
    for name, graph in manifest.graphs.items():
        types = {
            onnx.TensorProto.DataType.Name(tensor.data_type)
            for tensor in onnx.load(folder / graph.file, load_external_data=False).graph.initializer
        }
        kept = name in (DECODER, TINY_DECODER)
        assert graph.precision == ("fp32" if kept else precision)
        assert (stored in types) is not kept


def test_native_attention_is_used_where_it_can_be_built_and_nowhere_else(toy):
    opsets = {
        precision: {name: g.opset for name, g in Manifest.load(toy / "export" / precision).graphs.items()}
        for precision in PRECISIONS
    }
    assert opsets["fp16"] == {ENCODER: 23, UNET: 23, DECODER: 20, TINY_DECODER: 20}
    assert {opset for p in ("fp32", "int8", "fp8") for opset in opsets[p].values()} == {20}


def test_smaller_precisions_are_smaller(toy):
    size = {p: (toy / "export" / p / "unet.onnx.data").stat().st_size for p in PRECISIONS}
    assert size["fp16"] < 0.55 * size["fp32"]
    assert size["int8"] < 0.45 * size["fp32"]
    assert size["fp8"] < 0.45 * size["fp32"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_outputs_come_again(toy, precision):
    replayed = replay_golden(toy / "export" / precision)
    assert {one.graph for one in replayed} == {*GRAPHS}


@pytest.mark.parametrize("decoder", ["full", "tiny"])
@torch.no_grad()
def test_the_runtimes_pictures_are_pytorchs(toy, decoder):
    random = np.random.default_rng(7)
    eeg = (20 * random.standard_normal((2, CHANNELS, ENCODER_SIZES["n_samples"]))).astype(np.float32)
    runtime = EEGToImage.load(toy / "export" / "fp32", decoder=decoder)
    ours = runtime.generate(eeg, steps=4, scheduler="ddim", guidance=2.0, seed=5)

    source = load_source(toy_recipe(toy, tiny_decoder=str(toy / "tiny")))
    parts, pipeline = {part.name: part.module for part in parts_of(source)}, source.pipeline
    pipeline.scheduler = scheduler_named("ddim", pipeline.scheduler)
    states = parts[ENCODER](torch.from_numpy(eeg))
    latents = pipeline(
        condition=Condition(states[0], states[1], None),
        num_inference_steps=4,
        guidance_scale=2.0,
        latents=torch.from_numpy(starting_noise(5, [0, 1], 1, (4, 8, 8))),
        output_type="latent",
    ).images
    image = parts[TINY_DECODER if decoder == "tiny" else DECODER](latents)
    theirs = 255 * pipeline.image_processor.postprocess(image, output_type="np")
    assert ours.shape == theirs.shape == (2, 32, 32, 3)
    assert theirs.std() > 1
    assert np.abs(ours - theirs).max() < 1


def test_openvino_knows_the_tensors_of_half_precision_by_the_manifests_names(toy):
    eeg = np.random.default_rng(3).normal(scale=20, size=(1, CHANNELS, ENCODER_SIZES["n_samples"]))
    ours, theirs = (
        EEGToImage.load(toy / "export" / "fp16", provider).generate(eeg, steps=4, scheduler="ddim")
        for provider in ("openvino", "cpu")
    )
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 3


@pytest.mark.parametrize("precision", PRECISIONS)
def test_engines_are_built_for_all_graphs_with_their_real_profiles(toy, precision):
    folder = toy / "export" / precision
    engines = build_engines(folder, "rtx", "ada")
    manifest = Manifest.load(folder)
    here = Device("rtx", library("rtx").version, "sm89")
    found, record = usable_engines(folder, here, manifest.graphs)
    assert found == engines
    assert list(record.engines) == GRAPHS
    assert record.profiles == manifest.profiles
    with pytest.raises(EngineError, match="--flavour rtx --target sm86"):
        usable_engines(folder, dataclasses.replace(here, sm="sm86"), manifest.graphs)


def test_an_engine_without_a_profile_is_not_built(toy):
    folder = toy / "export" / "fp16"
    with pytest.raises(BuildError, match=r"optimization profile.* State `profiles`"):
        build(library("rtx"), folder / "eeg_encoder.onnx", "sm89", [], folder / "timing.cache")


class _Heads(nn.Module):
    """Self-attention with heads of a width."""

    def __init__(self, width):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, eeg):
        q, k, v = self.qkv(eeg.to(self.qkv.weight.dtype))[:, None].chunk(3, dim=-1)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).float()


@pytest.mark.parametrize(("head_width", "builds"), [(8, False), (64, True), (512, False)])
def test_native_attention_with_heads_of_a_wrong_width_is_not_built(tmp_path, head_width, builds):
    torch.manual_seed(0)
    part = Part(
        ENCODER,
        _Heads(head_width).eval().half(),
        ("eeg",),
        ("tokens",),
        lambda batch, generator: {"eeg": torch.randn(batch, 16, head_width, generator=generator)},
        1e-5,
        native_attention=True,
    )
    path = tmp_path / "eeg_encoder.onnx"
    write_graph(part, path, part.draw(2, torch.Generator()), half=True)
    shapes = [{"eeg": [(1, 16, head_width), (1, 16, head_width), (2, 16, head_width)]}]
    if builds:
        assert memoryview(build(library("rtx"), path, "sm89", shapes, tmp_path / "t")).nbytes > 1000
    else:
        with pytest.raises(
            BuildError, match=r"cannot build .*Native attention needs fp16 and heads 40 to 256"
        ):
            build(library("rtx"), path, "sm89", shapes, tmp_path / "t")


def test_a_graph_with_an_operation_that_tensorrt_lacks_is_not_built(tmp_path):
    eeg = onnx.helper.make_tensor_value_info("eeg", onnx.TensorProto.FLOAT, ["batch", 8])
    out = onnx.helper.make_tensor_value_info("tokens", onnx.TensorProto.FLOAT, ["batch", 8])
    node = onnx.helper.make_node("SpectralMagic", ["eeg"], ["tokens"], domain="org.example")
    graph = onnx.helper.make_graph([node], "g", [eeg], [out])
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("org.example", 1)]
    path = tmp_path / "eeg_encoder.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets), path)
    with pytest.raises(BuildError, match=r"cannot read .*SpectralMagic"):
        build(library("rtx"), path, "sm89", [{"eeg": [(1, 8), (1, 8), (2, 8)]}], tmp_path / "t")


def test_engines_of_a_damaged_export_are_not_built(toy, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(toy / "export" / "fp16", folder, ignore=shutil.ignore_patterns("engines"))
    with (folder / "unet.onnx.data").open("r+b") as file:
        file.seek(1000)
        file.write(b"\x55")
    with pytest.raises(ManifestError, match=r"unet\.onnx\.data has SHA-256"):
        build_engines(folder)
    assert not (folder / "engines").exists()


def test_an_encoder_alone_exports_and_a_graph_that_is_wrong_does_not(tmp_path, monkeypatch):
    torch.manual_seed(0)
    encoder = EEGEncoder(EncoderConfig(**ENCODER_SIZES))
    save_encoder(encoder, tmp_path / "encoder", {"sfreq": 128.0, "normalisation": {"kind": "zscore"}})
    recipe = toy_recipe(tmp_path, source=str(tmp_path / "encoder"), precisions=["fp32", "int8"])
    folders = export(recipe)
    manifest = Manifest.load(folders[0])
    assert (manifest.kind, manifest.latent, manifest.schedules) == ("encoder", None, ())
    assert [tensor.name for tensor in manifest.graph(ENCODER).outputs] == ["tokens", "pooled"]
    before = (folders[0] / "manifest.json").read_bytes()

    def writes_something_else(part, path, example, half):
        with torch.no_grad():
            next(part.module.parameters()).mul_(1.01)
        write_graph(part, path, example, half)

    monkeypatch.setattr(exporting, "write_graph", writes_something_else)
    with pytest.raises(ParityError, match="eeg_encoder: tokens, batch of 1, relative L2 to PyTorch"):
        export(recipe)
    assert (folders[0] / "manifest.json").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"encoder", "export", "pipeline"}
