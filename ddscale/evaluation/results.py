"""Results as JSON files: whole or not at all, and without the NaN that JSON does not know."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ddscale.store.layout import written_whole


def number(value: float) -> float | None:
    """A number for JSON: None where there is none."""
    return float(value) if math.isfinite(value) else None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a result; raises OSError when the folder cannot be written."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
