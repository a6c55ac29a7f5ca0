"""Latency of an export beside PyTorch: `python export/benchmark.py FOLDER [--out bench]`.

Writes benchmark.json and benchmark.png, prints a table. PyTorch runs the weights that the export was made from.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console

from ddscale.deploy.benchmark.measuring import Settings, benchmark
from ddscale.deploy.benchmark.showing import as_table, conclusions, plot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="one precision of an export, or the folder of all")
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder to write")
    parser.add_argument("--batches", type=int, nargs="+", default=[1], help="pictures at once")
    parser.add_argument("--rounds", type=int, default=15, help="calls of each engine that count")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=0, help="for all engines; 0: PyTorch's own choice")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--original", action="store_true", help="also 250 PLMS steps with the full VAE")
    parser.add_argument("--conditioner", help="the weights that the recipe's `conditioner` named")
    parser.add_argument("--tiny-decoder", help="the weights that tiny_decoder was exported from")
    given = parser.parse_args()
    settings = Settings(
        batches=tuple(given.batches),
        rounds=given.rounds,
        guidance=given.guidance,
        threads=given.threads,
        compiled=not given.no_compile,
        original=given.original,
        conditioner=given.conditioner,
        tiny_decoder=given.tiny_decoder,
    )
    result = benchmark(given.folder, settings, lambda line: print(line, flush=True))
    given.out.mkdir(parents=True, exist_ok=True)
    result.save(given.out / "benchmark.json")
    plot(result, given.out / "benchmark.png")
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(as_table(result))
    for line in conclusions(result):
        print(line)
    print(f"written: {given.out / 'benchmark.json'}, {given.out / 'benchmark.png'}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if os.environ.get("DDSCALE_TRACEBACK"):
            raise
        sys.exit(f"error: {error}")
