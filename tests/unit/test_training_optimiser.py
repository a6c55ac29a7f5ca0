"""Parameter groups, and the optimiser that stands in for DeepSpeed's wrappers at stage 0."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ddscale.models import MAEConfig, MaskedAutoencoder
from ddscale.training.optimiser import (
    AVERAGE,
    AveragingAdamW,
    GuardedAdamW,
    hyperparameters,
    parameter_groups,
    restate,
)

OPTIONS = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "fused": True}


def with_gradients(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    model(torch.randn(4, 5)).square().sum().backward()
    return model


def test_matrices_decay_and_biases_norms_and_tokens_do_not():
    model = MaskedAutoencoder(MAEConfig(preset="demo"))
    decayed, kept = parameter_groups(model, 0.05)
    names = {id(p): name for name, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.05
    assert kept["weight_decay"] == 0.0
    assert {names[id(p)].rsplit(".", 1)[-1] for p in decayed["params"]} == {"weight"}
    kept_names = [names[id(p)] for p in kept["params"]]
    assert all("norm" in name or name.endswith(("bias", "token")) for name in kept_names)
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


def test_frozen_parameters_are_in_no_group():
    model = nn.Linear(3, 3)
    model.bias.requires_grad_(False)
    assert [len(group["params"]) for group in parameter_groups(model, 0.1)] == [1, 0]


@pytest.mark.parametrize("clip", [0.0, 0.1, "just less", 1e6])
def test_a_guarded_step_is_clipping_followed_by_adamw(clip):
    ours, reference = with_gradients(1), with_gradients(1)
    if clip == "just less":
        clip = 0.9 * float(torch.nn.utils.get_total_norm([p.grad for p in reference.parameters()]))
    optimiser = GuardedAdamW(ours.parameters(), clip=clip, **OPTIONS)
    optimiser.step()
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), clip or float("inf"))
    adamw = torch.optim.AdamW(reference.parameters(), **OPTIONS)
    adamw.step()
    for mine, theirs in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)
        # Adam's first step is the same however long the gradient is; its moments are not.
        for moment in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(
                optimiser.state[mine][moment], adamw.state[theirs][moment], rtol=1e-5, atol=0
            )
    assert optimiser._global_grad_norm == pytest.approx(float(norm))
    assert not optimiser.overflow


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_neither_weights_nor_moments(poison):
    model = with_gradients(2)
    optimiser = GuardedAdamW(model.parameters(), clip=1.0, **OPTIONS)
    optimiser.step()
    weights, moments = copy.deepcopy(model.state_dict()), copy.deepcopy(optimiser.state_dict())
    model[0].bias.grad[0] = poison
    optimiser.step()
    assert optimiser.overflow
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])
    for key, state in optimiser.state_dict()["state"].items():
        assert all(torch.equal(value, moments["state"][key][name]) for name, value in state.items())
    model[0].bias.grad[0] = 0.0
    optimiser.step()
    assert not optimiser.overflow
    assert not torch.equal(model[0].weight, weights["0.weight"])


def test_hyperparameters_are_the_recipes_again_after_a_checkpoint_brought_others():
    model = with_gradients(3)
    optimiser = torch.optim.AdamW(parameter_groups(model, 0.05), **OPTIONS)
    optimiser.step()
    remembered = hyperparameters(optimiser)
    shared = next(iter(optimiser.state.values()))["step"]
    for group in optimiser.param_groups:
        group.update(weight_decay=0.05, betas=(0.1, 0.2))
    for state in optimiser.state.values():
        state["step"] = shared
    restate(optimiser, remembered)
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.05, 0.0]
    assert {tuple(group["betas"]) for group in optimiser.param_groups} == {(0.9, 0.95)}
    counters = [state["step"] for state in optimiser.state.values()]
    assert len({counter.data_ptr() for counter in counters}) == len(counters)


@pytest.mark.parametrize("guarded", [True, False])
def test_the_average_is_that_of_diffusers(guarded):
    from diffusers.training_utils import EMAModel

    model = with_gradients(4)
    kind = GuardedAdamW if guarded else AveragingAdamW
    optimiser = kind(model.parameters(), ema=0.8, **({"clip": 0.0} if guarded else {}), **OPTIONS)
    reference: EMAModel | None = None
    for _ in range(40):
        optimiser.step()
        if reference is None:
            # Ours begins as the weights after the first update.
            reference = EMAModel(model.parameters(), decay=0.8)
            reference.optimization_step = 2  # it counts from one later
        else:
            reference.step(model.parameters())
    for parameter, average in zip(model.parameters(), reference.shadow_params, strict=True):
        torch.testing.assert_close(optimiser.state[parameter][AVERAGE], average, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(parameter, average)


def test_without_a_memory_nothing_is_averaged():
    model = with_gradients(5)
    optimiser = AveragingAdamW(model.parameters(), **OPTIONS)
    optimiser.step()
    assert all(AVERAGE not in state for state in optimiser.state.values())
