"""Engines run only on the GPU, under the library and with the graphs that they were built for."""

from __future__ import annotations

import dataclasses
import json

import pytest

from ddscale.deploy import engines as e
from ddscale.deploy.manifest import DECODER, ENCODER, UNET, GraphInfo, Profile, sha256_of

HERE = e.Device("rtx", "1.7.1.116", "sm89")
GRAPHS = {
    name: GraphInfo(f"{name}.onnx", None, f"hash of {name}", (), (), 20, "fp16", 1, None)
    for name in (ENCODER, UNET, DECODER)
}


@pytest.fixture
def export(tmp_path):
    folder = tmp_path / e.FOLDER / "rtx-sm89"
    folder.mkdir(parents=True)
    engines = {}
    for name, graph in GRAPHS.items():
        path = folder / f"{name}.engine"
        path.write_text(f"engine of {name}")
        engines[name] = e.EngineInfo(path.name, sha256_of(path), graph.sha256, 1.0)
    e.EngineRecord(
        "rtx",
        HERE.version,
        HERE.sm,
        HERE.system,
        "fp16",
        (Profile("small", 1, 1, 2), Profile("large", 4, 8, 16)),
        engines,
    ).save(folder)
    return tmp_path


def test_fitting_engines_are_found(export):
    folder, record = e.usable_engines(export, HERE, GRAPHS)
    assert folder == export / "engines" / "rtx-sm89"
    assert record.engines[UNET].file == "unet.engine"
    assert record.profiles[1] == Profile("large", 4, 8, 16)


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ({"sm": "sm86"}, "has engines for rtx-sm89, this is rtx-sm86"),
        ({"flavour": "datacentre"}, "this is datacentre-sm89"),
        ({"version": "1.8.0.1"}, r"built by TensorRT-RTX 1\.7\.1\.116, this is 1\.8\.0\.1"),
        ({"system": "windows-amd64"}, "this is windows-amd64"),
    ],
)
def test_another_gpu_library_or_system_is_refused_with_the_command_that_builds(export, device, said):
    elsewhere = dataclasses.replace(HERE, **device)
    with pytest.raises(e.EngineError, match=said) as refused:
        e.usable_engines(export, elsewhere, GRAPHS)
    command = f"python export/to_tensorrt.py {export} --flavour {elsewhere.flavour} --target {elsewhere.sm}"
    assert command in str(refused.value)


def test_each_mismatch_is_named_by_the_pure_check(export):
    record = e.EngineRecord.load(export / "engines" / "rtx-sm89")
    assert e.mismatches(record, HERE, GRAPHS) == []
    other = {**GRAPHS, UNET: dataclasses.replace(GRAPHS[UNET], sha256="f" * 64), "tiny": GRAPHS[DECODER]}
    problems = e.mismatches(record, e.Device("datacentre", "11.4", "sm90"), other)
    assert [p.split(" ")[0:3] for p in problems] == [
        ["they", "are", "for"],
        ["they", "are", "for"],
        ["that", "of", "unet"],
        ["there", "is", "none"],
    ]


def test_engines_of_an_earlier_export_are_refused(export):
    graphs = {**GRAPHS, UNET: dataclasses.replace(GRAPHS[UNET], sha256="f" * 64)}
    with pytest.raises(e.EngineError, match="that of unet was built from other weights"):
        e.usable_engines(export, HERE, graphs)


def test_a_swapped_engine_is_refused(export):
    folder = export / "engines" / "rtx-sm89"
    (folder / "unet.engine").write_text("engine of something")
    with pytest.raises(e.EngineError, match=r"unet\.engine is not the file that was built"):
        e.usable_engines(export, HERE, GRAPHS)
    (folder / "unet.engine").unlink()
    with pytest.raises(e.EngineError, match=r"unet\.engine is missing"):
        e.usable_engines(export, HERE, GRAPHS)
    # Not looked at when it is not to be run.
    e.usable_engines(export, HERE, {ENCODER: GRAPHS[ENCODER]})


def test_an_export_without_engines_says_how_to_build_them(tmp_path):
    with pytest.raises(e.EngineError, match="has no engines. Build them: python export/to_tensorrt.py"):
        e.usable_engines(tmp_path, HERE, GRAPHS)


@pytest.mark.parametrize(
    "change", [{"schema_version": 9}, {"engines": {"unet": {"file": "x"}}}, {"profiles": 3}]
)
def test_a_record_that_cannot_be_read_is_refused(export, change):
    path = export / "engines" / "rtx-sm89" / e.FILE_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(e.EngineError, match=r"(damaged|schema version 9).*--target sm89"):
        e.usable_engines(export, HERE, GRAPHS)


@pytest.mark.parametrize(
    ("said", "meant"),
    [("ada", "sm89"), ("Turing", "sm75"), ("sm120", "sm120"), ("8.6", "sm86"), ("89", "sm89")],
)
def test_targets_have_names(said, meant):
    assert e.sm_named(said) == meant


@pytest.mark.parametrize("said", ["pascal", "", "sm", "8", "sm89a"])
def test_unknown_targets_are_refused(said):
    with pytest.raises(ValueError, match="is not known: use turing, ampere"):
        e.sm_named(said)
