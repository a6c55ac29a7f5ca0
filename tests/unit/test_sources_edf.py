"""EDF and BDF: against the signals that were written, against MNE, and against what goes wrong with such files."""

from __future__ import annotations

from pathlib import Path

import edfio
import mne
import numpy as np
import pytest

from ddscale.sources import FilesSource, OpenRecording, list_recordings
from ddscale.sources.files import open_file
from ddscale.sources.selection import Statements


def signal(rate: float, label: str, seconds: float = 6, unit: str = "uV", seed: int = 0, **more):
    rng = np.random.default_rng([seed, len(label), *label.encode()])
    values = np.cumsum(rng.normal(scale=0.5, size=round(rate * seconds))) % 80 - 40
    kind = more.pop("type", edfio.EdfSignal)
    return kind(values, rate, label=label, physical_dimension=unit, physical_range=(-100, 100), **more)


def write(path: Path, signals, **more) -> Path:
    kind = edfio.Bdf if isinstance(signals[0], edfio.BdfSignal) else edfio.Edf
    kind(signals, **more).write(path)
    return path


def opened(path: Path, **statements) -> OpenRecording:
    return open_file(str(path), Statements(**statements))


@pytest.mark.parametrize("kind", [edfio.EdfSignal, edfio.BdfSignal])
def test_any_stretch_equals_mne(tmp_path, kind):
    labels = ["EEG Fp1-LE", "EEG Cz-LE", "EEG O2-LE"]
    path = write(
        tmp_path / f"a.{kind.__name__[:3].lower()}", [signal(200, label, type=kind) for label in labels]
    )
    raw = mne.io.read_raw(path, verbose="error")
    with opened(path) as recording:
        assert recording.sfreq == 200
        assert recording.n_samples == raw.n_times
        assert [channel.standard for channel in recording.channels] == ["Fp1", "Cz", "O2"]
        assert recording.reference == "LE"
        for start, stop in [(0, 1200), (0, 1), (1199, 1200), (199, 201), (417, 903)]:
            np.testing.assert_allclose(
                recording.read(start, stop), raw.get_data(start=start, stop=stop) * 1e6, atol=1e-9
            )
        assert recording.read(5, 5).shape == (3, 0)
        with pytest.raises(ValueError, match="has samples 0 to 1200, asked for 1199 to 1201"):
            recording.read(1199, 1201)


@pytest.mark.parametrize(
    ("unit", "scale"), [("uV", 1), ("mV", 1e3), ("V", 1e6), ("nV", 1e-3), ("\u00b5V", 1)]
)
def test_units_in_the_header(tmp_path, unit, scale):
    source = signal(100, "Cz", unit="xxx")
    path = write(tmp_path / "a.edf", [source])
    content = bytearray(path.read_bytes())
    content[256 + 96 : 256 + 104] = unit.encode("latin-1").ljust(8)
    path.write_bytes(content)
    with opened(path) as recording:
        assert recording.unit_source == "file"
        np.testing.assert_allclose(recording.read(0, 600)[0], source.data * scale, rtol=1e-12)


def test_unit_stated_by_nobody_and_by_the_recipe(tmp_path):
    path = write(tmp_path / "a.edf", [signal(100, "Cz", unit=""), signal(100, "Pz", unit="uV")])
    with opened(path) as silent, opened(path, unit="mV") as stated:
        assert [channel.name for channel in silent.channels] == ["Cz", "Pz"]
        np.testing.assert_allclose(stated.read(0, 600), silent.read(0, 600) * 1e3)
        assert (stated.unit, stated.unit_source) == ("mV", "recipe")
    path = write(tmp_path / "b.edf", [signal(100, "Cz", unit="")])
    with opened(path) as silent:
        assert (silent.unit, silent.unit_source) == ("uV", "assumed")


def test_signals_of_other_rates_and_kinds_are_left_out_by_name(tmp_path):
    path = write(
        tmp_path / "night.edf",
        [
            signal(100, "EEG Fpz-Cz"),
            signal(100, "EEG Pz-Oz"),
            signal(100, "EOG horizontal"),
            signal(10, "Resp oro-nasal", unit=""),
            signal(100, "Temp rectal", unit="degC"),
            signal(1, "EMG submental"),
        ],
    )
    with opened(path) as recording:
        assert [channel.kind for channel in recording.channels] == ["eeg", "eeg", "eog"]
        assert recording.sfreq == 100
        assert recording.n_samples == 600
        dropped = recording.meta["dropped_channels"]
        assert dropped["Resp oro-nasal"] == "sampled at 10 Hz, the EEG at 100 Hz"
        assert dropped["Temp rectal"] == "measured in degC, not a voltage"
        assert "EMG submental" in dropped


def test_undefined_scale_is_left_out(tmp_path):
    path = write(tmp_path / "a.edf", [signal(100, "Cz"), signal(100, "Pz")])
    content = bytearray(path.read_bytes())
    physical_min = 256 + 2 * (16 + 80 + 8)
    content[physical_min + 8 : physical_min + 16] = b"100     "  # of Pz: equal to its maximum
    path.write_bytes(content)
    with opened(path) as recording:
        assert [channel.name for channel in recording.channels] == ["Cz"]
        assert "Pz" in recording.meta["dropped_channels"]


def test_repeated_labels_become_unique(tmp_path):
    path = write(tmp_path / "a.edf", [signal(100, "Cz"), signal(100, "Cz", seed=1), signal(100, "Pz")])
    with opened(path) as recording:
        assert [channel.name for channel in recording.channels] == ["Cz-0", "Cz-1", "Pz"]
        assert not np.array_equal(*recording.read(0, 600)[:2])


def test_gaps_of_a_discontinuous_recording(tmp_path):
    path = write(
        tmp_path / "a.edf",
        [signal(100, "Cz")],
        data_record_duration=1,
        annotations=[edfio.EdfAnnotation(0.5, None, "x")],
    )
    content = path.read_bytes()
    assert b"EDF+C" in content[192:236]
    for record, onset in [(3, 62), (4, 63), (5, 100.5)]:
        # The time-keeping annotation of a record, rewritten in place; zeros up to its 14 bytes.
        keeper = f"+{record}\x14\x14".encode().ljust(14, b"\x00")
        assert content.count(keeper) == 1
        content = content.replace(keeper, f"+{onset:g}\x14\x14".encode().ljust(14, b"\x00"))
    path.write_bytes(content.replace(b"EDF+C", b"EDF+D"))
    with opened(path) as recording:
        assert recording.spans == [(0, 300), (300, 500), (500, 600)]
    path.write_bytes(content)
    with opened(path) as recording:
        assert recording.spans == [(0, 600)]


def test_discontinuous_without_times_is_refused(tmp_path):
    path = write(
        tmp_path / "a.edf",
        [signal(100, "Cz")],
        data_record_duration=1,
        annotations=[edfio.EdfAnnotation(0.5, None, "x")],
    )
    path.write_bytes(path.read_bytes().replace(b"EDF+C", b"EDF+D").replace(b"+3\x14", b"\x00\x00\x00"))
    with pytest.raises(ValueError, match=r"a\.edf says it is discontinuous .* record 3 .* Export it again"):
        opened(path)


def test_truncated_file_is_refused_with_both_sizes(tmp_path):
    path = write(tmp_path / "cut.edf", [signal(100, "Cz"), signal(100, "Pz")], data_record_duration=1)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(
        ValueError, match=rf"cut\.edf is truncated: .*{len(whole)} bytes.*{len(whole) * 2 // 3}"
    ):
        opened(path)


def test_recorder_that_never_wrote_the_count(tmp_path):
    path = write(tmp_path / "a.edf", [signal(100, "Cz")], data_record_duration=1)
    content = bytearray(path.read_bytes())
    content[236:244] = b"-1      "
    path.write_bytes(content[:-100])  # and stopped in the middle of a record
    with opened(path) as recording:
        assert recording.n_samples == 500


@pytest.mark.parametrize("size", [8, 200, 300])
def test_header_cut_short(tmp_path, size):
    path = write(tmp_path / "a.edf", [signal(100, "Cz")])
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"a\.edf.*(copy|Copy) it again"):
        opened(path)


def test_unreadable_number_names_the_field(tmp_path):
    path = write(tmp_path / "a.edf", [signal(100, "Cz")])
    content = bytearray(path.read_bytes())
    content[244:252] = b"soon    "
    path.write_bytes(content)
    with pytest.raises(ValueError, match="duration of a record in its header is 'soon'"):
        opened(path)


def test_biosemi_labels_and_trigger_channel(tmp_path):
    labels = [f"{bank}{i}" for bank in "AB" for i in range(1, 33)]
    signals = [
        signal(64, label, type=edfio.BdfSignal, transducer_type="Active Electrode") for label in labels
    ]
    status = signal(64, "Status", type=edfio.BdfSignal, unit="Boolean")
    path = write(tmp_path / "a.bdf", [*signals, status])
    with opened(path) as recording:
        assert len(recording.channels) == 64
        assert recording.channels[0].standard == "Fp1"
        assert recording.meta["dropped_channels"] == {"Status": "stimulus channel"}


def test_long_read_is_bounded_by_what_is_asked_for(tmp_path):
    """Only the records around a stretch are read: a file whose middle is missing still yields its beginning."""
    path = write(tmp_path / "a.edf", [signal(100, "Cz", seconds=60)], data_record_duration=1)
    whole = path.read_bytes()
    with opened(path) as recording:
        path.write_bytes(whole[: len(whole) // 2])
        assert recording.read(0, 1000).shape == (1, 1000)
        with pytest.raises(OSError, match="ends before its header says"):
            recording.read(0, 6000)


@pytest.mark.parametrize("kind", [edfio.EdfSignal, edfio.BdfSignal])
@pytest.mark.parametrize("at_once", [1, 1500, 10**7])
def test_records_of_any_size_are_read_in_parts(tmp_path, monkeypatch, kind, at_once):
    """A record may be smaller or larger than what is read at once, up to the whole recording in one."""
    monkeypatch.setattr("ddscale.sources.edf._READ_BYTES", at_once)
    signals = [signal(100, label, type=kind, seconds=20) for label in ("Fp1", "Cz", "Pz")]
    for seconds in (1, 4, 20):
        path = write(tmp_path / "a.edf", signals, data_record_duration=seconds)
        with opened(path) as recording:
            whole_CT = recording.read(0, 2000)
            np.testing.assert_allclose(whole_CT, [s.data for s in signals], atol=1e-9)
            for start, stop in [(0, 1), (99, 101), (333, 1777), (1999, 2000), (400, 800)]:
                np.testing.assert_array_equal(recording.read(start, stop), whole_CT[:, start:stop])


def test_no_names_of_persons_or_dates_in_meta(tmp_path):
    write(
        tmp_path / "a.edf",
        [signal(100, "Cz", transducer_type="AgAgCl")],
        patient=edfio.Patient(name="Doe_Jane", code="J123"),
        recording=edfio.Recording(investigator_technician_code="DrWho", equipment_code="Amp"),
    )
    (recording,) = list_recordings(FilesSource(kind="files", dataset="d", folder=str(tmp_path))).recordings
    with recording.open() as found:
        assert "Doe" not in str(found.meta)
        assert "DrWho" not in str(found.meta)
        assert found.meta["electrodes"] == ["AgAgCl"]
