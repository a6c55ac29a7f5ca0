"""What annotations say about the signal by their descriptions, in MNE's custom. Compared without case, as MNE does."""

from __future__ import annotations

# Where recording was interrupted.
_BREAKS = ("boundary", "bad boundary", "new segment/")
_EDGE = "edge"
# What these cover are no samples of anything.
_SKIP = "bad_acq_skip"
# What a person marked as bad; MNE itself puts a word in front when it exports to BrainVision.
_BAD = ("bad", "comment/bad")


def is_break(description: str) -> bool:
    """Whether the recording was interrupted where the annotation begins."""
    plain = description.lower()
    return plain in _BREAKS or plain.startswith((_EDGE, _SKIP))


def is_skip(description: str) -> bool:
    """Whether nothing was recorded while the annotation lasts."""
    return description.lower().startswith(_SKIP)


def is_bad(description: str) -> bool:
    """Whether somebody marked the signal under the annotation as bad."""
    return description.lower().startswith(_BAD) and not is_break(description)
