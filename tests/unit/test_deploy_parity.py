"""Comparisons find what is wrong, and one that fails keeps the whole export from appearing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from ddscale.deploy.graphs import Part
from ddscale.deploy.parity import (
    Checks,
    ParityError,
    check_pictures,
    compare_graph,
    relative_l2,
)
from ddscale.deploy.writing import check_dimensions, describe_graph, weight_names, write_graph

ROWS = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)


def test_the_relative_error_is_that_of_the_worst_row():
    off = ROWS.copy()
    off[2] *= 1.5
    assert relative_l2(ROWS, ROWS) == 0
    assert relative_l2(off, ROWS) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (ROWS[:2], ROWS),
        (np.full_like(ROWS, np.nan), ROWS),
        (np.where(ROWS > 1, np.inf, ROWS), ROWS),
        (ROWS, np.zeros_like(ROWS)),
    ],
    ids=["shape", "nan", "inf", "should be zero"],
)
def test_what_cannot_be_compared_holds_no_limit(actual, expected):
    checks = Checks()
    checks.hold("it", relative_l2(actual, expected), 1e9, "unet")
    with pytest.raises(ParityError, match="unet: it is (nan|inf)"):
        checks.finish("fp16")


def test_zeros_where_zeros_should_be_are_right():
    assert relative_l2(np.zeros_like(ROWS), np.zeros_like(ROWS)) == 0


def test_every_failed_check_is_listed_with_value_limit_and_remedy():
    checks = Checks()
    for name, value in (("first", 2e-3), ("second", 1.0), ("third", 0.5)):
        checks.hold(name, value, 1e-2, "unet")
    with pytest.raises(ParityError) as refused:
        checks.finish("int8")
    assert str(refused.value).splitlines() == [
        "the int8 export was not published, 2 of 3 checks failed:",
        "  - unet: second is 1, the limit is 0.01",
        "  - unet: third is 0.5, the limit is 0.01",
        "Leave int8 out of the recipe's `precisions`, and run this model in a wider one.",
    ]


@pytest.mark.parametrize(
    "broken",
    [
        lambda images: np.zeros_like(images),
        lambda images: images * 0 + np.array([1, -1, 0.5], np.float32)[:, None, None] * 0.01,
        lambda images: np.where(images > 2, np.nan, images),
    ],
    ids=["black", "one colour", "nan"],
)
def test_black_plain_and_unfinite_pictures_are_found(broken):
    images = np.random.default_rng(1).standard_normal((2, 3, 16, 16)).astype(np.float32)
    fine = Checks()
    check_pictures(fine, "vae_decoder", images * 0.9, images)
    fine.finish("fp16")
    checks = Checks()
    one_bad = images.copy()
    one_bad[1:] = broken(images[1:])
    check_pictures(checks, "vae_decoder", one_bad, images)
    with pytest.raises(ParityError, match="vae_decoder"):
        checks.finish("fp16")


class _Mixing(nn.Module):
    """A network whose rows depend on each other, as a batch norm left in training mode makes them."""

    def __init__(self, leak: float) -> None:
        super().__init__()
        self.linear, self.leak = nn.Linear(5, 7), leak

    def forward(self, eeg: torch.Tensor) -> torch.Tensor:
        return self.linear(eeg) + self.leak * eeg.mean(dim=0, keepdim=True).mean()


class _Chunking(nn.Module):
    """Halves of a batch, cut in the way that fixes it."""

    def forward(self, eeg: torch.Tensor) -> torch.Tensor:
        first, second = eeg.reshape(2, 2, 5).unbind(0)
        return torch.cat([first, second])


def _part(module):
    def draw(batch, generator):
        return {"eeg": torch.randn(batch, 5, generator=generator)}

    return Part("eeg_encoder", module.eval(), ("eeg",), ("tokens",), draw, 1e-5, False)


@pytest.mark.parametrize("leak", [0.0, 0.01])
def test_rows_that_depend_on_their_batch_are_found(tmp_path, leak):
    torch.manual_seed(0)
    part = _part(_Mixing(leak))
    example = part.draw(3, torch.Generator().manual_seed(0))
    path = tmp_path / "eeg_encoder.onnx"
    write_graph(part, path, example, half=False)
    expected = {"tokens": part.module(**example).detach().numpy()}
    checks = Checks()
    compare_graph(checks, part.name, path, {"eeg": example["eeg"].numpy()}, expected, part.tolerance)
    assert {check.name.split(",")[1].strip() for check in checks.done} == {
        "batch of 1",
        "batch of 2",
        "batch of 3",
        "rows of a batch to the same in smaller ones",
    }
    if leak:
        with pytest.raises(ParityError, match="rows of a batch to the same in smaller ones"):
            checks.finish("fp32")
    else:
        checks.finish("fp32")
    assert weight_names(part, path) == {"linear.bias": "linear.bias", "linear.weight": "linear.weight"}
    info = describe_graph(path, "fp32", None)
    assert (info.opset, info.inputs[0].shape, info.outputs[0].dtype) == (20, ("batch", 5), "float32")


def test_graphs_are_the_same_after_training_with_zero_3(tmp_path, monkeypatch):
    """Which leaves DeepSpeed's `linear` in the place of PyTorch's, for good."""
    from deepspeed.runtime.zero.linear import zero3_linear_wrap as left

    part = _part(_Mixing(0.0))
    example = part.draw(3, torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch.nn.functional, "linear", torch._C._nn.linear)
    graphs = []
    for name in ("fresh", "trained"):
        path = tmp_path / name / "eeg_encoder.onnx"
        path.parent.mkdir()
        write_graph(part, path, example, half=False)
        graphs.append(onnx.load(path).SerializeToString())
        monkeypatch.setattr(torch.nn.functional, "linear", left)
    assert graphs[0] == graphs[1]
    assert torch.nn.functional.linear is left, "training in this process may go on"


def test_a_weight_that_was_turned_is_named_as_such(tmp_path):
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(5, 7, bias=False)

        def forward(self, eeg):
            return self.linear(eeg[:, None, :].expand(-1, 3, -1))

    part = _part(Turned())
    path = tmp_path / "eeg_encoder.onnx"
    write_graph(part, path, part.draw(2, torch.Generator()), half=False)
    assert list(weight_names(part, path).values()) == ["linear.weight (transposed)"]


def test_a_batch_that_was_fixed_while_tracing_is_refused(tmp_path):
    """Written by hand, for newer exporters refuse what older ones wrote without a word."""
    eeg = onnx.helper.make_tensor_value_info("eeg", onnx.TensorProto.FLOAT, ["batch", 5])
    out = onnx.helper.make_tensor_value_info("tokens", onnx.TensorProto.FLOAT, [4, 5])
    node = onnx.helper.make_node("Identity", ["eeg"], ["tokens"])
    path = tmp_path / "eeg_encoder.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [eeg], [out])), path)
    with pytest.raises(ValueError, match="tokens has the batch 4"):
        check_dimensions(path)


def test_a_network_that_fixes_its_batch_is_not_written(tmp_path):
    part = _part(_Chunking())
    with pytest.raises(Exception, match="batch"):
        write_graph(part, tmp_path / "eeg_encoder.onnx", part.draw(4, torch.Generator()), half=False)
