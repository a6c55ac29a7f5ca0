"""Channel names of real recordings, made comparable: standard name, kind and position of every channel."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ddscale.signal.electrodes import EARS_AND_MASTOIDS, Position, biosemi, egi, position_1005, standard_name

Kind = Literal["eeg", "eog", "emg", "ecg", "stim", "ref", "misc"]


@dataclass(frozen=True)
class Channel:
    """One channel of a recording."""

    name: str
    """As the recording gives it."""
    standard: str | None
    """10-05 spelling ("Fp1"), EGI ("E12") or BioSemi ABC ("B7"); None when unknown, bipolar or a repetition."""
    kind: Kind
    position: Position | None = None
    """Metres; the recording's own where it has one, otherwise a template's."""
    pair: tuple[str, str] | None = None
    """(electrode, the one it is measured against) when the label states both electrodes."""


# What a reader may call a channel (MNE's types), as far as it decides our kind. Intracranial and magnetic
# channels are not scalp EEG: misc.
_READER_KINDS: dict[str, Kind] = {
    "eeg": "eeg", "eog": "eog", "emg": "emg", "ecg": "ecg", "stim": "stim", "ref": "ref", "ref_meg": "ref",
    "misc": "misc", "bio": "misc", "resp": "misc", "exci": "misc", "syst": "misc", "gsr": "misc", "ias": "misc",
    "temperature": "misc", "seeg": "misc", "ecog": "misc", "dbs": "misc", "mag": "misc", "grad": "misc",
    "chpi": "misc", "dipole": "misc", "gof": "misc", "hbo": "misc", "hbr": "misc", "eyegaze": "misc", "pupil": "misc",
}  # fmt: skip

# Tried in order on the label without prefix, suffix and case; the first that matches decides.
_PATTERNS: dict[Kind, str] = {
    "stim": r"(bio\s?semi[ _])?status|stim\w*\b.*|sti[ _]?\d*|d?trig(ger)?s?[ _]?\w*|marker.*|mkr.*|events?.*"
    r"|(edf |bdf )?annotations?|din\d*|digital.*",
    "eog": r".*eog.*|[lr]oc|[vh]eo[glrud]?",
    "ecg": r".*e[ck]g.*",
    "emg": r".*emg.*|chin\d?",
    "ref": r"ref.*|v ?ref|cms|drl|gnd|ground|com",
    "misc": r"exg\d*|aux.*|acc.*|gyr.*|mag[nxyz].*|gsr\d*|eda|resp.*|plet.*|ppg.*|temp.*|s[pa]o2|osat|pulse.*"
    r"|photic|pho|misc.*|dc[ _]?\d+|ana\d+|erg\d+|audio.*|light.*|photo.*|sound.*|snore|(air)?flow|abdo.*|thor.*"
    r"|ibi|bursts?|suppr|pr|bp\d*|timestamp.*|sample.?index|battery.*|packet.*|counter|not.?used",
}
_KIND_OF_NAME = [(re.compile(pattern, re.IGNORECASE), kind) for kind, pattern in _PATTERNS.items()]
_PREFIX = re.compile(r"(EEG|POL|EOG|E[CK]G|EMG|DIG|MISC|REF)[ _:]+(?=\S)", re.IGNORECASE)
_KIND_OF_PREFIX: dict[str, Kind] = {
    "EOG": "eog", "ECG": "ecg", "EKG": "ecg", "EMG": "emg", "DIG": "stim", "MISC": "misc", "REF": "ref",
}  # fmt: skip
# What stands after the hyphen when it is a common reference rather than a second electrode:
# REF, LE (linked ears), AR/AVG/CAR (average), a pair of ears or mastoids, the vertex of an EGI net.
_REFERENCE = re.compile(
    r"v?ref\d?|le|ar|av|avg|aver(age)?|car|linked.*|ears?|mast.*|a1[+/ ]?a2|m1[+/ ]?m2|[am][12]|com(mon)?|nose|cms",
    re.IGNORECASE,
)
_EYES = frozenset({"E1", "E2"})  # left and right outer canthus against a mastoid, in sleep recordings (AASM)


def standardise(
    names: Sequence[str],
    kinds: Sequence[str | None] | None = None,
    positions: Sequence[Position | None] | None = None,
    device: str | None = None,
) -> list[Channel]:
    """Describe every channel of one recording.

    names: labels as the recording gives them, all of them: an EGI net or a BioSemi cap is recognised from the
        whole set (so A1 and A2 alone stay ear references).
    kinds: what the reader says each channel is (MNE's types, or None). A reader that says "eeg" is overruled by
        a name that says otherwise, since many formats have no types; any other statement is believed.
    positions: the recording's own electrode positions, metres, or None where it has none.
    device: maker and model when known; lets plain numbers be read as EGI electrodes.
    Returns one Channel per name, in order. Each standard name occurs once: a repetition gets None.
    Raises ValueError when the lengths differ.
    """
    kinds = [None] * len(names) if kinds is None else kinds
    positions = [None] * len(names) if positions is None else positions
    if not len(names) == len(kinds) == len(positions):
        raise ValueError(
            f"{len(names)} channel names, {len(kinds)} kinds and {len(positions)} positions: "
            "give one of each per channel."
        )
    labels = [_label(name) for name in names]
    nets = biosemi(labels) or egi(labels, device)
    common = _common_reference(labels)
    channels = [
        _electrode(name, *nets[i], _said(kind)) if i in nets else _describe(name, _said(kind), common)
        for i, (name, kind) in enumerate(zip(names, kinds, strict=True))
    ]
    taken: set[str] = set()
    for i, channel in enumerate(channels):
        if channel.standard in taken:
            channel = replace(channel, standard=None, position=None)
        elif channel.standard is not None:
            taken.add(channel.standard)
        own = positions[i]
        channels[i] = channel if own is None else replace(channel, position=own)
    return channels


def _label(name: str) -> str:
    """The electrode part of a label: "EEG Fp1." -> "Fp1"."""
    label = re.sub(r"\s+", " ", name.strip()).strip(".")  # PhysioNet pads names with dots
    return _PREFIX.sub("", label, count=1).strip()


def _parts(label: str) -> tuple[str, str | None]:
    """Electrode and what it is measured against: "Fp1-F7" -> ("Fp1", "F7"), "Fp1-0" (a repetition) -> ("Fp1", None)."""
    pieces = [piece.strip() for piece in re.split(r"\s?[-–]\s?", label) if piece.strip()]
    while len(pieces) > 1 and pieces[-1].isdigit():
        pieces.pop()  # MNE and EDF tools number repeated labels
    return (
        (pieces[0], pieces[1])
        if len(pieces) == 2
        else (label if len(pieces) > 2 else (pieces or [label])[0], None)
    )


def _common_reference(labels: Sequence[str]) -> str | None:
    """The scalp electrode that at least four channels, and all that state one, are measured against; or None."""
    against = Counter()  # type: Counter[str]
    for label in labels:
        electrode, other = _parts(label)
        if other is not None and standard_name(electrode) and (name := standard_name(other)):
            against[name] += 1
    return next(iter(against)) if len(against) == 1 and against.total() >= 4 else None


def _said(reader_kind: str | None) -> Kind:
    return _READER_KINDS.get((reader_kind or "eeg").lower(), "misc")


def _electrode(name: str, standard: str, position: Position | None, said: Kind) -> Channel:
    """An electrode of a recognised net or cap."""
    return Channel(name, standard, said, position) if said == "eeg" else Channel(name, None, said)


def _describe(name: str, said: Kind, common: str | None) -> Channel:
    """A channel that is not part of a recognised net, by its own label and by what the reader said."""
    if said != "eeg":
        return Channel(name, None, said)
    prefix = _PREFIX.match(name.strip())
    if prefix and (kind := _KIND_OF_PREFIX.get(prefix[1].upper())):
        return Channel(name, None, kind)
    label = _label(name)
    electrode, other = _parts(label)
    if electrode.upper() in _EYES and other is not None and other.upper() in EARS_AND_MASTOIDS:
        return Channel(name, None, "eog")
    standard = standard_name(electrode)
    if standard is None:
        return Channel(name, None, _kind_of(label) or _kind_of(electrode) or "eeg")
    against = None if other is None else standard_name(other)
    pair = None if against is None else (standard, against)
    if other is not None and against != common and not _REFERENCE.fullmatch(other):
        return Channel(name, None, "eeg", pair=(standard, against or other))
    return Channel(
        name, standard, "ref" if standard in EARS_AND_MASTOIDS else "eeg", position_1005(standard), pair
    )


def _kind_of(label: str) -> Kind | None:
    for pattern, kind in _KIND_OF_NAME:
        if pattern.fullmatch(label):
            return kind
    return None
