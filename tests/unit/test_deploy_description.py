"""What stands in a manifest beside the graphs."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import onnxruntime
import pytest

from ddscale.deploy.description import Compared, describe, version_of
from ddscale.deploy.manifest import DECODER, UNET, GraphInfo, Manifest, Profile, SourceInfo
from ddscale.deploy.parity import LIMITS, limit_for
from ddscale.deploy.reference import PartReference, Reference

FACTS = {
    "kind": "encoder",
    "created": "2026-01-01T00:00:00+00:00",
    "sfreq": None,
    "channels": 4,
    "samples": 8,
    "preprocessing": None,
    "normalisation": None,
    "latent": None,
    "vae_scale": None,
    "prediction_type": None,
    "profiles": (Profile("default", 1, 1, 1),),
    "versions": {"onnx": "1"},
    "source": SourceInfo("run", "00"),
}


def described(folder, precision, graphs):
    """The manifest of a folder whose graphs are of these precisions."""
    infos, limits = {}, {}
    for name, own in graphs.items():
        (folder / f"{name}.onnx").write_bytes(b"")
        infos[name] = GraphInfo(f"{name}.onnx", None, "00", (), (), 20, own, 1, None)
        limits[name] = limit_for(own, 1e-4)
    part = PartReference({"latent": np.zeros((3, 1), np.float32)}, {})
    compared = Compared(infos, limits, (), {name: {} for name in graphs})
    describe(folder, precision, compared, Reference({name: part for name in graphs}), FACTS)
    return Manifest.load(folder)


def test_a_replay_may_differ_as_the_graphs_own_precision_may(tmp_path):
    manifest = described(tmp_path, "int8", {UNET: "int8", DECODER: "fp32"})
    assert manifest.golden.tolerances == {UNET: 1.5 * LIMITS["int8"], DECODER: pytest.approx(1e-3)}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_who_quantised_is_named(tmp_path, precision):
    versions = described(tmp_path, precision, {UNET: precision}).versions
    assert versions.get("nvidia-modelopt") == (
        importlib.metadata.version("nvidia-modelopt") if precision == "int8" else None
    )
    assert versions["onnx"] == "1"


def test_a_module_of_another_distribution_has_a_version(monkeypatch):
    """As on a GPU host, with onnxruntime-gpu in the place of onnxruntime."""
    known = importlib.metadata.version

    def without(name):
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    assert version_of("onnxruntime") == onnxruntime.__version__
    assert version_of("numpy") == np.__version__
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        version_of("no_such_package")
