"""The files source: what is listed and how it is called, formats by content, units, interruptions, refusals."""

from __future__ import annotations

import gzip
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import edfio
import mne
import numpy as np
import pybv
import pytest
import yaml

from ddscale import recipes
from ddscale.sources import FilesSource, list_recordings
from ddscale.sources.files import open_file
from ddscale.sources.identity import recording_ids
from ddscale.sources.selection import Statements


def eeg(n_channels: int = 3, n_samples: int = 500, seed: int = 0) -> np.ndarray:
    """(C, T) µV."""
    return np.random.default_rng(seed).normal(scale=20, size=(n_channels, n_samples)).round(1)


def write_edf(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = eeg(seed=seed)
    edfio.Edf(
        [
            edfio.EdfSignal(
                row, 100, label=f"EEG {name}-REF", physical_dimension="uV", physical_range=(-200, 200)
            )
            for row, name in zip(rows, ("Fp1", "Cz", "O2"), strict=True)
        ],
        data_record_duration=1,
    ).write(path)
    return path


def write_fif(
    path: Path, signal_CT: np.ndarray | None = None, annotations: mne.Annotations | None = None, **kinds
):
    signal_CT = eeg() if signal_CT is None else signal_CT
    names = [f"E{i}" for i in range(len(signal_CT))]
    info = mne.create_info(names, 100, [kinds.get(name, "eeg") for name in names])
    raw = mne.io.RawArray(signal_CT * 1e-6, info, verbose="error")
    if annotations is not None:
        raw.set_annotations(annotations)
    path.parent.mkdir(parents=True, exist_ok=True)
    raw.save(path, overwrite=True, verbose="error")
    return path


def write_brainvision(folder: Path, stem: str, **more) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pybv.write_brainvision(
        data=eeg() * 1e-6, sfreq=100, ch_names=["Fp1", "Cz", "O2"], fname_base=stem, folder_out=folder, **more
    )
    return folder / f"{stem}.vhdr"


def source(folder: Path, **more) -> FilesSource:
    return FilesSource(kind="files", dataset="d", folder=str(folder), **more)


def opened(path: Path, **statements):
    return open_file(str(path), Statements(**statements))


# ---- listing ----------------------------------------------------------------------------------------------


def test_listing_is_sorted_and_knows_companions(tmp_path):
    write_edf(tmp_path / "S02" / "rest.edf")
    write_edf(tmp_path / "S01" / "b.EDF")
    write_brainvision(tmp_path / "S01", "a")
    write_fif(tmp_path / "S03" / "long_raw.fif")
    shutil.copy(tmp_path / "S03" / "long_raw.fif", tmp_path / "S03" / "long_raw-1.fif")
    (tmp_path / "S01" / "notes.txt").write_text("left handed")
    (tmp_path / "S01" / "._b.edf").write_bytes(b"resource fork")
    (tmp_path / ".git").mkdir()
    write_edf(tmp_path / ".git" / "x.edf")
    (tmp_path / "S03" / "orphan.eeg").write_bytes(b"\x01\x02" * 500)
    (tmp_path / "S03" / "behaviour.dat").write_text("rt 0.4")
    listing = list_recordings(source(tmp_path))
    assert [(r.id, r.subject) for r in listing.recordings] == [
        ("S01_a", "S01"),
        ("S01_b", "S01"),
        ("S02_rest", "S02"),
        ("S03_long_raw", "S03"),
    ]
    assert listing.recordings[0].path.endswith("a.vhdr")
    assert listing.recordings[0].size_bytes > 3 * 500 * 2, "the samples beside the header count"
    assert [name for name, _ in listing.rejected] == ["S03/behaviour.dat", "S03/orphan.eeg"]
    assert "header is missing" in listing.rejected[1][1]


def test_recordings_travel_by_pickle(tmp_path):
    write_edf(tmp_path / "S01" / "a.edf")
    (recording,) = pickle.loads(pickle.dumps(list_recordings(source(tmp_path)).recordings))
    with recording.open() as found:
        np.testing.assert_allclose(found.read(0, 500), eeg(), atol=0.01)


def test_include_exclude_and_brackets(tmp_path):
    for name in ("a/x[1].edf", "a/y.edf", "b/deep/er/z.edf", "b/w.bdf"):
        write_edf(tmp_path / name)
    ids = lambda **more: [r.id for r in list_recordings(source(tmp_path, **more)).recordings]  # noqa: E731
    assert ids(include=["a/*"]) == ["a_x_1", "a_y"]
    assert ids(include=["a/x[1].edf"]) == ["a_x_1"]
    assert ids(include=["**/*.edf"], exclude=["a/**"]) == ["b_deep_er_z"]
    assert ids(include=["?/w.*", "b/**/z.edf"]) == ["b_deep_er_z", "b_w"]


def test_an_extension_nobody_knows_is_read_when_it_is_asked_for(tmp_path):
    write_edf(tmp_path / "a.001")
    with pytest.raises(FileNotFoundError, match=r"holds 1 \.001"):
        list_recordings(source(tmp_path))
    (recording,) = list_recordings(source(tmp_path, include=["*.001"])).recordings
    with recording.open() as found:
        assert found.meta["format"] == "EDF"


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("parent", "ses-2"),
        ("stem", "P07_rest"),
        (r"(sub-\w+)/", "sub-A"),
        (r"(?P<session>ses-\d)/(?P<subject>P\d+)", "P07"),
        (r"/(P\d+)_", "P07"),
    ],
)
def test_subject_rules(tmp_path, rule, expected):
    write_edf(tmp_path / "sub-A" / "ses-2" / "P07_rest.edf")
    (recording,) = list_recordings(source(tmp_path, subject=rule)).recordings
    assert recording.subject == expected


def test_path_without_a_subject_is_rejected_with_the_pattern(tmp_path):
    write_edf(tmp_path / "P01.edf")
    write_edf(tmp_path / "test.edf")
    listing = list_recordings(source(tmp_path, subject=r"(P\d+)"))
    assert [r.subject for r in listing.recordings] == ["P01"]
    assert listing.rejected == [("test.edf", "the `subject:` pattern '(P\\\\d+)' does not match its path")]


def test_ids_are_unique_safe_and_stable():
    paths = [
        "a/b.edf",
        "a_b.edf",
        "A/B.bdf",
        "x/rec-[2012.07.06-19.02].gdf",
        "x/" + "long" * 40 + ".edf",
        "é.edf",
    ]
    ids = recording_ids(paths)
    assert len({name.lower() for name in ids}) == len(paths)
    assert all(name and len(name) <= 80 and not set(name) - set(ALPHABET) for name in ids)
    assert ids[3] == "x_rec-2012_07_06-19_02"
    assert recording_ids(paths[::-1]) == ids[::-1]


ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"


def test_folder_without_recordings_names_folder_patterns_and_extensions(tmp_path):
    (tmp_path / "table.csv").write_text("1,2")
    with pytest.raises(FileNotFoundError) as error:
        list_recordings(source(tmp_path, exclude=["old/**"]))
    for part in (str(tmp_path), "**/*", "without old/**", "1 .csv", ".edf", ".vhdr", "`arrays`"):
        assert part in str(error.value)
    with pytest.raises(FileNotFoundError, match="There is no folder .*nowhere"):
        list_recordings(source(tmp_path / "nowhere"))


def test_link_to_content_that_is_not_here(tmp_path):
    write_edf(tmp_path / "a.edf")
    os.symlink(tmp_path / "annex" / "gone", tmp_path / "b.edf")
    os.symlink(tmp_path, tmp_path / "circle")
    listing = list_recordings(source(tmp_path))
    assert [r.id for r in listing.recordings] == ["a"]
    assert listing.rejected == [
        ("b.edf", "a link to content that is not here (with DataLad: `datalad get` it)")
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "My Data"}, "Write `my-data`"),
        ({"subject": "(P"}, "is not a regular expression"),
        ({"subject": "P[0-9]+"}, "has no group"),
        ({"unit": "uv"}, "unit"),
        ({"kinds": {"PHO": "photic"}}, "kinds"),
        ({"include": []}, "include"),
        ({"subjcet": "stem"}, "Did you mean `subject`"),
    ],
)
def test_mistakes_in_a_recipe(change, message):
    with pytest.raises(recipes.RecipeError, match=message):
        recipes.check({"kind": "files", "dataset": "d", "folder": "x"} | change, FilesSource, "recipe.yaml")


# ---- formats by content -------------------------------------------------------------------------------------


def test_lying_extension_is_read_by_content(tmp_path):
    lying = write_fif(tmp_path / "true_raw.fif").rename(tmp_path / "a.edf")
    with opened(lying) as recording:
        assert recording.meta["format"] == "FIF"
    lying = write_edf(tmp_path / "true.edf").rename(tmp_path / "b.fif")
    with opened(lying) as recording:
        assert recording.meta["format"] == "EDF"
    lying = write_edf(tmp_path / "true.edf").rename(tmp_path / "c.cnt")
    with opened(lying) as recording:
        assert recording.meta["format"] == "EDF"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.edf", b"", r"is empty \(0 bytes\)"),
        (
            "a.edf",
            b"time,Fp1\n0,1\n",
            r"not EDF, though its extension says so: its content is plain text.*`arrays`",
        ),
        ("a.bdf", b"\x00\x01\x02\x03" * 100, r"not BDF.*it begins with b'\\x00\\x01"),
        ("a.fif", b"PK\x03\x04" + bytes(100), "a zip archive. .*Unpack it first"),
        (
            "a.cnt",
            b"RIFF" + bytes(4) + b"WAVEfmt " + bytes(100),
            "not Neuroscan CNT or ANT CNT.*RIFF, but not",
        ),
        ("a.cnt", b"\x07" * 5000, "not Neuroscan CNT or ANT CNT"),
        ("a.set", b"[header]\n", "not EEGLAB"),
        ("a.edf", b"XDF:" + bytes(100), "is XDF.*Convert XDF to FIF or EDF"),
        ("a.vhdr", b"Brain Vision Data Exchange Marker File, Version 1.0\n", "a BrainVision marker file"),
        ("a.raw", b"\x00" * 100, "not EGI raw"),
        (
            "a.xyz",
            b"\x93NUMPY" + bytes(50),
            "of no format known here: its content is a NumPy array.*`arrays`",
        ),
    ],
)
def test_what_is_no_recording_is_refused_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        opened(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_ant_is_read_only_with_its_signature(tmp_path):
    """The ANT reader crashes the process on other files; with the signature, a missing package is named."""
    (tmp_path / "a.cnt").write_bytes(b"RIFF" + bytes(4) + b"CNT " + bytes(100))
    with pytest.raises(ValueError, match="(reading ANT CNT needs `antio`|cannot be read as ANT CNT)"):
        opened(tmp_path / "a.cnt")


def test_damaged_file_of_a_known_format(tmp_path):
    path = write_fif(tmp_path / "a_raw.fif", eeg(3, 20000))
    path.write_bytes(path.read_bytes()[:60000])
    with pytest.raises((ValueError, OSError), match=r"a_raw\.fif"):
        opened(path)


def test_gzipped_fif(tmp_path):
    path = write_fif(tmp_path / "a_raw.fif")
    packed = tmp_path / "b_raw.fif.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with opened(packed) as recording:
        np.testing.assert_allclose(recording.read(3, 400), eeg()[:, 3:400], rtol=1e-6)


def test_removed_since_it_was_listed(tmp_path):
    path = write_edf(tmp_path / "a.edf")
    (recording,) = list_recordings(source(tmp_path)).recordings
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.edf is not there any more"):
        recording.open()


# ---- BrainVision --------------------------------------------------------------------------------------------


def test_brainvision_unit_and_reference(tmp_path):
    path = write_brainvision(tmp_path, "a", ref_ch_names="FCz")
    with opened(path) as recording:
        assert (recording.unit, recording.unit_source, recording.reference) == ("uV", "file", "FCz")
        np.testing.assert_allclose(recording.read(10, 20), eeg()[:, 10:20], atol=0.06)
    path.write_text(path.read_text().replace(",µV", ","))
    with opened(path) as silent, opened(path, unit="mV") as stated:
        assert silent.unit_source == "assumed"
        np.testing.assert_allclose(silent.read(10, 20), eeg()[:, 10:20], atol=0.06)
        np.testing.assert_allclose(stated.read(10, 20), silent.read(10, 20) * 1e3)


def test_brainvision_header_in_latin_1(tmp_path):
    path = write_brainvision(tmp_path, "a")
    (tmp_path / "a.eeg").rename(tmp_path / "müde.eeg")
    text = (
        path.read_text()
        .replace("DataFile=a.eeg", "DataFile=müde.eeg")
        .replace("Codepage=UTF-8", "Codepage=ANSI")
    )
    path.write_bytes(text.encode("latin-1"))
    with opened(path) as recording:
        assert (recording.unit, recording.unit_source) == ("uV", "file")
        np.testing.assert_allclose(recording.read(0, 500), eeg(), atol=0.06)


@pytest.mark.parametrize("suffix", [".eeg", ".vmrk"])
def test_brainvision_missing_companion_is_named(tmp_path, suffix):
    path = write_brainvision(tmp_path, "a")
    (tmp_path / f"a{suffix}").rename(tmp_path / f"renamed{suffix}")
    with pytest.raises(ValueError, match=rf"a\.vhdr names a\{suffix} .* correct `(Data|Marker)File="):
        opened(path)


def test_brainvision_shorter_than_its_header_says(tmp_path):
    path = write_brainvision(tmp_path, "a")
    text = path.read_text()
    path.write_text(text.replace("NumberOfChannels=3", "NumberOfChannels=3\nDataPoints=500"))
    with opened(path) as recording:
        assert recording.n_samples == 500
    samples = tmp_path / "a.eeg"
    expected = samples.stat().st_size
    samples.write_bytes(samples.read_bytes()[: expected // 2])
    with pytest.raises(
        ValueError, match=rf"a\.eeg is truncated: a\.vhdr promises {expected} bytes.*{expected // 2}"
    ):
        opened(path)


# ---- FIF: units, kinds, interruptions -------------------------------------------------------------------------


def test_fif_whose_numbers_are_millivolts(tmp_path):
    """FIF is in volts; a recipe says when the writer put mV there, so that 1e-3 V becomes 1 µV."""
    path = write_fif(tmp_path / "a_raw.fif", eeg() * 1e3)  # read as V these are 20 mV
    with opened(path) as believed, opened(path, unit="mV") as stated:
        assert (believed.unit, believed.unit_source) == ("V", "assumed")
        np.testing.assert_allclose(believed.read(0, 500), eeg() * 1e3, rtol=1e-6)
        np.testing.assert_allclose(stated.read(0, 500), eeg(), rtol=1e-6)
        assert stated.unit_source == "recipe"


def test_kinds_bad_channels_and_positions(tmp_path):
    path = write_fif(tmp_path / "a_raw.fif", eeg(5), E1="eog", E2="stim", E3="seeg")
    raw = mne.io.read_raw_fif(path, preload=True, verbose="error")
    raw.info["bads"] = ["E4"]
    raw.info["chs"][0]["loc"][:3] = [0.0, 0.09, 0.03]
    raw.save(path, overwrite=True, verbose="error")
    with opened(path) as recording:
        assert [(c.name, c.kind) for c in recording.channels] == [("E0", "eeg"), ("E1", "eog")]
        np.testing.assert_allclose(recording.channels[0].position, [0.0, 0.09, 0.03], atol=1e-6)
        assert recording.meta["dropped_channels"] == {
            "E2": "stimulus channel",
            "E3": "MNE type seeg, not scalp EEG",
            "E4": "marked bad",
        }
    with opened(path, kinds={"E1": "misc", "E3": "eeg"}) as recording:
        assert [(c.name, c.kind) for c in recording.channels] == [
            ("E0", "eeg"),
            ("E1", "misc"),
            ("E3", "eeg"),
        ]
    with pytest.raises(ValueError, match="has none of the channels that `kinds:` names"):
        opened(path, kinds={"PHO": "misc"}, kinds_must_match=True)
    opened(path, kinds={"PHO": "misc"}).close()


def test_position_outside_a_head_is_not_one(tmp_path):
    path = write_fif(tmp_path / "a_raw.fif")
    raw = mne.io.read_raw_fif(path, preload=True, verbose="error")
    raw.info["chs"][0]["loc"][:3] = [0.1, -114.9, 14.6]
    raw.save(path, overwrite=True, verbose="error")
    with opened(path) as recording:
        assert recording.channels[0].position is None


def test_recording_without_eeg_says_what_it_has(tmp_path):
    path = write_fif(tmp_path / "a_raw.fif", eeg(2), E0="stim", E1="seeg")
    with pytest.raises(ValueError, match=r"no channel that could be EEG \(1 .*1 .*\)"):
        opened(path)


def test_interruptions(tmp_path):
    annotations = mne.Annotations([1.0, 2.0, 3.5], [0.0, 0.5, 0.2], ["boundary", "BAD_ACQ_SKIP", "BAD_blink"])
    path = write_fif(tmp_path / "a_raw.fif", annotations=annotations)
    with opened(path) as recording:
        assert recording.spans == [(0, 100), (100, 200), (250, 500)]


def test_interruptions_count_from_the_first_sample(tmp_path):
    raw = mne.io.RawArray(
        eeg() * 1e-6, mne.create_info(["Fp1", "Cz", "O2"], 100, "eeg"), first_samp=700, verbose="error"
    )
    raw.set_meas_date(0)
    raw.set_annotations(mne.Annotations([7.0 + 2.5], [0.0], ["boundary"], orig_time=0))
    raw.save(tmp_path / "a_raw.fif", verbose="error")
    with opened(tmp_path / "a_raw.fif") as recording:
        assert recording.spans == [(0, 250), (250, 500)]


def test_split_recording_is_followed_and_needs_its_parts(tmp_path):
    signal_CT = eeg(8, 60000)
    info = mne.create_info([f"E{i}" for i in range(8)], 100, "eeg")
    raw = mne.io.RawArray(signal_CT * 1e-6, info, verbose="error")
    raw.save(tmp_path / "long_raw.fif", split_size="2MB", buffer_size_sec=10, verbose="error")
    assert (tmp_path / "long_raw-1.fif").exists()
    (recording,) = list_recordings(source(tmp_path)).recordings
    with recording.open() as found:
        assert found.n_samples == 60000
        np.testing.assert_allclose(found.read(59000, 60000), signal_CT[:, 59000:], rtol=1e-5)
    (tmp_path / "long_raw-1.fif").unlink()
    with pytest.raises(ValueError, match=r"long_raw\.fif cannot be read as FIF"):
        recording.open()


def test_memory_stays_bounded_on_a_long_file(tmp_path):
    """Reading a long recording piece by piece must not gather it: peak growth stays far under its size."""
    import tracemalloc

    path = write_fif(tmp_path / "a_raw.fif", eeg(16, 300_000))  # 38 MB as float64
    with opened(path) as recording:
        recording.read(0, 1000)
        tracemalloc.start()
        for start in range(0, 300_000, 10_000):
            recording.read(start, start + 10_000)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 8e6


def test_settings_load_without_the_libraries_that_read(tmp_path):
    """A recipe is checked, and a folder listed, before MNE and the rest are needed."""
    write_edf(tmp_path / "a.edf")
    program = (
        "import sys; from ddscale.sources import FilesSource, list_recordings; "
        f"list_recordings(FilesSource(kind='files', dataset='d', folder={str(tmp_path)!r})); "
        "print(sorted({'mne', 'torch', 'deepspeed', 'moabb', 'mne_bids', 'pandas', 'h5py'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"


# ---- shipped recipes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uncommented", [False, True])
@pytest.mark.parametrize(("name", "kinds"), [("files", ["files", "arrays", "arrays"]), ("bids", ["bids"])])
def test_shipped_starting_points_load_as_they_are_and_with_every_option(name, kinds, uncommented):
    """Each commented option is a valid one: with the marks taken away, the recipe still loads."""
    from ddscale.ingest.recipe import IngestRecipe

    recipe = Path(__file__).resolve().parents[2] / "recipes" / "ingest" / f"{name}.yaml"
    text = recipe.read_text(encoding="utf-8")
    if uncommented:
        text = re.sub(r"(?m)^( +)# (?=[a-z]+: |- kind|  )", r"\1", text)
    loaded = recipes.check(yaml.safe_load(text), IngestRecipe, str(recipe))
    assert [entry.kind for entry in loaded.sources] == (kinds if uncommented else kinds[:1])
