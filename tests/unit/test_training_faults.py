"""Injected faults, skipped steps, and being asked to stop."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ddscale.training import stopping
from ddscale.training.faults import INJECTION_VARIABLE, Injection, SkippedSteps
from ddscale.training.loop import spoil_gradient_unless_finite
from ddscale.training.ranks import AgreedError, Ranks, describe
from ddscale.training.stopping import StopRequest


def test_faults_are_ordered_for_a_rank_and_its_steps(monkeypatch):
    monkeypatch.setenv(INJECTION_VARIABLE, "nan@rank=1,step=3-4;nan@rank=0,step=9")
    loss = torch.tensor(2.0)
    other, mine = Injection.from_environment(0), Injection.from_environment(1)
    assert [bool(mine.in_loss(loss, step).isnan()) for step in range(1, 6)] == [
        False,
        False,
        True,
        True,
        False,
    ]
    assert [bool(other.in_loss(loss, step).isnan()) for step in (3, 9)] == [False, True]


def test_without_orders_nothing_happens(monkeypatch):
    monkeypatch.delenv(INJECTION_VARIABLE, raising=False)
    assert Injection.from_environment(0) == Injection(())


@pytest.mark.parametrize("text", ["nan", "explode@rank=0,step=1", "nan@rank=x,step=1"])
def test_an_order_that_cannot_be_understood_is_refused(monkeypatch, text):
    monkeypatch.setenv(INJECTION_VARIABLE, text)
    with pytest.raises(ValueError, match="write KIND@rank=R,step=S"):
        Injection.from_environment(0)


def test_too_many_skipped_steps_in_a_row_stop_the_run_on_every_rank():
    skipped = SkippedSteps(3)
    for step in (1, 2):
        skipped.skipped(step, "rank 1")
    skipped.applied()
    for step in (4, 5):
        skipped.skipped(step, "rank 1")
    with pytest.raises(
        AgreedError, match=r"step 6: 3 steps in a row were skipped.*rank 1.*Lower optimiser.lr"
    ):
        skipped.skipped(6, "rank 1")


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_loss_that_is_not_finite_spoils_its_gradient(value):
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    # The gradient of weight.sum() + inf is finite: the loss alone knows.
    spoil_gradient_unless_finite(weight.sum() + value).backward()
    assert weight.grad.isnan().all()


def test_a_finite_loss_keeps_its_gradient_bit_for_bit():
    torch.manual_seed(0)
    weight = torch.randn(100, requires_grad=True)
    loss = (weight * torch.randn(100)).square().sum()
    plain = torch.autograd.grad(loss, weight, retain_graph=True)[0]
    guarded = spoil_gradient_unless_finite(loss)
    assert torch.equal(guarded, loss)
    assert torch.equal(torch.autograd.grad(guarded, weight)[0], plain)


_SIGNALLED = """
import os, signal, sys
from ddscale.training.stopping import StopRequest
number = signal.Signals[sys.argv[1]]
before = signal.getsignal(number)
with StopRequest() as stop:
    assert not stop.requested
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)
    assert stop.reason == number.name
assert signal.getsignal(number) is before
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_is_noted_and_the_previous_handling_comes_back(name):
    # In a process of its own: libraries of other tests set stacks for handlers in theirs, see openvino_graphs.py.
    subprocess.run([sys.executable, "-c", _SIGNALLED, name], check=True, timeout=120)


def test_the_stop_file_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, "LOOK_EVERY_S", 0.0)
    monkeypatch.setenv(stopping.STOP_FILE, str(tmp_path / "stop"))
    with StopRequest() as stop:
        assert not stop.requested
        (tmp_path / "stop").touch()
        assert stop.requested
        assert stop.reason == str(tmp_path / "stop")


def test_a_failure_inside_an_agreement_becomes_one_that_all_know_of():
    alone = Ranks(0, 1, 0, 1, torch.device("cpu"))
    with pytest.raises(AgreedError, match="no store there"), alone.agreeing():
        raise FileNotFoundError("no store there")
    with pytest.raises(TypeError), alone.agreeing():
        raise TypeError("a defect keeps its traceback")
    assert describe(TypeError("x")) == "TypeError: x"
