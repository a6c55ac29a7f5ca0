"""Whether the demo shows what it is there to show: `python tools/check_demo.py demo/finetune`; exit code 1 if not."""

import json
import sys
from pathlib import Path

ENOUGH = 0.6

found = json.loads((Path(sys.argv[1]) / "evaluation" / "metrics.json").read_text())
eeg, shuffled = (found["conditions"][name]["class_accuracy"] for name in ("eeg", "shuffled_eeg"))
lead = found["eeg_minus"]["shuffled_eeg"]["class_accuracy"]
print(
    f"held-out pictures of the right class: {eeg['value']:.0%} [{eeg['low']:.0%}, {eeg['high']:.0%}]; "
    f"with shuffled EEG {shuffled['value']:.0%} [{shuffled['low']:.0%}, {shuffled['high']:.0%}], chance 10%; "
    f"trial by trial {lead['value']:+.0%} [{lead['low']:+.0%}, {lead['high']:+.0%}]"
)
if eeg["value"] < ENOUGH or lead["low"] <= 0 or not shuffled["low"] <= 0.1 <= shuffled["high"]:
    sys.exit(
        f"error: at least {ENOUGH:.0%} was expected, and chance within the interval of shuffled EEG, and a lead over it"
    )
