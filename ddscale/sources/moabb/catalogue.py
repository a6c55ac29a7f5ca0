"""What MOABB's datasets are, in numbers, and the ingest recipe that has them all."""

from __future__ import annotations

import re
from typing import Any

from ddscale.sources.moabb import open_dataset, package


def describe(dataset: Any) -> dict[str, Any]:
    """What MOABB says of a dataset: paradigm, subjects, channels, sfreq, sessions, hours of trials, gigabytes.

    hours: subjects x trials x their length, None where the table does not give numbers; recordings are longer by
    the pauses, except that the trials of P300 and c-VEP experiments overlap. gigabytes: those hours as 32 bit.
    """
    table = getattr(dataset, "_summary_table", None)
    table = {} if table is None else dict(table)
    metadata = getattr(dataset, "metadata", None)
    acquisition = getattr(metadata, "acquisition", None)
    types: dict[str, int] = dict(acquisition.channel_types or {}) if acquisition is not None else {}
    sfreq = acquisition.sampling_rate if acquisition is not None else None
    subjects = len(dataset.subject_list)
    counts = re.findall(
        r"\d+", str(table.get("#Trials / class", table.get("#Blocks / class", ""))).split(".")[0]
    )
    overlapping = dataset.paradigm in ("p300", "cvep")
    if dataset.paradigm == "p300" and len(counts) == 2:
        trials = sum(map(int, counts))
    elif not overlapping and len(counts) == 1 and table.get("#Classes"):
        trials = int(counts[0]) * int(table["#Classes"])
    else:
        trials = None
    length = table.get("Trials length (s)")
    hours = subjects * trials * float(length) / 3600 if trials and isinstance(length, int | float) else None
    gigabytes = hours * 3600 * sfreq * sum(types.values()) * 4e-9 if hours and sfreq and types else None
    documentation = getattr(metadata, "documentation", None)
    return {
        "paradigm": dataset.paradigm,
        "subjects": subjects,
        "channels": types,
        "sfreq": sfreq,
        "sessions": dataset.n_sessions,
        "hours": hours,
        "overlapping": overlapping,
        "gigabytes": gigabytes,
        "licence": getattr(documentation, "license", None),
        "doi": getattr(documentation, "doi", None) or dataset.doi,
    }


_HEADER = """\
# yaml-language-server: $schema=../schema/ingest.json
# Every dataset that MOABB {version} knows, as one ingest. Written by `python -m ddscale.sources.moabb`; do not edit:
# copy the sources you want into a recipe of your own, or extend this one and override `sources:`.
#
# Nothing is downloaded before a subject is opened, and what has been downloaded is kept. In all {datasets} datasets,
# {subjects} subjects. In the {counted} datasets whose tables give numbers: {hours:.0f} h of trials, {gigabytes:.0f} GB
# as 32 bit. Recordings are longer by the pauses, and downloads differ with the format. Each licence is its own: check
# that it allows what you do. Whoever evaluates on one of these datasets leaves it out here.
#
# For each: paradigm, subjects, channels and rate, sessions, hours of trials (P300 trials overlap: at most).

stage: ingest
out: stores/moabb

sources:
"""


def recipe() -> str:
    """The ingest recipe with all of MOABB's datasets, as YAML text; the same for one version of MOABB."""
    import moabb

    entries, totals = [], {"datasets": 0, "subjects": 0, "hours": 0.0, "counted": 0, "gigabytes": 0.0}
    for name in _names():
        about = describe(open_dataset(name))
        entries.append(_entry(name, about))
        totals["datasets"] += 1
        totals["subjects"] += about["subjects"]
        if about["hours"]:
            totals["hours"] += about["hours"]
            totals["counted"] += 1
            totals["gigabytes"] += about["gigabytes"] or 0.0
    return _HEADER.format(version=moabb.__version__, **totals) + "\n".join(entries)


def _names() -> list[str]:
    """Datasets to list: no test data, no names kept for old code, no parts of a dataset that is listed as a whole."""
    from moabb.datasets.base import BaseDataset
    from moabb.utils import aliases_list

    old = {alias[0] for alias in aliases_list}
    names = sorted(
        name
        for name, found in vars(package()).items()
        if isinstance(found, type) and issubclass(found, BaseDataset) and found is not BaseDataset
        and found.__module__.startswith("moabb.")
        and not name.startswith("Fake") and name not in old
    )  # fmt: skip
    return [
        name
        for name in names
        if not any(name != whole and re.fullmatch(f"{whole}[A-Z]", name) for whole in names)
    ]


def _entry(name: str, about: dict[str, Any]) -> str:
    channels = (
        " + ".join(f"{count} {kind}" for kind, count in about["channels"].items()) or "channels not stated"
    )
    rate = f" at {about['sfreq']:g} Hz" if about["sfreq"] else ""
    if about["hours"]:
        size = f", {about['gigabytes']:.2g} GB" if about["gigabytes"] else ""
        hours = f"; {'at most ' if about['overlapping'] else ''}{about['hours']:.2g} h{size}"
    else:
        hours = "; length not stated"
    sessions = f"{about['sessions']} session{'s' if about['sessions'] != 1 else ''}"
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    lines = [
        f"  # {about['paradigm']}, {about['subjects']} subjects, {channels}{rate}, {sessions}{hours}",
        "  - kind: moabb",
        f"    dataset: {plain}",
        f"    name: {name}",
    ]
    if about["licence"]:
        lines.append(f"    licence: {_quoted(str(about['licence']))}")
    if about["doi"]:
        lines.append(
            f"    url: https://doi.org/{re.sub(r'^(https?://)?(dx.)?(doi.org/)?', '', str(about['doi']))}"
        )
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z][\w .()/-]*", text) else '"' + text.replace('"', "'") + '"'
