"""Who a recording is from, without saying it: salted hashes of subjects, and the split that follows from them."""

from __future__ import annotations

import hashlib
from typing import Literal

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

NO_SPLIT = "none"
"""Of trials whose picture and subject fall into different splits: nobody may see them."""
CODES: dict[str, int] = {**{name: code for code, name in enumerate(SPLITS)}, NO_SPLIT: 3}
"""Splits as numbers."""

PUBLIC_SALT = "ddscale"
"""The salt of a recipe that states none: names are hidden from view, but can be found again by guessing them."""


def subject_hash(dataset: str, subject: str, salt: str = PUBLIC_SALT) -> str:
    """16 hex digits that stand for a subject of a dataset in every table and file of a store."""
    return _digest(f"{dataset}\0{subject}", salt)


def salt_check(salt: str) -> str:
    """A value kept in the manifest, so that a wrong salt is noticed instead of matching nobody."""
    return _digest("which salt is this", salt)


def split_of(hashed_subject: str, salt: str, val_fraction: float, test_fraction: float) -> Split:
    """The split of a subject: depends on the subject and the salt, never on who else is in the dataset."""
    place = int(_digest(f"split\0{hashed_subject}", salt), 16) / 2**64
    if place < test_fraction:
        return "test"
    return "val" if place < test_fraction + val_fraction else "train"


def image_split_of(sha256: str, salt: str, val_fraction: float, test_fraction: float) -> Split:
    """The split of a picture whose publishers state none: depends on its bytes and the salt alone, so that a picture
    that comes under two names, or in two datasets, is in one split."""
    return split_of(sha256, f"{salt}\0pictures", val_fraction, test_fraction)


def _digest(text: str, salt: str) -> str:
    key = hashlib.blake2b(salt.encode(), digest_size=32).digest()
    return hashlib.blake2b(text.encode(), key=key, digest_size=8).hexdigest()
