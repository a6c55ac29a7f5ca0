"""An export replaces an earlier one as a whole, nothing else, and whatever moment it is killed at."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddscale.deploy import publishing
from ddscale.deploy.exporting import export
from ddscale.deploy.manifest import FILE_NAME
from ddscale.deploy.parity import Checks, ParityError
from ddscale.deploy.publishing import check_is_export, published
from ddscale.deploy.recipe import ExportRecipe

ROOT = Path(__file__).resolve().parents[2]


def fill(folder, precision="fp32", text="weights"):
    """As an export's folder looks from outside."""
    own = folder / precision
    own.mkdir(parents=True)
    (own / "unet.onnx").write_text(text)
    (own / FILE_NAME).write_text(
        json.dumps({"precision": precision, "graphs": {}, "files": {"unet.onnx": {}}})
    )
    return folder


def below(folder):
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*"))]


EXPORT = ["export", "export/fp32", f"export/fp32/{FILE_NAME}", "export/fp32/unet.onnx"]


def begun(out, then):
    """A process that exports to `out`, has come so far and waits: `then` is run inside, and says so."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom ddscale.deploy.publishing import published\n"
        f"out = Path({str(out)!r})\n"
        "def wait(*_):\n    print('there', flush=True)\n    time.sleep(600)\n"
        "with published(out) as new:\n    (new / 'fp32').mkdir()\n"
        f"    {then}\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline() == "there\n"
    return process


# At the moment at which the earlier export is away and the new one is not there.
BETWEEN = (
    "Path.rename = lambda self, to, rename=Path.rename: wait() if self.name == 'new' else rename(self, to)"
)


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_nothing_is_published_when_a_check_fails(tmp_path):
    out = fill(tmp_path / "export")

    def fail():
        with published(out, check_is_export) as new:
            fill(new, text="half done")
            checks = Checks()
            checks.hold("it", 1.0, 0.1)
            checks.finish("fp32")

    with pytest.raises(ParityError):
        fail()
    assert below(tmp_path) == EXPORT
    assert (out / "fp32" / "unet.onnx").read_text() == "weights"


def test_a_finished_export_replaces_the_earlier_one_as_a_whole(tmp_path):
    out = tmp_path / "export"
    for precision in ("fp32", "fp16"):
        with published(out, check_is_export) as new:
            fill(new, precision)
            (new / precision / FILE_NAME).chmod(0o600)
    assert [name for name in below(tmp_path) if name.endswith(".json")] == [f"export/fp16/{FILE_NAME}"]
    assert (out / "fp16" / FILE_NAME).stat().st_mode & 0o777 == 0o644
    assert len(list(tmp_path.iterdir())) == 1


def put(path, text="mine"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("foreign", "make"),
    [
        ("", lambda out: put(out, "a file")),
        ("thesis.tex", lambda out: put(out / "thesis.tex")),
        ("mine", lambda out: put(out / "mine" / FILE_NAME, json.dumps({"datasets": [], "files": {}}))),
        ("fp32", lambda out: put(out / "fp32" / FILE_NAME, json.dumps({"datasets": [], "files": {}}))),
        ("fp32", lambda out: put(out / "fp32" / FILE_NAME, "[" * 200_000)),
        ("fp32", lambda out: (out / "fp32").mkdir(parents=True)),
        ("run", lambda out: put(fill(out) / "run" / "weights.safetensors")),
        ("fp32/pictures", lambda out: put(fill(out) / "fp32" / "pictures" / "0.png")),
    ],
    ids=[
        "file",
        "other file",
        "store",
        "store named so",
        "damaged",
        "empty",
        "run beside",
        "pictures inside",
    ],
)
def test_what_no_export_has_written_is_not_replaced(tmp_path, foreign, make):
    out = tmp_path / "out"
    make(out)
    before = below(tmp_path)
    with (
        pytest.raises(ValueError, match=f"{out / foreign} is there and is no earlier export"),
        published(out, check_is_export),
    ):
        pytest.fail("it must not begin")
    assert below(tmp_path) == before


def test_what_was_put_there_meanwhile_is_not_replaced_either(tmp_path):
    out = fill(tmp_path / "out")

    def publish():
        with published(out, check_is_export) as new:
            fill(new)
            put(out / "thesis.tex")

    with pytest.raises(ValueError, match="thesis"):
        publish()
    assert (out / "thesis.tex").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_engines_belong_to_an_export(tmp_path):
    out = fill(tmp_path / "out")
    put(out / "fp32" / "engines" / "rtx-sm89" / "unet.engine")
    with published(out, check_is_export) as new:
        fill(new)
    assert not (out / "fp32" / "engines").exists()


def test_a_mount_point_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "is_mount", lambda self: self == tmp_path)
    with pytest.raises(ValueError, match="is a mount point"), published(tmp_path):
        pytest.fail("it must not begin")


def test_what_a_killed_export_left_behind_is_removed(tmp_path):
    out = tmp_path / "a [strange] name"
    kill(begun(out, "wait()"))
    assert len(list(tmp_path.iterdir())) == 1
    with published(out) as new:
        fill(new)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_that_of_a_running_export_never_is(tmp_path):
    """Although its process number says nothing: in another container it is another's, or nobody's."""
    out = tmp_path / "export"
    running = begun(out, "wait()")
    try:
        with published(out) as new:
            fill(new)
        (own,) = (path for path in tmp_path.iterdir() if path != out)
        os.utime(own, (0, 0))
        with published(out) as new:
            fill(new)
        assert (own / "new" / "fp32").is_dir()
    finally:
        kill(running)
    with published(out) as new:
        fill(new)
    assert below(tmp_path) == EXPORT


@pytest.mark.parametrize("fails", [False, True])
def test_an_export_killed_while_it_replaced_the_earlier_one_loses_nothing(tmp_path, fails):
    out = fill(tmp_path / "export")
    kill(begun(out, f"{BETWEEN}"))
    assert not out.exists()

    def publish():
        with published(out, check_is_export) as new:
            if fails:
                raise ParityError("it does not hold")
            fill(new, text="new weights")

    if fails:
        with pytest.raises(ParityError):
            publish()
    else:
        publish()
    assert below(tmp_path) == EXPORT
    assert (out / "fp32" / "unet.onnx").read_text() == ("weights" if fails else "new weights")


def test_when_the_new_folder_cannot_be_moved_the_earlier_one_comes_back(tmp_path, monkeypatch):
    out = fill(tmp_path / "export")
    rename = Path.rename

    def refuse(self, to):
        if self.name == "new":
            raise OSError("no space")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="no space"), published(out) as new:
        fill(new, text="new weights")
    assert below(tmp_path) == EXPORT
    assert (out / "fp32" / "unet.onnx").read_text() == "weights"


@pytest.mark.parametrize("locks", [True, False], ids=["locks seen here alone", "no locks"])
def test_what_may_run_on_another_machine_stays_for_a_day(tmp_path, monkeypatch, locks):
    out = tmp_path / "export"
    kill(begun(out, "wait()"))
    if not locks:

        def without(*_):
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(publishing.fcntl, "flock", without)
    else:
        monkeypatch.setattr(publishing, "_this_boot", lambda: "another machine's")
    (left,) = tmp_path.iterdir()
    for age, stays in ((3600, True), (25 * 3600, False)):
        then = time.time() - age
        os.utime(left, (then, then))
        with published(out) as new:
            fill(new)
        assert left.exists() == stays


def test_a_link_stays_and_leads_to_the_new_export(tmp_path):
    real = tmp_path / "disk" / "export"
    link = tmp_path / "export"
    link.symlink_to(real)
    for text in ("weights", "new weights"):
        with published(link, check_is_export) as new:
            fill(new, text=text)
        assert link.is_symlink()
        assert (real / "fp32" / "unet.onnx").read_text() == text
    assert {path.name for path in (tmp_path / "disk").iterdir()} == {"export"}
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "export"}


def test_the_command_refuses_such_a_folder_before_it_reads_any_weights(tmp_path):
    put(tmp_path / "stores" / "mine" / FILE_NAME, json.dumps({"datasets": []}))
    recipe = ExportRecipe(source=str(tmp_path / "no such run"), out=str(tmp_path / "stores"))
    with pytest.raises(ValueError, match="mine is there and is no earlier export"):
        export(recipe)
    assert (tmp_path / "stores" / "mine" / FILE_NAME).exists()
