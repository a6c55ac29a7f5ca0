"""Building engines, with a stand-in for TensorRT: what is replaced and what stays."""

from __future__ import annotations

import os
import types

import pytest
from deployed import tiny_folder

from ddscale.deploy import tensorrt
from ddscale.deploy.engines import EngineInfo, EngineRecord
from ddscale.deploy.manifest import ENCODER, UNET, sha256_of
from ddscale.deploy.tensorrt import BuildError, Library, build_engines


@pytest.fixture
def export(tmp_path, monkeypatch):
    """A tiny export; TensorRT writes what `export.said` is."""
    folder = tiny_folder(tmp_path / "fp32")
    said = {"engine": "first", "fails": None}

    def build(library, manifest, root, graph, sm, new):
        if graph == said["fails"]:
            raise BuildError("no tactics")
        path = new / f"{graph}.engine"
        path.write_text(said["engine"])
        return EngineInfo(path.name, sha256_of(path), manifest.graph(graph).sha256, 0.1)

    monkeypatch.setattr(
        tensorrt, "library", lambda flavour: Library(flavour, types.SimpleNamespace(__version__="1"))
    )
    monkeypatch.setattr(tensorrt, "_build_one", build)
    return folder, said


def test_engines_replace_earlier_ones_and_keep_the_timings(export):
    folder, said = export
    engines = build_engines(folder)
    (engines / "timing.cache").write_text("measured")
    (engines / "old.engine").write_text("of a graph that is no more")
    said["engine"] = "second"
    assert build_engines(folder) == engines
    assert (engines / f"{UNET}.engine").read_text() == "second"
    assert (engines / "timing.cache").read_text() == "measured"
    assert not (engines / "old.engine").exists()
    assert EngineRecord.load(engines).version == "1"
    assert [path.name for path in (folder / "engines").iterdir()] == ["rtx-sm89"]


@pytest.mark.parametrize("graph", [ENCODER, UNET])
def test_engines_that_fail_leave_the_earlier_ones(export, graph):
    folder, said = export
    engines = build_engines(folder)
    said.update(engine="second", fails=graph)
    with pytest.raises(BuildError, match="no tactics"):
        build_engines(folder)
    assert (engines / f"{ENCODER}.engine").read_text() == "first"
    assert [path.name for path in (folder / "engines").iterdir()] == ["rtx-sm89"]


def test_engines_are_there_until_the_new_ones_are(export, monkeypatch):
    """A server that starts meanwhile, or a machine that goes down."""
    folder, said = export
    engines = build_engines(folder)
    seen, rename = [], type(engines).rename

    def look(self, to):
        if self.name == "new":
            seen.extend((self.parent / "before").glob("*.engine"))
        return rename(self, to)

    monkeypatch.setattr(type(engines), "rename", look)
    said["engine"] = "second"
    build_engines(folder)
    assert len(seen) == 3


def test_what_a_killed_build_left_behind_is_removed(export):
    folder, _ = export
    left = folder / "engines" / ".rtx-sm89.exporting-abc"
    (left / "new").mkdir(parents=True)
    os.utime(left, (0, 0))
    build_engines(folder)
    assert not left.exists()
