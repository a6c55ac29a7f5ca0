"""Graphs compute what training did: normalised and tiled as the stream does, conditioned as the pipeline."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddscale.deploy.graphs import ConditionGraph, Normaliser, Part, parts_of
from ddscale.deploy.source import Source, WindowFacts
from ddscale.diffusion.conditioning import EEGConditioner
from ddscale.models import EEGEncoder, EncoderConfig
from ddscale.stream.collation import Group, HostBatch
from ddscale.stream.device import materialise
from ddscale.stream.settings import Divide, ZScore

T, C, N_CHANNELS = 64, 5, 12


def _windows(seed=0):
    random = np.random.default_rng(seed)
    loud = np.array([0.05, 1, 10, 100, 3000])[:, None]
    eeg = (random.standard_normal((3, C, T)) * loud + random.uniform(-40, 40, (3, C, 1))).astype(np.float32)
    eeg[0, 0] = 7.0  # a flat channel
    eeg[1, 2, 5] = 4000.0  # an artefact beyond the clip
    return eeg


def _by_the_stream(eeg_BCT, how):
    flat = torch.from_numpy(np.ascontiguousarray(eeg_BCT.transpose(0, 2, 1)).reshape(-1))
    n = len(eeg_BCT)
    batch = HostBatch(
        flat=flat,
        channels=torch.full((n,), C),
        positions=torch.arange(n),
        mask_seeds=torch.arange(n),
        datasets=torch.zeros(n, dtype=torch.int64),
        valid=torch.ones(n, dtype=torch.bool),
        rows=torch.arange(n),
        groups=(Group(channels=C, first=0, count=n, offset=0),),
        window_samples=T,
    )
    return materialise(batch, "cpu", 1.0, N_CHANNELS, how)


@pytest.mark.parametrize(
    "how", [ZScore(), ZScore(clip=2.0, eps_uv=5.0), Divide(), Divide(by_uv=3.0, clip=20.0)]
)
def test_windows_are_scaled_and_tiled_as_in_training(how):
    eeg = _windows()
    facts = WindowFacts(C, T, 256.0, how.model_dump(mode="json"), None)
    ours = Normaliser(facts, N_CHANNELS)(torch.from_numpy(eeg))
    expected = _by_the_stream(eeg, how)
    assert ours.shape == (3, T, N_CHANNELS)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=2e-5)


def test_without_a_normalisation_windows_pass_as_they_are():
    eeg = torch.from_numpy(_windows())
    ours = Normaliser(WindowFacts(C, T, None, None, None), C)(eeg)
    torch.testing.assert_close(ours, eeg.transpose(1, 2), rtol=0, atol=0)


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match="'robust'.* must be zscore or divide"):
        Normaliser(WindowFacts(C, T, None, {"kind": "robust"}, None), C)


def _conditioner(**settings):
    torch.manual_seed(0)
    sizes = {"n_channels": N_CHANNELS, "n_samples": T, "width": 24, "depth": 1, "heads": 2}
    return EEGConditioner(encoder_sizes=sizes, length=8, width=32, clip_width=16, **settings).eval()


@pytest.mark.parametrize("timed", [False, True])
@torch.no_grad()
def test_conditions_are_the_conditioners(timed):
    conditioner = _conditioner(time_condition=timed)
    normaliser = Normaliser(WindowFacts(C, T, 256.0, {"kind": "zscore"}, None), N_CHANNELS)
    eeg = torch.from_numpy(_windows())
    outputs = ConditionGraph(conditioner, normaliser)(eeg)
    expected = conditioner(normaliser(eeg))
    torch.testing.assert_close(outputs[0], expected.hidden_states, rtol=0, atol=0)
    assert len(outputs) == 1 + timed
    if timed:
        torch.testing.assert_close(outputs[1], expected.time, rtol=0, atol=0)


@pytest.mark.parametrize("half", [False, True])
def test_inputs_and_outputs_are_fp32_in_every_precision(half):
    part = _encoder_part(width=96, heads=2)
    if half:
        part.module.half()
    outputs = part.module(**part.draw(2, torch.Generator().manual_seed(0)))
    assert {output.dtype for output in outputs} == {torch.float32}


@pytest.mark.parametrize(("width", "heads", "opset"), [(96, 2, 23), (24, 2, 20), (1032, 2, 20)])
def test_native_attention_is_for_half_precision_and_heads_that_engines_can_be_built_for(width, heads, opset):
    part = _encoder_part(width, heads)
    assert part.opset(half=True) == opset
    assert part.opset(half=False) == 20


def _encoder_part(width: int, heads: int) -> Part:
    sizes = EncoderConfig(n_channels=N_CHANNELS, n_samples=T, width=width, depth=1, heads=heads)
    facts = WindowFacts(C, T, 256.0, {"kind": "zscore"}, None)
    (part,) = parts_of(Source(None, EEGEncoder(sizes).eval(), None, None, facts))
    return part
