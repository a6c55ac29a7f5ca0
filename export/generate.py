"""Pictures from EEG without torch: `python export/generate.py FOLDER --eeg windows.npy --out PICTURES`.

FOLDER is one precision of an export. Without --eeg, the made-up EEG that the export was checked on is drawn from.
"""

from __future__ import annotations

import argparse
import os
import sys

from ddscale.deploy.runtime import PROVIDERS, EEGToImage
from ddscale.deploy.runtime.files import Settings, draw, golden_eeg, read_eeg


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="with manifest.json")
    parser.add_argument("--eeg", help=".npy of (windows, channels, samples) or (channels, samples), µV")
    parser.add_argument("--out", default="pictures", help="folder to write")
    parser.add_argument("--steps", type=int, help="of those exported; by default the first")
    parser.add_argument("--scheduler", help="of those exported; by default the first")
    parser.add_argument("--guidance", type=float, default=3.0, help="1: none, at half the cost")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=1, help="pictures for each window")
    parser.add_argument(
        "--sfreq", type=float, help="the EEG's sampling rate, Hz; refused when not the model's"
    )
    parser.add_argument("--unit", default="uV", help="the EEG's unit; refused when not the model's")
    parser.add_argument("--provider", default="cpu", choices=PROVIDERS)
    parser.add_argument("--decoder", default="full", choices=("full", "tiny"))
    given = parser.parse_args()
    windows = golden_eeg(given.folder) if given.eeg is None else read_eeg(given.eeg)
    model = EEGToImage.load(given.folder, given.provider, given.decoder)
    names = ("steps", "scheduler", "guidance", "seed", "samples", "sfreq", "unit")
    settings = Settings(**{name: getattr(given, name) for name in names})
    facts = {"eeg": given.eeg or "golden", "folder": given.folder, "decoder": given.decoder}
    progress = sys.stderr.isatty()

    def tell(done: int) -> None:
        if progress:
            print(f"\r{done} of {len(windows)} windows", end="", file=sys.stderr)

    paths = draw(model, windows, given.out, settings, facts, tell)
    print(f"{len(paths)} pictures in {given.out}, {model.timings.total / model.timings.pictures:.3f} s each")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        if os.environ.get("DDSCALE_TRACEBACK"):
            raise
        sys.exit(f"error: {error}")
