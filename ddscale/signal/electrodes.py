"""Electrode names and template positions: the 10-05 system, BioSemi's A-H banks, EGI's HydroCel nets.

Positions are MNE's template montages (metres, the montage's own head): good enough to tell neighbours apart,
not a digitisation.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

Position = tuple[float, float, float]

# The temporal electrodes had other names before the 10-10 system (ACNS guideline 2, 2006).
_OLD_NAMES = {"T3": "T7", "T4": "T8", "T5": "P7", "T6": "P8"}
EARS_AND_MASTOIDS = frozenset({"A1", "A2", "M1", "M2"})
# Fewer labels like A1, A3 or E1, E2 than this do not make a BioSemi cap or an EGI net: A1 and A2 alone are
# ears, E1 and E2 alone the eyes of a sleep recording.
_MIN_DEVICE_LABELS = 8

_BANK = re.compile(r"(?:1-)?([A-H])0?([1-9]|[12]\d|3[0-2])", re.IGNORECASE)
_EGI = re.compile(r"E\s?0{0,2}([1-9]\d{0,2})", re.IGNORECASE)
_NUMBER = re.compile(r"0{0,2}([1-9]\d{0,2})")


def standard_name(label: str) -> str | None:
    """The 10-05 spelling of an electrode label ("FP1" -> "Fp1", "T3" -> "T7"); None when it is not one."""
    known = _names_1005().get(label.strip().upper())
    return None if known is None else _OLD_NAMES.get(known, known)


def position_1005(name: str) -> Position | None:
    """Template position of a 10-05 electrode, metres; None for an unknown name."""
    return _positions("colin27_1005").get(name)


def biosemi(labels: Sequence[str]) -> dict[int, tuple[str, Position | None]]:
    """Recognise a BioSemi cap from its bank labels (A1..A32, B1..); index -> (standard name, position).

    The caps of 16, 32 and 64 electrodes sit at 10-20 positions and get those names; the 128, 160 and 256
    ones sit at BioSemi's own ABC positions and keep the bank label. Empty when the labels are no such cap.
    """
    banks = {i: m for i, label in enumerate(labels) if (m := _BANK.fullmatch(label.strip()))}
    sites = {i: (m[1].upper(), int(m[2])) for i, m in banks.items()}
    # 10-05 itself has C1..C6, P1.. and so on: only bank A beyond the two ears proves a cap.
    if sum(letter == "A" for letter, _ in sites.values()) < _MIN_DEVICE_LABELS:
        return {}
    last_bank = max(letter for letter, _ in sites.values())
    if last_bank == "A":
        size = 16 if max(number for _, number in sites.values()) <= 16 else 32
    else:
        size = next(
            n for banks_end, n in (("B", 64), ("D", 128), ("E", 160), ("H", 256)) if last_bank <= banks_end
        )
    positions = _positions(f"biosemi{size}")
    names = list(positions)  # in electrode order: A1..A32, B1..B32, ...
    found: dict[int, tuple[str, Position | None]] = {}
    for i, (letter, number) in sites.items():
        k = 32 * (ord(letter) - ord("A")) + number - 1
        if k < len(names):
            found[i] = (names[k], positions[names[k]])
    return found


def egi(labels: Sequence[str], device: str | None) -> dict[int, tuple[str, Position | None]]:
    """Recognise an EGI net from labels E1..E256 (plain numbers too when `device` names EGI); index -> (name, position).

    Positions are those of the smallest HydroCel net with that many electrodes, and are left out when the
    device is an older Geodesic Sensor Net, whose electrodes sit elsewhere.
    """
    named = bool(device and re.search(r"\bEGI\b|geodesic|hydrocel|\bGSN\b|netstation", device, re.IGNORECASE))
    sites = {i: int(m[1]) for i, label in enumerate(labels) if (m := _EGI.fullmatch(label.strip()))}
    if named and not sites:
        sites = {i: int(m[1]) for i, label in enumerate(labels) if (m := _NUMBER.fullmatch(label.strip()))}
    if len(sites) < (1 if named else _MIN_DEVICE_LABELS) or max(sites.values()) > 257:
        return {}
    last = max(sites.values())
    nets = ((32, "32"), (33, "32"), (64, "64_1.0"), (65, "65_1.0"), (128, "128"), (129, "129"), (256, "256"))
    net = next((name for size, name in nets if last <= size), "257")
    older = bool(
        device and re.search(r"GSN[ -]?200|geodesic sensor net(?!.*hydrocel)", device, re.IGNORECASE)
    )
    positions = {} if older else _positions(f"GSN-HydroCel-{net}")
    found: dict[int, tuple[str, Position | None]] = {}
    for i, number in sites.items():
        name = f"E{number}"
        # The net's last, odd electrode is the vertex reference, which MNE calls Cz.
        vertex = number in (33, 65, 129, 257) and name not in positions
        found[i] = (name, positions.get("Cz") if vertex else positions.get(name))
    return found


@functools.cache
def _names_1005() -> dict[str, str]:
    return {name.upper(): name for name in _positions("colin27_1005")}


@functools.cache
def _positions(montage: str) -> dict[str, Position]:
    import mne.channels

    if montage == "colin27_1005" and montage not in mne.channels.get_builtin_montages():
        montage = "standard_1005"  # the same electrodes under the name they had before MNE 1.13
    found = mne.channels.make_standard_montage(montage).get_positions()["ch_pos"]
    return {name: (float(x), float(y), float(z)) for name, (x, y, z) in found.items()}
