"""From the signals of a file to the channels of a recording: kinds, units, and which signals are left out.

Shapes: C channels kept.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ddscale.signal.channels import Channel, standardise
from ddscale.signal.units import microvolts_per
from ddscale.sources.provenance import ChannelKind
from ddscale.sources.recording import UnitSource

Position = tuple[float, float, float]


@dataclass(frozen=True)
class Statements:
    """What a recipe or a sidecar says about a recording; it wins over what the file says of itself.

    unit: of every number in the file. units, kinds: by channel name. bad_channels: names to leave out.
    kinds_must_match: whether a file without any of the names in `kinds` is refused: in a recipe that is a mistake.
    elsewhere: channels that are no potential on the head, and what they are.
    """

    unit: str | None = None
    kinds: Mapping[str, ChannelKind] = field(default_factory=dict)
    kinds_must_match: bool = False
    units: Mapping[str, str] = field(default_factory=dict)
    bad_channels: frozenset[str] = frozenset()
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    positions: Mapping[str, Position] = field(default_factory=dict)
    reference: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Selection:
    """The signals that become channels. index: into the file's signals. scale_C: µV per number of the file."""

    index: list[int]
    channels: list[Channel]
    scale_C: np.ndarray
    unit: str
    unit_source: UnitSource
    dropped: dict[str, str]


def select(
    path: str,
    names: Sequence[str],
    *,
    kinds: Sequence[str | None] | None,
    units: Sequence[str | None],
    statements: Statements,
    assumed: str = "uV",
    positions: Sequence[Position | None] | None = None,
    device: str | None = None,
    unusable: Mapping[str, str] | None = None,
) -> Selection:
    """Decide which signals are channels, of what kind, and what one number of each is in µV.

    names, kinds, units: one per signal, as the reader gives them; an empty unit means that the file is silent,
    and `assumed` is what its format is used to. unusable: signals that cannot be taken, and why.
    Raises ValueError when nothing is left, or when no channel bears any of the names the recipe gives kinds to.
    """
    if statements.kinds_must_match and statements.kinds and not set(statements.kinds) & set(names):
        raise ValueError(
            f"{path} has none of the channels that `kinds:` names ({', '.join(sorted(statements.kinds))}); it has "
            f"{', '.join(names[:40])}."
        )
    channels = standardise(list(names), kinds, positions, device)
    dropped = dict(unusable or {})
    kept: list[tuple[int, Channel, float, str, UnitSource]] = []
    for i, (name, channel) in enumerate(zip(names, channels, strict=True)):
        channel = replace(
            channel,
            kind=statements.kinds.get(name, channel.kind),
            position=statements.positions.get(name, channel.position),
        )
        unit, source = _unit_of(name, units[i], statements, assumed)
        scale = microvolts_in(unit)
        if name in dropped:
            continue
        if channel.kind == "stim":
            dropped[name] = "stimulus channel"
        elif name in statements.elsewhere:
            dropped[name] = f"of type {statements.elsewhere[name]}"
        elif name in statements.bad_channels:
            dropped[name] = "marked bad"
        elif scale is None:
            dropped[name] = f"measured in {unit}, not a voltage"
        else:
            kept.append((i, channel, scale, unit, source))
    if not kept:
        reasons = "; ".join(f"{count} {reason}" for reason, count in Counter(dropped.values()).most_common())
        raise ValueError(f"{path} has no channel that could be EEG ({reasons}). Exclude it from the source.")
    unit, unit_source = Counter((unit, source) for *_, unit, source in kept).most_common(1)[0][0]
    return Selection(
        index=[i for i, *_ in kept],
        channels=[channel for _, channel, *_ in kept],
        scale_C=np.array([scale for _, _, scale, *_ in kept]),
        unit={1e6: "V", 1e3: "mV", 1.0: "uV", 1e-3: "nV"}[microvolts_in(unit) or 1.0],
        unit_source=unit_source,
        dropped=dropped,
    )


def _unit_of(name: str, in_file: str | None, statements: Statements, assumed: str) -> tuple[str, UnitSource]:
    """The unit of one signal's numbers. A recipe's unit is not meant for signals that are no voltage at all."""
    stated = statements.units.get(name) or in_file or ""
    if not is_stated(stated):
        return (statements.unit, "recipe") if statements.unit else (assumed, "assumed")
    if statements.unit and microvolts_in(stated) is not None:
        return statements.unit, "recipe"
    return stated, "file"


def is_stated(unit: str) -> bool:
    """Whether a header's unit field says anything."""
    return unit.strip().lower() not in ("", "-", "n/a", "na", "none", "unknown", "?")


def microvolts_in(unit: str) -> float | None:
    """µV per `unit` as headers write it, or None when it is not a voltage."""
    plain = unit.strip()
    for mojibake in (
        "\x83\xca",
        "Î¼",
        "Âµ",
        "\ufffd",
    ):  # µ in Shift-JIS and UTF-8 read as Latin-1; µ that was lost
        plain = plain.replace(mojibake, "u")
    plain = plain.replace("uVolt", "uV").replace("mVolt", "mV")
    try:
        scale = microvolts_per(plain)
    except ValueError:
        return None
    return scale if math.isfinite(scale) else None
