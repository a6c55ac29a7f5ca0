"""Subjects and recordings that a recipe names: do they exist, and what are they called in the store?"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

from ddscale.ingest.recipe import IngestRecipe
from ddscale.sources.recording import Recording
from ddscale.store.identity import subject_hash
from ddscale.store.manifest import Blocklist, Splitting


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


def unknown_blocked(
    recipe: IngestRecipe, recordings: Sequence[Recording], subjects: Collection[str], names: Collection[str]
) -> list[str]:
    """Notes on blocklist entries that fit nothing found now and nothing known to the store (hashes, names)."""
    found_subjects = {f"{recording.dataset}/{recording.subject}" for recording in recordings}
    found = {f"{recording.dataset}/{recording.id}" for recording in recordings}
    missing = [
        name
        for name in recipe.blocklist.subjects
        if name not in found_subjects and hashed(name, recipe.salt) not in subjects
    ]
    missing += [name for name in recipe.blocklist.recordings if name not in found and name not in names]
    return [f"blocklist: nothing is called `{name}`; a mistyped entry blocks nobody." for name in missing]
