"""Which records a blocklist means: names of subjects and recordings against the columns of an index. R records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ddscale.store.identity import subject_hash


def rows(
    names: Iterable[str], codes: Mapping[str, np.ndarray], known: Mapping[str, list[str]], salt: str
) -> tuple[np.ndarray, list[str]]:
    """(R,) bool: records of the subjects and recordings named; and the names that fit nothing.

    names: `dataset/subject`, `dataset/<subject's hash>` or `dataset/recording`. codes: (R,) of the columns subject,
    recording and dataset; known: what the codes mean. Raises ValueError for a name without a dataset.
    """
    wanted = np.zeros(len(codes["dataset"]), bool)
    unknown = []
    for name in sorted(set(names)):
        in_dataset, slash, what = name.partition("/")
        if not slash:
            raise ValueError(
                f"blocklist: `{name}` names nobody. Write `dataset/subject` or `dataset/recording`."
            )
        hits = np.zeros(len(wanted), bool)
        if in_dataset in known["dataset"]:
            for column, spellings in (
                ("subject", {what, subject_hash(in_dataset, what, salt)}),
                ("recording", {what}),
            ):
                for spelt in spellings & set(known[column]):
                    hits |= codes[column] == known[column].index(spelt)
            hits &= codes["dataset"] == known["dataset"].index(in_dataset)
        if not hits.any():
            unknown.append(name)
        wanted |= hits
    return wanted, unknown
