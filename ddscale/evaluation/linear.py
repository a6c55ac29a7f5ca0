"""Logistic regression, one subject left out, its regularisation chosen among the others.

Legend: N trials, D features.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddscale.evaluation.labelled import LabelledTrials

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LinearResult:
    """predicted_N: class of each trial, said by the classifier that was fitted without its subject.

    regularisation: what was chosen for each held-out subject (scikit-learn's C).
    """

    predicted_N: NDArray[np.int64]
    regularisation: list[float]


def leave_one_subject_out(
    features_ND: Floats,
    trials: LabelledTrials,
    regularisation: Sequence[float],
    shuffle_seed: int | None = None,
) -> LinearResult:
    """Fit and predict, each subject held out in turn: scaling, regularisation and weights come from the others.

    shuffle_seed: shuffle the training labels within each subject first; what is then predicted is a control.
    Raises ModuleNotFoundError when scikit-learn is missing.
    """
    predicted = np.empty(len(trials), np.int64)
    chosen = []
    labels = trials.label_N if shuffle_seed is None else shuffled(trials, shuffle_seed)
    for train, test in trials.folds():
        search = _search(regularisation, trials.subject_N[train], labels[train])
        with warnings.catch_warnings():
            # Weakly regularised fits of separable data have no optimum to arrive at; the choice will not fall on them.
            warnings.simplefilter("ignore")
            search.fit(features_ND[train], labels[train], groups=trials.subject_N[train])
        predicted[test] = search.predict(features_ND[test])
        chosen.append(float(search.best_params_["logisticregression__C"]))
    return LinearResult(predicted, chosen)


def shuffled(trials: LabelledTrials, seed: int) -> NDArray[np.int64]:
    """Labels exchanged at random among the trials of each subject, so that each keeps its share of classes."""
    rng = np.random.default_rng(seed)
    labels = trials.label_N.copy()
    for subject in range(len(trials.subjects)):
        own = np.flatnonzero(trials.subject_N == subject)
        labels[own] = labels[rng.permutation(own)]
    return labels


def _search(regularisation: Sequence[float], subjects: NDArray[np.int64], labels: NDArray[np.int64]):  # type: ignore[no-untyped-def]
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut, StratifiedKFold
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("probing needs scikit-learn: pip install 'ddscale[evaluation]'.") from error
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    if len(np.unique(subjects)) > 1:
        inner = LeaveOneGroupOut()
    else:
        rarest = int(np.bincount(labels)[np.unique(labels)].min())
        inner = StratifiedKFold(max(2, min(5, rarest)), shuffle=True, random_state=0)
    # Of equals the first is taken: sorted, so the most regularised.
    return GridSearchCV(classifier, {"logisticregression__C": sorted(regularisation)}, cv=inner)
