"""Stable names for recordings: unique within a dataset, safe in any file name and as a shard key."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

LONGEST = 80


def recording_ids(paths: Sequence[str]) -> list[str]:
    """One id per relative POSIX path, from the path without its extension: letters, digits, `_` and `-` only.

    A path that is too long, or that comes out equal to another, carries eight digits of its own hash.
    """
    plain = [_plain(_without_extension(path)) for path in paths]
    # Counted without case: a store may lie on a file system that does not tell them apart.
    count = Counter(name.lower() for name in plain)
    return [
        _hashed(name, path) if count[name.lower()] > 1 or len(name) > LONGEST else name
        for path, name in zip(paths, plain, strict=True)
    ]


def recording_names(paths: Sequence[str]) -> list[tuple[str, str]]:
    """(id, alias) per relative POSIX path. The id as in `recording_ids`, but with digits of its own hash also where the
    path has letters that an id cannot have: `Möller` and `Müller` must not come to share one later.

    alias: what the path was called where it met no path of the same letters, or met one; empty: never otherwise.
    """
    names = []
    for path, name in zip(paths, recording_ids(paths), strict=True):
        plain, hashed = _plain(_without_extension(path)), _hashed(_plain(_without_extension(path)), path)
        unique = name if path.isascii() else hashed
        alias = hashed if unique != hashed else plain
        names.append((unique, alias if len(alias) <= LONGEST else ""))
    return names


def _hashed(name: str, path: str) -> str:
    return f"{name[: LONGEST - 9]}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"


def _plain(text: str) -> str:
    joined = re.sub(r"[^A-Za-z0-9]+", lambda run: "-" if "-" in run.group() else "_", text)
    return joined.strip("_-") or "recording"


def _without_extension(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return folder + slash + re.sub(r"(?<=.)\.[A-Za-z][A-Za-z0-9]{0,5}(\.gz)?$", "", name)


class SubjectRule:
    """Finds the subject in a relative path: `parent`, `stem` or a regular expression."""

    def __init__(self, rule: str) -> None:
        self.rule = rule
        if rule in ("parent", "stem"):
            self.pattern = None
            return
        try:
            self.pattern = re.compile(rule)
        except re.error as error:
            raise ValueError(
                f"`{rule}` is not a regular expression: {error}. Or write `parent` or `stem`."
            ) from error
        if self.pattern.groups == 0:
            raise ValueError(
                f"`{rule}` has no group: put the part that names the subject in brackets, such as `(sub-[^/]+)`. "
                "Or write `parent` or `stem`."
            )

    def subject(self, relative: str, root_name: str) -> str | None:
        """The subject of a file at the POSIX path `relative` under the folder called `root_name`, or None."""
        *folders, name = relative.split("/")
        if self.rule == "stem":
            return name.split(".")[0] or None
        if self.pattern is None:
            return folders[-1] if folders else root_name
        found = self.pattern.search(relative)
        if found is None:
            return None
        return found.groupdict().get("subject") or found.group(1)
