"""The MOABB source on datasets that need no download, and the recipe with all that do."""

from __future__ import annotations

import builtins
import os
import pickle
from pathlib import Path

import mne
import numpy as np
import pytest

from ddscale import recipes
from ddscale.sources import MoabbSource, list_recordings

moabb = pytest.importorskip("moabb", reason="the extra `moabb` is not installed")
datasets = pytest.importorskip("moabb.datasets")
from moabb.datasets.base import BaseDataset  # noqa: E402

NAMES = ["Fp1", "Cz", "O2", "STI"]
downloads: list[tuple[int, str | None]] = []


def signal(subject: int, session: int, run: int, n_samples: int = 400) -> np.ndarray:
    rng = np.random.default_rng([subject, session, run])
    return np.vstack([rng.normal(scale=20, size=(3, n_samples)), np.zeros((1, n_samples))])


class TinyDataset(BaseDataset):
    """Two sessions of two runs, of which the last has other channels; in V, or in µV with a factor of 1."""

    def __init__(self, unit_factor: float = 1e6) -> None:
        super().__init__(
            subjects=[1, 2, 3], sessions_per_subject=2, events={"a": 1}, code="Tiny", interval=[0, 1],
            paradigm="imagery", doi="", unit_factor=unit_factor,
        )  # fmt: skip

    def _get_single_subject_data(self, subject):
        downloads.append((subject, os.environ.get("MNE_DATA")))
        if subject == 3:
            raise ConnectionError("Name or service not known")
        sessions = {}
        for session in range(2):
            for run in range(2):
                odd = (session, run) == (1, 1)
                names = [*NAMES[:2], "Pz", "STI"] if odd else NAMES
                info = mne.create_info(names, 100, ["eeg"] * 3 + ["stim"])
                raw = mne.io.RawArray(signal(subject, session, run) / self.unit_factor, info, verbose="error")
                sessions.setdefault(str(session), {})[str(run)] = raw
        return sessions

    def data_path(self, *args, **kwargs):
        raise NotImplementedError


class TinyMicrovolts(TinyDataset):
    def __init__(self) -> None:
        super().__init__(unit_factor=1.0)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(datasets, "TinyDataset", TinyDataset, raising=False)
    monkeypatch.setattr(datasets, "TinyMicrovolts", TinyMicrovolts, raising=False)
    downloads.clear()


def source(name: str = "TinyDataset", **more) -> MoabbSource:
    return MoabbSource(kind="moabb", dataset="tiny", name=name, **more)


def test_listing_downloads_nothing():
    listing = list_recordings(source())
    assert [(r.id, r.subject) for r in listing.recordings] == [
        ("subject1", "1"),
        ("subject2", "2"),
        ("subject3", "3"),
    ]
    assert downloads == []
    assert [r.subject for r in list_recordings(source(subjects=[2])).recordings] == ["2"]
    real = list_recordings(source("BNCI2014_001")).recordings
    assert [r.id for r in real] == [f"subject{i}" for i in range(1, 10)]
    assert real[0].size_bytes > 1e6


@pytest.mark.parametrize("name", ["TinyDataset", "TinyMicrovolts"])
def test_runs_of_a_subject_one_after_the_other(name):
    recording = pickle.loads(pickle.dumps(list_recordings(source(name)).recordings[1]))
    with recording.open() as opened:
        assert [c.name for c in opened.channels] == NAMES[:3]
        assert (opened.sfreq, opened.n_samples) == (100.0, 1200)
        assert opened.spans == [(0, 400), (400, 800), (800, 1200)]
        assert list(opened.meta["dropped_runs"]) == ["1/1"]
        expected = np.hstack([signal(2, session, run)[:3] for session, run in ((0, 0), (0, 1), (1, 0))])
        np.testing.assert_allclose(opened.read(0, 1200), expected, rtol=1e-5)
        np.testing.assert_allclose(opened.read(390, 810), expected[:, 390:810], rtol=1e-5)
    assert [subject for subject, _ in downloads] == [2]


def test_moabb_own_fake_dataset():
    recording = list_recordings(source("FakeDataset")).recordings[0]
    with recording.open() as opened:
        assert [c.standard for c in opened.channels] == ["C3", "Cz", "C4"]
        assert len(opened.spans) == 4
        assert opened.read(0, 10).shape == (3, 10)


def test_downloads_go_where_they_are_told_and_nothing_stays_changed(tmp_path, monkeypatch):
    monkeypatch.delenv("MNE_DATA", raising=False)
    folder = tmp_path / "data"
    list_recordings(source(downloads=str(folder))).recordings[0].open().close()
    assert downloads == [(1, str(folder))]
    assert "MNE_DATA" not in os.environ


def test_scratch_files_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    opened = list_recordings(source()).recordings[0].open()
    assert list(tmp_path.iterdir())
    opened.close()
    assert not list(tmp_path.iterdir())


def test_failed_download_names_subject_cause_and_remedy():
    with pytest.raises(
        OSError, match="MOABB TinyDataset, subject 3 could not be had: Name or service.*Check the network"
    ):
        list_recordings(source()).recordings[2].open()


def test_unknown_dataset_and_subject():
    with pytest.raises(ValueError, match="MOABB has no dataset BNCI2014001x. Did you mean BNCI2014_?001"):
        list_recordings(source("BNCI2014001x"))
    with pytest.raises(ValueError, match=r"TinyDataset has no subject 9: MOABB numbers them 1 to 3"):
        list_recordings(source(subjects=[1, 9]))


def test_without_moabb_the_extra_is_named(monkeypatch):
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "moabb.datasets":
            raise ImportError("No module named 'moabb'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ValueError, match=r"pip install 'ddscale\[moabb\]'"):
        list_recordings(source())


RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "ingest" / "moabb.yaml"


def test_shipped_recipe_is_what_moabb_lists():
    """Written anew with `python -m ddscale.sources.moabb > recipes/ingest/moabb.yaml` when MOABB changes."""
    from ddscale.sources.moabb.catalogue import recipe

    shipped = RECIPE.read_text(encoding="utf-8")
    version = shipped.split("MOABB ")[1].split(" ")[0]
    if version != moabb.__version__:
        pytest.skip(
            f"recipes/ingest/moabb.yaml was written for MOABB {version}, installed is {moabb.__version__}"
        )
    assert shipped == recipe()


def test_shipped_recipe_loads_and_each_dataset_is_known():
    from ddscale.ingest.recipe import IngestRecipe

    loaded = recipes.load(RECIPE, IngestRecipe)
    assert len(loaded.sources) > 100
    for entry in loaded.sources:
        assert isinstance(entry, MoabbSource)
        assert hasattr(datasets, entry.name)
        assert "Fake" not in entry.name
