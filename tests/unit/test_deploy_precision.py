"""What half precision cannot hold is found in fp32, wherever in the network it arises, and named."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ddscale.deploy.graphs import Normaliser
from ddscale.deploy.precision import audit_activations, run_half
from ddscale.deploy.source import WindowFacts


class _Attention(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x)


class _Loud(nn.Module):
    """Gains up inside, and down again before it gives anything away."""

    def __init__(self, gain):
        super().__init__()
        self.gain = gain
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.GELU())

    def forward(self, x):
        return self.inner(x) * self.gain / self.gain


@pytest.mark.parametrize("gain", [1.0, 1e5])
def test_values_that_never_leave_a_module_are_seen(gain):
    torch.manual_seed(0)
    module, x = _Loud(gain).eval(), torch.randn(2, 4)
    found = audit_activations(module, [{"x": x}])
    with torch.no_grad():
        inner = module.inner[0](x).abs().max(), (module.inner(x) * gain).abs().max()
    assert found.largest == pytest.approx(max(float(v) for v in inner), rel=1e-6)


def test_attentions_logits_are_seen_inside_the_fused_operation():
    x = torch.full((1, 1, 2, 64), 300.0)
    found = audit_activations(_Attention(), [{"x": x}])
    # 64 * 300**2 / sqrt(64), while neither input nor output is beyond 300
    assert found.largest >= 64 * 300**2 / math.sqrt(64) * 0.999
    assert "the graph" in found.where


def test_the_largest_over_all_batches_is_named_with_its_module():
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    with torch.no_grad():
        module[2].weight.fill_(1000.0)
    found = audit_activations(module, [{"input": torch.ones(1, 4)}, {"input": 100 * torch.ones(1, 4)}])
    assert found.where.endswith("in 2")
    assert found.largest == pytest.approx(float(module(100 * torch.ones(1, 4)).detach().abs().max()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_counts_as_infinite(bad):
    assert audit_activations(nn.ReLU(), [{"input": torch.tensor([bad, 1.0])}]).largest == math.inf


def test_normalisation_is_left_out_for_it_stays_in_fp32():
    normaliser = Normaliser(WindowFacts(2, 64, None, {"kind": "zscore"}, None), 2)

    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.normaliser = normaliser

        def forward(self, eeg):
            return self.normaliser(eeg) * 2

    eeg = 1e4 * torch.randn(1, 2, 64, generator=torch.Generator().manual_seed(0))
    found = audit_activations(Graph(), [{"eeg": eeg}])
    assert found.largest < 20


@pytest.mark.parametrize(
    "layer", [nn.Linear(8, 4), nn.Conv2d(8, 4, 3), nn.Sequential(nn.Conv1d(8, 4, 1), nn.GELU())]
)
@torch.no_grad()
def test_half_precision_overflows_where_a_gpu_would_and_is_close_elsewhere(layer):
    torch.manual_seed(0)
    x = torch.randn({nn.Linear: (3, 8), nn.Conv2d: (3, 8, 5, 5)}.get(type(layer), (3, 8, 5)))
    expected = layer(x)
    (fine,) = run_half(layer.half(), {"input": x.half()})
    assert fine.dtype == torch.float16
    torch.testing.assert_close(fine.float(), expected, rtol=2e-2, atol=2e-3)
    next(layer.parameters()).fill_(1.0)
    (overflown,) = run_half(layer, {"input": torch.full_like(x, 6e4).half()})
    assert torch.isinf(overflown).all()
