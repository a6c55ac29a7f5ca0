"""The HTTP service as a process of its own, for tests over real connections."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import psutil
from deployed import eeg

ROOT = Path(__file__).resolve().parents[1]
CHANNELS, SAMPLES = 64, 512
MIB = 2**20


class Server:
    """`python -m ddscale.deploy.serving` on a port of its own choice."""

    def __init__(self, folder, *options):
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "ddscale.deploy.serving",
                str(folder),
                "--port",
                "0",
                "--threads",
                "1",
                *options,
            ],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self.said = []
        while not (found := re.search(r"running on (http://\S+)", self.said[-1] if self.said else "")):
            line = self.process.stderr.readline()
            assert line, "".join(self.said)
            self.said.append(line)
        self.url = found.group(1)
        while httpx.get(f"{self.url}/ready", timeout=60).status_code != 200:
            time.sleep(0.05)

    def counts(self):
        lines = httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def memory(self):
        return psutil.Process(self.process.pid).memory_info().rss

    def stop(self, number=signal.SIGTERM):
        """Ask it to stop; returns the rest of what it said."""
        self.process.send_signal(number)
        try:
            return self.process.communicate(timeout=120)[1]
        finally:
            self.process.kill()


def body_of(windows):
    buffer = io.BytesIO()
    np.save(buffer, eeg(windows, channels=CHANNELS, samples=SAMPLES))
    return buffer.getvalue()
