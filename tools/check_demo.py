"""Whether the demo shows what it is there to show: `python tools/check_demo.py demo/finetune`; exit code 1 if not."""

import json
import sys
from pathlib import Path

ENOUGH = 0.6

conditions = json.loads((Path(sys.argv[1]) / "evaluation" / "metrics.json").read_text())["conditions"]
eeg, shuffled = (conditions[name]["class_accuracy"] for name in ("eeg", "shuffled_eeg"))
print(
    f"held-out pictures of the right class: {eeg['value']:.0%} [{eeg['low']:.0%}, {eeg['high']:.0%}]; "
    f"with shuffled EEG {shuffled['value']:.0%} [{shuffled['low']:.0%}, {shuffled['high']:.0%}], chance 10%"
)
if eeg["value"] < ENOUGH or not shuffled["low"] <= 0.1 <= shuffled["high"]:
    sys.exit(f"error: at least {ENOUGH:.0%} was expected, and chance within the interval of shuffled EEG")
