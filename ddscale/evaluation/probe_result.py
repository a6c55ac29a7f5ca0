"""What a probe found, as JSON: accuracies with intervals, chance and controls beside them.

Legend: N trials, R repetitions (seeds), S shuffles, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddscale.evaluation.exposure import Exposure
from ddscale.evaluation.labelled import LabelledTrials
from ddscale.evaluation.probe_recipe import ProbeRecipe
from ddscale.evaluation.results import number
from ddscale.metrics.controls import Estimate, estimate, wilson_interval


@dataclass
class Method:
    """Predictions of one method for every trial, each by a classifier that had not seen the trial's subject."""

    name: str
    predicted_RN: NDArray[np.int64]
    shuffled_SN: NDArray[np.int64]
    """Predictions after training on shuffled labels."""
    exposure: Exposure | None = None
    """What pretraining had seen of the subjects; None: there was none."""
    rival: str | None = None
    """Name of the method that differs in the pretraining alone."""
    note: str = ""
    regularisation: list[list[float]] = field(default_factory=list)
    """Chosen for each repetition and held-out subject."""


def result_of(recipe: ProbeRecipe, trials: LabelledTrials, methods: list[Method]) -> dict[str, Any]:
    """Everything a reader needs to judge the methods."""
    counts = np.bincount(trials.label_N, minlength=len(trials.classes))
    by_name = {method.name: method for method in methods}
    rivals = [(method, by_name[method.rival]) for method in methods if method.rival]
    people = len(trials.subjects)
    notes = [
        "Each subject is predicted by classifiers fitted, scaled and regularised on the other subjects alone.",
        f"Intervals over all: 95 %, bootstrap over {people} subjects; of one subject: Wilson's, over its trials.",
        *(
            [f"{people} subjects are few: their bootstrap interval is rather too narrow."]
            if people < 10
            else []
        ),
        "Shuffled labels: training labels exchanged within subjects, tested on the true ones; mean and range over the "
        "shuffles. The mean belongs at chance; a single shuffle may lie far from it where features are few.",
        *trials.notes,
    ]
    return {
        "store": str(trials.store.path),
        "fingerprint": trials.store.fingerprint,
        "recipe": recipe.model_dump(mode="json"),
        "trials": len(trials),
        "trial_s": trials.x_NTC.shape[1] / trials.sfreq,
        "channels": trials.channels,
        "classes": {name: int(count) for name, count in zip(trials.classes, counts, strict=True)},
        "subjects": [
            {
                "short": f"S{number_ + 1}",
                "subject": subject,
                "recordings": trials.recordings_of(number_),
                "trials": int((trials.subject_N == number_).sum()),
            }
            for number_, subject in enumerate(trials.subjects)
        ],
        "chance": {"uniform": 1 / len(trials.classes), "majority": float(counts.max() / counts.sum())},
        "methods": [_described(method, trials) for method in methods],
        "pretraining_gains": [
            {
                "method": method.name,
                "over": rival.name,
                "accuracy": _as_dict(
                    estimate(_right(method, trials) - _right(rival, trials), trials.subject_N)
                ),
            }
            for method, rival in rivals
        ],
        "notes": notes,
    }


def _right(method: Method, trials: LabelledTrials) -> NDArray[np.float64]:
    """(N,) share of repetitions that told the trial rightly."""
    return (method.predicted_RN == trials.label_N).mean(axis=0)


def _described(method: Method, trials: LabelledTrials) -> dict[str, Any]:
    right_N = _right(method, trials)
    by_repetition = (method.predicted_RN == trials.label_N).mean(axis=1)
    seen = method.exposure
    return {
        "name": method.name,
        "accuracy": _as_dict(estimate(right_N, trials.subject_N)),
        "by_subject": [_of_subject(right_N, trials, subject) for subject in range(len(trials.subjects))],
        "repetitions": len(by_repetition),
        "by_repetition": by_repetition.tolist(),
        "shuffled": _control(by_repetition, (method.shuffled_SN == trials.label_N).mean(axis=1)),
        "confusion": _confusion(method, trials),
        "pretraining": None
        if seen is None
        else {
            "state": seen.state,
            "subjects": [trials.subjects[number_] for number_ in seen.subjects],
            "note": seen.note,
        },
        "regularisation": method.regularisation or None,
        "note": method.note,
    }


def _control(by_repetition: NDArray[np.float64], control_S: NDArray[np.float64]) -> dict[str, Any]:
    """Accuracies after shuffling, and how often those reach the true one (the permutation test's p)."""
    reached = int((control_S >= by_repetition.mean()).sum())
    return {
        "value": float(control_S.mean()),
        "low": float(control_S.min()) if len(control_S) > 1 else None,
        "high": float(control_S.max()) if len(control_S) > 1 else None,
        "shuffles": len(control_S),
        "p": (1 + reached) / (1 + len(control_S)),
    }


def _of_subject(right_N: NDArray[np.float64], trials: LabelledTrials, subject: int) -> dict[str, Any]:
    own = right_N[trials.subject_N == subject]
    # Of several repetitions the mean: they share the trials, so together they are no larger sample.
    low, high = wilson_interval(round(float(own.sum())), len(own))
    return {"subject": f"S{subject + 1}", "accuracy": float(own.mean()), "low": low, "high": high}


def _confusion(method: Method, trials: LabelledTrials) -> list[list[float]]:
    """Rows: true class; columns: said class; trials, averaged over repetitions."""
    K = len(trials.classes)
    table = np.zeros((K, K))
    for predicted_N in method.predicted_RN:
        np.add.at(table, (trials.label_N, predicted_N), 1 / len(method.predicted_RN))
    return [[round(float(value), 3) for value in row] for row in table]


def _as_dict(of: Estimate) -> dict[str, float | None]:
    return {"value": number(of.value), "low": number(of.low), "high": number(of.high)}
