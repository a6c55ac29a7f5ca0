"""Subjects and recordings that a recipe names: do they exist, and what are they called in the store?"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ddscale.ingest.recipe import IngestRecipe
from ddscale.ingest.signature import NO_FILE, signature
from ddscale.ingest.work import State
from ddscale.sources.recording import Recording
from ddscale.store.identity import subject_hash
from ddscale.store.manifest import Blocklist, Splitting
from ddscale.store.staging import read_sidecar


def hashed(name: str, salt: str) -> str:
    """The hash of `dataset/subject`."""
    dataset, _, subject = name.partition("/")
    return subject_hash(dataset, subject, salt)


def splitting(recipe: IngestRecipe) -> Splitting:
    """The recipe's splits, with subjects' names hashed."""
    return Splitting(
        val_fraction=recipe.splits.val,
        test_fraction=recipe.splits.test,
        val_subjects=sorted(hashed(name, recipe.salt) for name in recipe.splits.val_subjects),
        test_subjects=sorted(hashed(name, recipe.salt) for name in recipe.splits.test_subjects),
        val_images=recipe.splits.val_images,
        test_images=recipe.splits.test_images,
        images_by=recipe.splits.images_by,
    )


def blocklist(recipe: IngestRecipe) -> Blocklist:
    """The recipe's blocklist, with subjects' names hashed."""
    return Blocklist(
        subjects=sorted(hashed(name, recipe.salt) for name in recipe.blocklist.subjects),
        recordings=sorted(recipe.blocklist.recordings),
    )


def check_held_out(recipe: IngestRecipe, recordings: Sequence[Recording], in_store: Collection[str]) -> None:
    """Raises ValueError for held-out subjects that no source and not the store (hashes) has, naming near ones."""
    known = sorted({f"{recording.dataset}/{recording.subject}" for recording in recordings})
    wrong = []
    for name in (*recipe.splits.val_subjects, *recipe.splits.test_subjects):
        if name in known or hashed(name, recipe.salt) in in_store:
            continue
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        wrong.append(f"`{name}`" + (f" (did you mean {' or '.join(near)}?)" if near else ""))
    if wrong:
        examples = "" if len(known) == 0 else f" Subjects are called like {', '.join(known[:3])}."
        raise ValueError(f"splits: no recording of {', '.join(wrong)}.{examples} Correct or remove the name.")


def as_stored(
    store: Path, recordings: Sequence[Recording], state: State, hashes: Mapping[str, str]
) -> list[Recording]:
    """The recordings under the ids that they have in the store: a file keeps its own when another comes, or goes, whose
    id would be the same.

    Of several that the store's id may mean, it is the one whose file is as it was, or whose subject is. hashes: of
    every `dataset/subject`. An alias that is another recording's id is taken away.
    """
    there = {*state.published, *state.staged}
    claims: dict[tuple[str, str], list[int]] = defaultdict(list)
    named = list(recordings)
    for place, recording in enumerate(recordings):
        if (recording.dataset, recording.alias) in there:
            named[place] = replace(recording, alias="")
            if (recording.dataset, recording.id) not in there:
                claims[recording.dataset, recording.alias].append(place)
    for name, places in claims.items():
        subject, was = _known(store, state, name)
        of_file = [place for place in places if was != NO_FILE and was == _signature(recordings[place])]
        of_subject = [
            place
            for place in of_file or places
            if hashes[f"{name[0]}/{recordings[place].subject}"] == subject
        ]
        for same in (of_file, of_subject):
            if len(same) == 1:
                named[same[0]] = replace(recordings[same[0]], id=name[1], alias=recordings[same[0]].id)
                break
    return named


def _known(store: Path, state: State, name: tuple[str, str]) -> tuple[str, tuple[int, int]]:
    """Hash of the subject, and signature of the file when it was read."""
    about = state.published.get(name) or read_sidecar(store, *name)
    assert about is not None
    return about.subject, (about.size_bytes, about.mtime_ns)


def _signature(recording: Recording) -> tuple[int, int]:
    return signature(recording.path, recording.beside)


def unknown_blocked(
    recipe: IngestRecipe, recordings: Sequence[Recording], subjects: Collection[str], names: Collection[str]
) -> list[str]:
    """Notes on blocklist entries that fit nothing found now and nothing known to the store (hashes, names)."""
    found_subjects = {f"{recording.dataset}/{recording.subject}" for recording in recordings}
    found = {
        f"{recording.dataset}/{name}" for recording in recordings for name in (recording.id, recording.alias)
    }
    missing = [
        name
        for name in recipe.blocklist.subjects
        if name not in found_subjects and hashed(name, recipe.salt) not in subjects
    ]
    missing += [name for name in recipe.blocklist.recordings if name not in found and name not in names]
    return [f"blocklist: nothing is called `{name}`; a mistyped entry blocks nobody." for name in missing]
