"""OpenVINO beside what else a process does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from deployed import tiny_folder

_SIGNALLED = """
import gc, os, signal, sys
from deployed import eeg
from ddscale.deploy.runtime import EEGToImage

for _ in range(2):
    EEGToImage.load(sys.argv[1], "openvino").generate(eeg(1))
    gc.collect()
heard = []
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
os.kill(os.getpid(), signal.SIGTERM)
assert heard == [signal.SIGTERM]
print("still here")
"""


def test_signals_are_handled_after_a_model_was_let_go(tmp_path):
    """In a process of its own, which the failure ends by a segmentation fault."""
    done = subprocess.run(
        [sys.executable, "-c", _SIGNALLED, str(tiny_folder(tmp_path / "fp32"))],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (0, "still here\n"), done.stderr


def test_files_that_are_links_into_a_cache(toy_export, tmp_path):
    from ddscale.deploy.runtime import EEGToImage

    export = toy_export / "export" / "fp32"
    (tmp_path / "blobs").mkdir()
    for number, file in enumerate(sorted(path for path in export.rglob("*") if path.is_file())):
        link = tmp_path / "snapshot" / file.relative_to(export)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, tmp_path / "blobs" / str(number))
        link.symlink_to(tmp_path / "blobs" / str(number))
    assert EEGToImage.load(tmp_path / "snapshot", "openvino").check() < 1e-4
