"""Learning rates: pure functions of the step, checked against the formulas they are named after."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from ddscale.training.schedules import Schedule, learning_rate


def rates(schedule: Schedule, steps: int, peak: float = 1.0) -> list[float]:
    return [learning_rate(schedule, step, steps, peak) for step in range(steps)]


def test_warm_up_rises_linearly_and_reaches_the_peak_with_its_last_step():
    assert rates(Schedule(warmup_steps=4), 20)[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_cosine_is_half_a_cosine_from_the_peak_to_the_final_fraction():
    schedule = Schedule(warmup_steps=10, final_fraction=0.1)
    found = rates(schedule, 110, peak=2.0)
    for step in range(10, 110):
        expected = 0.2 + 1.8 * (1 + math.cos(math.pi * (step - 10) / 100)) / 2
        assert found[step] == pytest.approx(expected, rel=1e-12)
    assert learning_rate(schedule, 110, 110, 2.0) == pytest.approx(0.2)
    assert found == sorted(found[:10]) + sorted(found[10:], reverse=True)


def test_wsd_stays_at_the_peak_and_falls_linearly_in_the_last_steps():
    found = rates(Schedule(kind="wsd", warmup_steps=2, decay_steps=4), 12)
    assert found[2:8] == [1.0] * 6
    assert found[8:] == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_wsd_decays_over_a_tenth_of_the_run_when_not_told():
    found = rates(Schedule(kind="wsd"), 100)
    assert found[89] == 1.0
    assert found[91] == pytest.approx(0.9)


def test_lengthening_a_wsd_run_leaves_its_plateau_as_it_was():
    schedule = Schedule(kind="wsd", warmup_steps=5, decay_steps=10)
    assert rates(schedule, 50)[:40] == rates(schedule, 500)[:40]


def test_no_rate_leaves_the_interval_from_nothing_to_the_peak():
    for schedule in (Schedule(warmup_steps=3), Schedule(kind="wsd", warmup_steps=3, final_fraction=0.2)):
        assert all(0 < rate <= 1 for rate in rates(schedule, 30))


def test_a_decay_length_on_a_cosine_is_refused():
    with pytest.raises(ValidationError, match="decay_steps has no effect on a cosine"):
        Schedule(kind="cosine", decay_steps=3)


def test_parts_longer_than_the_run_are_named():
    assert Schedule(warmup_steps=8).problems(8) == []
    assert "warm-up takes 9 steps, the run has 8" in Schedule(warmup_steps=9).problems(8)[0]
    assert (
        "warm-up and decay take 11 steps"
        in Schedule(kind="wsd", warmup_steps=8, decay_steps=3).problems(10)[0]
    )
