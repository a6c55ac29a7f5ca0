"""The arrays source: layouts, kinds of files, stretches against the whole array, and refusals."""

from __future__ import annotations

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from ddscale import recipes
from ddscale.sources import ArraysSource, list_recordings

SIGNAL_CT = np.random.default_rng(0).normal(scale=20, size=(4, 1000))
NAMES = ["Fp1", "Cz", "O2", "EOG1"]


def opened(path: Path, **more):
    settings = {"kind": "arrays", "dataset": "d", "folder": str(path.parent), "sfreq": 250.0, "unit": "uV"}
    source = ArraysSource.model_validate(settings | {"include": [path.name]} | more)
    (recording,) = list_recordings(source).recordings
    return recording.open()


def check(recording, expected_CT=SIGNAL_CT, **tolerance):
    with recording:
        assert recording.n_samples == expected_CT.shape[1]
        for start, stop in [
            (0, 1),
            (0, expected_CT.shape[1]),
            (333, 777),
            (expected_CT.shape[1] - 1, expected_CT.shape[1]),
        ]:
            np.testing.assert_allclose(recording.read(start, stop), expected_CT[:, start:stop], **tolerance)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("axes", ["CT", "TC"])
def test_npy(tmp_path, axes, order):
    array = SIGNAL_CT if axes == "CT" else SIGNAL_CT.T
    np.save(tmp_path / "a.npy", np.asarray(array, order=order))
    recording = opened(tmp_path / "a.npy", axes=axes, channels=NAMES)
    assert [(c.name, c.kind) for c in recording.channels] == [
        (n, "eog" if "EOG" in n else "eeg") for n in NAMES
    ]
    assert (recording.sfreq, recording.unit_source) == (250.0, "recipe")
    check(recording)


def test_integers_in_another_unit(tmp_path):
    integers = np.round(SIGNAL_CT).astype(np.int16)
    np.save(tmp_path / "a.npy", integers)
    check(opened(tmp_path / "a.npy", axes="CT", unit="mV", channels=4), integers * 1000.0)


@pytest.mark.parametrize("axes", ["RCT", "RTC"])
def test_repetitions_are_laid_end_to_end_with_interruptions(tmp_path, axes):
    trials_RCT = SIGNAL_CT.reshape(4, 10, 100).transpose(1, 0, 2)
    np.save(tmp_path / "a.npy", trials_RCT if axes == "RCT" else trials_RCT.transpose(0, 2, 1))
    recording = opened(tmp_path / "a.npy", axes=axes, channels=NAMES)
    assert recording.spans == [(100 * r, 100 * r + 100) for r in range(10)]
    check(recording)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    save(tmp_path / "a.npz", eeg=SIGNAL_CT, labels=np.arange(3))
    check(opened(tmp_path / "a.npz", axes="CT", key="eeg"))
    with pytest.raises(ValueError, match="holds eeg, labels: say which with `key:`"):
        opened(tmp_path / "a.npz", axes="CT")
    with pytest.raises(ValueError, match="has no array 'EEG'; it holds eeg, labels"):
        opened(tmp_path / "a.npz", axes="CT", key="EEG")


def test_hdf5(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw/eeg"] = SIGNAL_CT
        file["raw/times"] = np.arange(1000)
    check(opened(tmp_path / "a.h5", axes="CT"))  # the only array of two dimensions
    check(opened(tmp_path / "a.h5", axes="CT", key="raw/eeg"))
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["other"] = SIGNAL_CT
    with pytest.raises(ValueError, match=r"holds other \(4, 1000\), raw/eeg \(4, 1000\): say which"):
        opened(tmp_path / "a.h5", axes="CT")


def test_matlab(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"X": SIGNAL_CT, "fs": 250.0}, do_compression=True)
    check(opened(tmp_path / "a.mat", axes="CT", key="X"))
    scipy.io.savemat(tmp_path / "b.mat", {"EEG": {"data": SIGNAL_CT, "srate": 250.0}})
    check(opened(tmp_path / "b.mat", axes="CT", key="EEG/data"))
    with pytest.raises(ValueError, match="has no array 'EEG/signal'; it holds data, srate"):
        opened(tmp_path / "b.mat", axes="CT", key="EEG/signal")


def test_matlab_73_axes_are_as_matlab_shows_them(tmp_path):
    with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
        file["X"] = SIGNAL_CT.T  # what MATLAB writes for a 4 x 1000 matrix
    with (tmp_path / "a.mat").open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116) + bytes(8) + b"\x00\x02IM")
    check(opened(tmp_path / "a.mat", axes="CT", channels=4))


def write_table(path: Path, rows=SIGNAL_CT.T, before="", delimiter=",", names=None) -> Path:
    lines = [delimiter.join(f"{value:.6f}" for value in row) for row in rows]
    path.write_text(before + (delimiter.join(names) + "\n" if names else "") + "\n".join(lines) + "\n")
    return path


def test_csv_with_header_and_columns(tmp_path):
    time_TC = np.column_stack([np.arange(1000), SIGNAL_CT.T])
    path = write_table(
        tmp_path / "a.csv", time_TC, names=["time", *NAMES], before="% recorded\n% by someone\n"
    )
    text = {"comment": "%", "header": True, "columns": ["O2", "Fp1"]}
    recording = opened(path, text=text)
    assert [c.name for c in recording.channels] == ["O2", "Fp1"]
    check(recording, SIGNAL_CT[[2, 0]], atol=1e-6)
    recording = opened(path, text=text, channels=["right", "left"])
    assert [c.name for c in recording.channels] == ["right", "left"]
    recording.close()


@pytest.mark.parametrize(("name", "delimiter", "said"), [
    ("a.tsv", "\t", None), ("a.txt", ";", ";"), ("a.txt", "   ", "whitespace"), ("a.txt", ",", None),
])  # fmt: skip
def test_delimiters(tmp_path, name, delimiter, said):
    path = write_table(tmp_path / name, delimiter=delimiter)
    check(opened(path, text={"delimiter": said}, channels=NAMES), atol=1e-6)


def test_decimal_commas_are_read_where_stated_and_explained_elsewhere(tmp_path):
    path = write_table(tmp_path / "a.csv", delimiter=";")
    path.write_text(path.read_text().replace(".", ","))
    check(opened(path, text={"delimiter": ";", "decimal": ","}), atol=1e-6)
    with pytest.raises(ValueError, match=r"is no number\. State `text\.decimal: \",\"`"):
        opened(path, text={"delimiter": ";"})
    with pytest.raises(
        ValueError, match=r"cannot separate columns and decimals at once: state `text\.delimiter:`"
    ):
        opened(path, text={"decimal": ","})


def test_table_longer_than_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr("ddscale.sources.array_files._TEXT_ROWS", 64)
    path = write_table(tmp_path / "a.csv")
    check(opened(path, text={"columns": [3, 1]}), SIGNAL_CT[[3, 1]], atol=1e-6)


def test_empty_cells_are_missing_samples(tmp_path):
    (tmp_path / "a.csv").write_text("1,2\n3,\n5,6\n")
    with opened(tmp_path / "a.csv") as recording:
        assert np.isnan(recording.read(0, 3)[1, 1])


def test_unpacked_files_are_removed_on_closing(tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    path = write_table(tmp_path / "a.csv")
    recording = opened(path)
    assert list(scratch.iterdir())
    recording.close()
    recording.close()
    assert not list(scratch.iterdir())
    with pytest.raises(ValueError):
        opened(path, channels=7)
    assert not list(scratch.iterdir()), "nor when opening fails"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"axes": "TC", "channels": 4},
            r"has 1000 channels by `axes: TC`.*states 4 \(are the axes the other way round",
        ),
        ({"axes": "CT", "channels": ["A", "B"]}, "has 4 channels .* states 2: correct"),
        ({"axes": "RCT"}, r"shape \(4, 1000\), and `axes: RCT` needs 3 dimensions"),
    ],
)
def test_layout_that_does_not_fit(tmp_path, more, message):
    np.save(tmp_path / "a.npy", SIGNAL_CT)
    with pytest.raises(ValueError, match=message):
        opened(tmp_path / "a.npy", **more)


def test_text_that_is_no_table_of_numbers(tmp_path):
    path = write_table(tmp_path / "a.csv", names=NAMES)
    with pytest.raises(ValueError, match="'Fp1' in column .* is no number.*`text.header:`"):
        opened(path)
    with pytest.raises(ValueError, match="has no column Pz; it has 4: Fp1, Cz, O2, EOG1"):
        opened(path, text={"header": True, "columns": ["Fp1", "Pz"]})
    path.write_text("Fp1,Cz\n1,2\n3,four\n")
    with pytest.raises(ValueError, match="'four' in column 'Cz', sample 1, is no number"):
        opened(path, text={"header": True})


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_pickles_are_never_executed(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[Evil(), Evil()]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"a\.npy: .*not numbers"):
        opened(tmp_path / "a.npy", axes="CT")
    np.savez(tmp_path / "b.npz", eeg=np.array([[Evil()]], dtype=object))
    with pytest.raises(ValueError, match=r"b\.npz: .*not numbers"):
        opened(tmp_path / "b.npz", axes="CT")
    (tmp_path / "c.npy").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="is no array of a kind known here"):
        opened(tmp_path / "c.npy", axes="CT")


def test_damaged_and_empty_arrays(tmp_path):
    np.save(tmp_path / "a.npy", SIGNAL_CT)
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"a\.npy is damaged or cut short"):
        opened(tmp_path / "a.npy", axes="CT")
    (tmp_path / "b.csv").write_bytes(b"")
    with pytest.raises(ValueError, match=r"b\.csv is empty"):
        opened(tmp_path / "b.csv")
    np.save(tmp_path / "c.npy", np.zeros((4, 0)))
    with pytest.raises(ValueError, match="holds no samples"):
        opened(tmp_path / "c.npy", axes="CT")


def test_mistakes_in_a_recipe():
    recipe = {"kind": "arrays", "dataset": "d", "folder": "x", "sfreq": 0.0, "axes": "CTR"}
    with pytest.raises(recipes.RecipeError) as error:
        recipes.check(recipe, ArraysSource, "recipe.yaml")
    for part in ("sfreq", "axes", "unit: required"):
        assert part in str(error.value)
    with pytest.raises(recipes.RecipeError, match=r"set `text\.header: true`"):
        recipes.check(
            recipe | {"sfreq": 1.0, "axes": "TC", "unit": "uV", "text": {"columns": ["A"]}}, ArraysSource, "r"
        )
