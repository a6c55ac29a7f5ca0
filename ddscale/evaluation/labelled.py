"""Labelled trials out of a store, cut to one length. N trials, T samples, C channels."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddscale.evaluation.probe_recipe import ProbeRecipe
from ddscale.metrics.leakage import Trials, block_design_warning, check_split
from ddscale.store import Store, open_store


@dataclass(frozen=True)
class LabelledTrials:
    """Trials of several subjects, all of the same channels and length."""

    store: Store
    x_NTC: NDArray[np.float32]
    """µV (or the store's own unit)."""
    sfreq: float
    channels: list[str]
    classes: list[str]
    label_N: NDArray[np.int64]
    """Place in `classes`."""
    subjects: list[str]
    """dataset/hash, in the order of their recordings' names."""
    subject_N: NDArray[np.int64]
    """Place in `subjects`."""
    dataset_N: NDArray[np.str_]
    recording_N: NDArray[np.str_]
    start_N: NDArray[np.float64]
    """Seconds from the beginning of the recording."""
    notes: list[str]
    """What must be known to read the results."""

    def __len__(self) -> int:
        return len(self.label_N)

    def recordings_of(self, subject: int) -> list[str]:
        return sorted({str(name) for name in self.recording_N[self.subject_N == subject]})

    def folds(self) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """(training trials, held-out trials) for each subject in turn.

        Raises LeakageError when a recording or a stretch of time is on both sides.
        """
        found = []
        for subject in range(len(self.subjects)):
            held_out = self.subject_N == subject
            check_split(self._columns(~held_out), self._columns(held_out), ("subject", "recording"))
            found.append((np.flatnonzero(~held_out), np.flatnonzero(held_out)))
        return found

    def _columns(self, chosen: NDArray[np.bool_]) -> Trials:
        recording = np.char.add(np.char.add(self.dataset_N[chosen], "/"), self.recording_N[chosen])
        start = self.start_N[chosen]
        return Trials(
            subject=self.subject_N[chosen],
            recording=recording,
            start=start,
            stop=start + self.x_NTC.shape[1] / self.sfreq,
        )


def read_trials(recipe: ProbeRecipe) -> LabelledTrials:
    """The trials the recipe asks for.

    Raises ValueError when the store has no labels, fewer than two subjects or classes, or trials that are too short
    or share no channels, with what to change; what open_store and Store.read raise.
    """
    store = open_store(recipe.store)
    columns = ["dataset", "subject", "recording", "label", "start", "samples"]
    table = store.table(columns)
    names = {name: np.array(table[name].to_pylist(), dtype=object) for name in columns[:4]}
    rows = np.flatnonzero(_wanted(recipe, store, names))
    begin, stop, notes = _cut(recipe, store, table["samples"].to_numpy()[rows])
    channels, places = _common_channels(store, rows, notes)
    x_NTC = np.empty((len(rows), stop - begin, len(channels)), np.float32)
    for number, row in enumerate(rows.tolist()):
        x_NTC[number] = store.read(row, begin, stop)[:, places[number]] * np.float32(store.step)
    classes = sorted({str(name) for name in names["label"][rows]})
    who = np.array([f"{d}/{s}" for d, s in zip(names["dataset"][rows], names["subject"][rows], strict=True)])
    first = {subject: min(names["recording"][rows][who == subject]) for subject in sorted(set(who))}
    subjects = sorted(first, key=lambda subject: (first[subject], subject))
    if len(subjects) < 2 or len(classes) < 2:
        raise ValueError(
            f"{recipe.store} has labelled trials of {len(subjects)} subject(s) in {len(classes)} class(es): leaving "
            "one subject out needs two subjects, and telling apart two classes. Ingest more, or name other `labels`."
        )
    start_N = table["start"].to_numpy()[rows] / store.sfreq + begin / store.sfreq
    recording_N, dataset_N = names["recording"][rows].astype(str), names["dataset"][rows].astype(str)
    label_N = np.array([classes.index(name) for name in names["label"][rows]])
    where = np.char.add(np.char.add(dataset_N, "/"), recording_N)
    warning = block_design_warning(label_N, where, start_N)
    blocks = [warning] if warning else _classes_in_blocks(classes, label_N, where, start_N)
    return LabelledTrials(
        store=store,
        x_NTC=x_NTC,
        sfreq=store.sfreq,
        channels=channels,
        classes=classes,
        label_N=label_N,
        subjects=subjects,
        subject_N=np.array([subjects.index(name) for name in who]),
        dataset_N=dataset_N,
        recording_N=recording_N,
        start_N=start_N,
        notes=[*notes, *blocks],
    )


def _wanted(recipe: ProbeRecipe, store: Store, names: dict[str, NDArray[np.object_]]) -> NDArray[np.bool_]:
    labelled = names["label"] != None  # noqa: E711  (element by element)
    if not labelled.any():
        raise ValueError(
            f"{recipe.store} has no labelled trials: ingest recordings with labels, such as a source of kind `events`."
        )
    wanted = labelled
    for field, column, given in (
        ("datasets", "dataset", recipe.datasets),
        ("labels", "label", recipe.labels),
    ):
        if given is None:
            continue
        known = sorted({str(name) for name in names[column][labelled]})
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise ValueError(
                f"{field}: {', '.join(unknown)} is not in {store.path}, which has {', '.join(known)}."
            )
        wanted = wanted & np.isin(names[column].astype(str), given)
    return wanted


def _cut(recipe: ProbeRecipe, store: Store, samples_N: NDArray[np.integer]) -> tuple[int, int, list[str]]:
    """First and last + 1 sample of every trial, and notes."""
    begin = round(recipe.start_s * store.sfreq)
    shortest, longest = int(samples_N.min()), int(samples_N.max())
    if recipe.stop_s is not None:
        stop = round(recipe.stop_s * store.sfreq)
        if stop > shortest:
            raise ValueError(
                f"stop_s {recipe.stop_s:g} lies behind the end of {(samples_N < stop).sum()} of {len(samples_N)} "
                f"trials; the shortest has {shortest / store.sfreq:g} s: set stop_s to at most that."
            )
        return begin, stop, []
    if shortest < 0.8 * longest:
        raise ValueError(
            f"trials last {shortest / store.sfreq:g} to {longest / store.sfreq:g} s: set stop_s, or all would be "
            "cut to the shortest."
        )
    if begin >= shortest:
        raise ValueError(
            f"start_s {recipe.start_s:g} lies behind the end of the shortest trial, {shortest / store.sfreq:g} s."
        )
    cut = [f"trials of up to {longest / store.sfreq:g} s were cut to {shortest / store.sfreq:g} s."]
    return begin, shortest, cut if longest > shortest else []


def _common_channels(
    store: Store, rows: NDArray[np.int64], notes: list[str]
) -> tuple[list[str], list[list[int]]]:
    """Channels that all trials have, in the first one's order, and their places in each trial."""
    table = store.table(["montage", "dropped"]).take(rows)
    named = [
        [channel.standard or channel.name for channel in store.montages[montage].without(dropped or [])]
        for montage, dropped in zip(table["montage"].to_pylist(), table["dropped"].to_pylist(), strict=True)
    ]
    count = Counter(name for names in named for name in set(names))
    kept = [name for name in named[0] if count[name] == len(rows)]
    if not kept:
        raise ValueError(f"the trials of {store.path} have no channel in common: name one of its `datasets`.")
    left = sorted(set(count) - set(kept))
    if left:
        notes.append(f"channels that some trials lack were left out: {', '.join(left)}.")
    return kept, [[names.index(name) for name in kept] for names in named]


def _classes_in_blocks(
    classes: list[str], label_N: NDArray[np.int64], where_N: NDArray[np.str_], start_N: NDArray[np.float64]
) -> list[str]:
    """A note for each class whose trials were mostly presented one after another, though other classes were not."""
    followers = np.zeros(len(classes), np.int64)
    own = np.zeros(len(classes), np.int64)
    by_chance = np.zeros(len(classes))
    for name in np.unique(where_N):
        inside = np.flatnonzero(where_N == name)
        shown = label_N[inside[np.argsort(start_N[inside], kind="stable")]]
        counts = np.bincount(shown, minlength=len(classes))
        followers += np.bincount(shown[1:], minlength=len(classes))
        own += np.bincount(shown[1:][shown[1:] == shown[:-1]], minlength=len(classes))
        by_chance += counts * (counts - 1) / max(len(shown), 1)
    clumping = (own - by_chance) / np.maximum(followers - by_chance, 1e-9)
    return [
        f"{name}: {own[number]} of {followers[number]} trials follow one of their own class, where a random order "
        f"would give {by_chance[number]:.0f}: slow changes over a recording may tell this class as well as the EEG's "
        f"response to it. `labels` without it gives the others alone."
        for number, name in enumerate(classes)
        if clumping[number] > 0.5 and own[number] > 3
    ]
