"""What half precision cannot hold is found in fp32, wherever in the network it arises, and named."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from deploying import toy_recipe
from torch import nn

from ddscale.deploy import reference
from ddscale.deploy.graphs import Normaliser, Part, parts_of
from ddscale.deploy.manifest import UNET
from ddscale.deploy.precision import audit_activations, examine_half, run_half
from ddscale.deploy.reference import EndToEnd, PartReference, draw_pictures
from ddscale.deploy.schedules import tabulate
from ddscale.deploy.source import WindowFacts, load_source
from ddscale.diffusion.pipeline import scheduler_named


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


class _FailsAt(nn.Module):
    """A U-Net that is loud, and wrong in half precision, at one timestep alone."""

    def __init__(self, timestep):
        super().__init__()
        self.weight, self.timestep = nn.Parameter(torch.ones(())), timestep

    def forward(self, sample, timestep):
        gain = 1 + 29_999 * (timestep == self.timestep).to(self.weight.dtype)[:, None, None, None]
        loud = sample.to(self.weight.dtype) * gain * self.weight * 4
        return (loud / gain / 4).float()


def _call(module, timesteps, size):
    inputs = {"sample": torch.ones(len(timesteps), 2, size, size), "timestep": torch.tensor(timesteps)}
    output = module(**inputs).detach().numpy()
    return PartReference({name: value.numpy() for name, value in inputs.items()}, {"noise_pred": output})


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("timestep", [333.0, 7.0])
def test_the_unet_is_examined_on_the_way_of_a_drawing(size, timestep):
    module = _FailsAt(timestep)
    part = Part(UNET, module, ("sample", "timestep"), ("noise_pred",), None, 1e-5, False)
    calls = [_call(module, [t], size) for t in (999.0, 333.0, 7.0)]
    blank = np.zeros((1, 2, size, size), np.float32)
    drawn = EndToEnd(None, blank, blank, blank, blank, {}, calls)
    own = _call(module, [981.0, 501.0, 1.0], size)
    assert examine_half(part, own, None).range.largest < 10
    module.float()
    found = examine_half(part, own, drawn)
    assert found.range.largest == 1.2e5
    # One row of large latents is run in fp16, the last.
    assert math.isfinite(found.error) == (size == 64 and timestep == 333.0)


@pytest.mark.parametrize("small", [8, 4], ids=["small", "large"])
def test_every_call_of_the_unet_is_noted_as_its_graph_takes_it(toy_export, monkeypatch, small):
    monkeypatch.setattr(reference, "_SMALL_LATENT", small)
    source = load_source(toy_recipe(toy_export))
    parts = parts_of(source)
    eeg = parts[0].draw(2, torch.Generator().manual_seed(0))["eeg"].numpy()
    table = tabulate(scheduler_named("ddim", source.pipeline.scheduler), 5, "ddim")
    drawn = draw_pictures(source, parts, table, eeg, 0)
    times = [call.inputs["timestep"] for call in drawn.calls]
    assert drawn.large == (small == 4)
    if drawn.large:
        assert [t.tolist() for t in times] == [[table.timesteps[i]] for i in (0, 2, 4)]
    else:
        assert [t.tolist() for t in times] == [[t] * 4 for t in table.timesteps]
        np.testing.assert_array_equal(drawn.calls[0].inputs["sample"][2:], drawn.initial)
    unet = next(part for part in parts if part.name == UNET)
    for call in drawn.calls:
        with torch.no_grad():
            again = unet.module(**{name: torch.from_numpy(value) for name, value in call.inputs.items()})
        np.testing.assert_allclose(again.numpy(), call.outputs["noise_pred"], rtol=1e-4, atol=1e-5)
