"""Formats that are read through MNE, each from a small file made here by the format's own rules."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from pathlib import Path

import h5py
import mffpy.bin_writer
import mffpy.writer
import mne
import numpy as np
import pytest
import scipy.io

from ddscale.sources.files import open_file
from ddscale.sources.formats import format_of
from ddscale.sources.selection import Statements

SIGNAL_CT = np.random.default_rng(3).normal(scale=20, size=(3, 600)).round(1)
NAMES = ["Fp1", "Cz", "O2"]


def opened(path: Path, **statements):
    return open_file(str(path), Statements(**statements))


# ---- GDF ------------------------------------------------------------------------------------------------------


def write_gdf(path: Path, unit: bytes, version: str = "1.25", code: int = 0) -> Path:
    """GDF 1 or 2: three signals of float64, one record of a second each, identity calibration."""
    n, n_records, rate = 3, 6, 100
    names = b"".join(name.encode().ljust(16, b"\x00") for name in NAMES)
    limits = np.full(n, -1000.0).tobytes() + np.full(n, 1000.0).tobytes()
    if version < "1.9":
        fixed = f"GDF {version}".encode().ljust(8) + b"X X".ljust(80) + bytes(80) + b"2020010112000000"
        fixed += struct.pack("<q", 256 * (n + 1)) + bytes(44) + struct.pack("<qIII", n_records, 1, 1, n)
        digital = np.full(n, -1000, "<i8").tobytes() + np.full(n, 1000, "<i8").tobytes()
        signals = names + bytes(80 * n) + unit.ljust(8, b"\x00") * n + limits + digital + bytes(80 * n)
        signals += np.full(n, rate, "<i4").tobytes() + np.full(n, 17, "<i4").tobytes() + bytes(32 * n)
    else:
        fixed = bytearray(256)
        fixed[:8] = f"GDF {version}".encode()
        fixed[8:11] = b"X X"
        fixed[184:186] = struct.pack("<H", n + 1)
        fixed[236:252] = struct.pack("<qII", n_records, 1, 1)
        fixed[252:254] = struct.pack("<H", n)
        signals = names + bytes(80 * n) + bytes(6 * n) + np.full(n, code, "<u2").tobytes() + limits + limits
        signals += bytes(68 * n) + bytes(12 * n) + np.full(n, rate, "<i4").tobytes()
        signals += np.full(n, 17, "<i4").tobytes() + bytes(12 * n) + bytes(20 * n)
    header = bytes(fixed) + signals
    assert len(header) == 256 * (n + 1)
    records = SIGNAL_CT.reshape(n, n_records, rate).transpose(1, 0, 2).astype("<f8").tobytes()
    path.write_bytes(header + records + b"\x01" + bytes(7))
    return path


@pytest.mark.parametrize(
    ("header", "scale", "source"),
    [
        ({"unit": b"uV"}, 1.0, "file"),
        ({"unit": b"mV"}, 1e3, "file"),  # MNE takes it for V
        ({"unit": b""}, 1.0, "assumed"),
        ({"unit": b"", "version": "2.20", "code": 4275}, 1.0, "file"),
        ({"unit": b"", "version": "2.20", "code": 4274}, 1e3, "file"),
        ({"unit": b"", "version": "2.20", "code": 4256}, 1e6, "file"),
        ({"unit": b"", "version": "2.20", "code": 0}, 1.0, "assumed"),
    ],
)
def test_gdf_units(tmp_path, header, scale, source):
    path = write_gdf(tmp_path / "a.gdf", **header)
    with opened(path) as believed, opened(path, unit="nV") as stated:
        assert believed.unit_source == source
        np.testing.assert_allclose(believed.read(90, 310), SIGNAL_CT[:, 90:310] * scale, atol=1e-9 * scale)
        np.testing.assert_allclose(stated.read(90, 310), SIGNAL_CT[:, 90:310] * 1e-3, atol=1e-9)


def test_truncated_gdf(tmp_path):
    path = write_gdf(tmp_path / "a.gdf", b"uV")
    path.write_bytes(path.read_bytes()[:8000])
    with pytest.raises(ValueError, match=r"a\.gdf cannot be read as GDF.*It may be cut short: copy it again"):
        opened(path)


# ---- EEGLAB ---------------------------------------------------------------------------------------------------


def test_a_misnamed_gdf_and_averages_have_remedies_of_their_own(tmp_path):
    path = write_gdf(tmp_path / "a.gdf", b"uV")
    misnamed = tmp_path / "a.edf"
    misnamed.write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"Rename it: its content is GDF, so its name must end in \.gdf"):
        opened(misnamed)
    averages = mne.EvokedArray(np.zeros((1, 100)), mne.create_info(["Cz"], 100.0, "eeg"))
    averages.save(tmp_path / "a-ave.fif", verbose="ERROR")
    with pytest.raises(ValueError, match="may hold epochs or averages: give the continuous recording"):
        opened(tmp_path / "a-ave.fif")


def eeglab_fields(data) -> dict:
    places = np.array([(name, kind) for name, kind in zip(NAMES, ["EEG", "EEG", "EOG"], strict=True)],
                      dtype=[("labels", object), ("type", object)])  # fmt: skip
    events = np.array([("square", 50.0), ("boundary", 200.5)], dtype=[("type", object), ("latency", object)])
    return {
        "setname": "x", "nbchan": 3.0, "trials": 1.0, "pnts": 600.0, "srate": 100.0, "xmin": 0.0, "xmax": 5.99,
        "data": data, "chanlocs": places, "event": events, "ref": "common", "icaweights": [],
        "chaninfo": {"nosedir": "+X"},
    }  # fmt: skip


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("beside", [True, False])
def test_eeglab_before_73(tmp_path, nested, beside):
    fields = eeglab_fields("a.fdt" if beside else SIGNAL_CT.astype(np.float32))
    scipy.io.savemat(tmp_path / "a.set", {"EEG": fields} if nested else fields, appendmat=False)
    if beside:
        SIGNAL_CT.T.astype("<f4").tofile(tmp_path / "a.fdt")
    check_eeglab(tmp_path / "a.set")


def check_eeglab(path: Path) -> None:
    with opened(path) as recording, opened(path, unit="mV") as stated:
        assert [(c.name, c.kind) for c in recording.channels] == [
            ("Fp1", "eeg"),
            ("Cz", "eeg"),
            ("O2", "eog"),
        ]
        assert (recording.sfreq, recording.n_samples, recording.unit_source) == (100.0, 600, "assumed")
        assert recording.spans == [(0, 200), (200, 600)]
        for start, stop in [(0, 600), (199, 201), (599, 600)]:
            np.testing.assert_allclose(recording.read(start, stop), SIGNAL_CT[:, start:stop], rtol=1e-5)
        np.testing.assert_allclose(stated.read(7, 9), SIGNAL_CT[:, 7:9] * 1e3, rtol=1e-5)


def matlab_73(path: Path, nested: bool, data) -> Path:
    """A MATLAB 7.3 file as MATLAB writes one: columns first, text as uint16, struct arrays as references."""

    def put(group, name, value):
        if isinstance(value, str):
            item = group.create_dataset(name, data=np.array([[ord(letter)] for letter in value], "u2"))
            item.attrs["MATLAB_class"] = np.bytes_("char")
        else:
            item = group.create_dataset(name, data=np.atleast_2d(np.asarray(value)).T)
            item.attrs["MATLAB_class"] = np.bytes_("single" if item.dtype == "f4" else "double")

    def put_structs(file, group, name, structs):
        item = group.create_group(name)
        item.attrs["MATLAB_class"] = np.bytes_("struct")
        references = file.require_group("#refs#")
        for key in structs.dtype.names:
            pointers = []
            for value in structs[key]:
                put(references, unique := f"r{len(references)}", value)
                pointers.append([references[unique].ref])
            item.create_dataset(key, data=np.array(pointers, dtype=h5py.ref_dtype), dtype=h5py.ref_dtype)

    with h5py.File(path, "w", userblock_size=512) as file:
        group = file
        if nested:
            group = file.create_group("EEG")
            group.attrs["MATLAB_class"] = np.bytes_("struct")
        for name, value in eeglab_fields(data).items():
            if isinstance(value, np.ndarray) and value.dtype.names:
                put_structs(file, group, name, value)
            elif isinstance(value, np.ndarray | str | float):
                put(group, name, value)
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116) + bytes(8) + b"\x00\x02IM")
    return path


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("beside", [True, False])
def test_eeglab_73(tmp_path, nested, beside):
    if beside:
        SIGNAL_CT.T.astype("<f4").tofile(tmp_path / "a.fdt")
    path = matlab_73(tmp_path / "a.set", nested, "a.fdt" if beside else SIGNAL_CT.astype(np.float32))
    check_eeglab(path)
    with opened(path) as recording:
        assert recording.reference == "common"


@pytest.mark.parametrize("modern", [True, False])
def test_eeglab_samples_missing_or_cut_short(tmp_path, modern):
    if modern:
        path = matlab_73(tmp_path / "a.set", True, "a.fdt")
    else:
        path = tmp_path / "a.set"
        scipy.io.savemat(path, {"EEG": eeglab_fields("a.fdt")}, appendmat=False)
    with pytest.raises(ValueError, match=r"a\.set .*a\.fdt"):
        opened(path)
    (tmp_path / "a.fdt").write_bytes(bytes(4000))
    with pytest.raises(
        ValueError, match=r"a\.fdt is truncated: a\.set promises 7200 bytes, and the file has 4000"
    ):
        opened(path)


def test_matlab_file_that_is_no_eeglab(tmp_path):
    scipy.io.savemat(tmp_path / "a.set", {"X": SIGNAL_CT}, appendmat=False)
    with pytest.raises(ValueError, match=r"a\.set cannot be read as EEGLAB"):
        opened(tmp_path / "a.set")


# ---- Neuroscan ------------------------------------------------------------------------------------------------


def write_neuroscan(path: Path, width: int, stated_samples: int) -> Path:
    n = len(NAMES)
    integers_TC = np.round(SIGNAL_CT.T * 10).astype(f"<i{width}")
    header = bytearray(900 + 75 * n)
    header[:12] = b"Version 3.0\x00"
    header[370:372] = struct.pack("<H", n)
    header[376:378] = struct.pack("<H", 100)
    header[864:868] = struct.pack("<i", stated_samples)
    header[886:890] = struct.pack("<i", len(header) + integers_TC.nbytes)
    for i, name in enumerate(NAMES):
        start = 900 + 75 * i
        header[start : start + len(name)] = name.encode()
        header[start + 59 : start + 63] = struct.pack("<f", 20.48)  # sensitivity: 0.1 µV per unit
        header[start + 71 : start + 75] = struct.pack("<f", 1.0)
    path.write_bytes(bytes(header) + integers_TC.tobytes() + struct.pack("<Bll", 1, 0, 0) + bytes(8))
    return path


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("stated_samples", [600, 0, 77])
def test_neuroscan_whose_header_miscounts(tmp_path, width, stated_samples):
    path = write_neuroscan(tmp_path / "a.cnt", width, stated_samples)
    with opened(path) as recording:
        assert (recording.n_samples, recording.sfreq) == (600, 100.0)
        np.testing.assert_allclose(recording.read(100, 200), SIGNAL_CT[:, 100:200], atol=0.06)


# ---- EGI ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value_range", "bits"), [(0, 0), (200, 11)])
def test_egi_simple_binary_with_and_without_range(tmp_path, value_range, bits):
    """Integers with a range in µV, or floats in µV; MNE forgets the µV of the former."""
    version, kind = (2, ">i2") if bits else (4, ">f4")
    scale = value_range / 2**bits if bits else 1.0
    header = struct.pack(">i6hi", version, 2020, 1, 31, 12, 0, 0, 0) + struct.pack(
        ">5h", 100, 3, 1, bits, value_range
    )
    header += struct.pack(">ih", 600, 0)
    values_TC = SIGNAL_CT.T / scale
    (tmp_path / "a.raw").write_bytes(
        header + (np.round(values_TC) if bits else values_TC).astype(kind).tobytes()
    )
    with opened(tmp_path / "a.raw") as recording:
        assert recording.unit_source == "file"
        np.testing.assert_allclose(recording.read(0, 600), SIGNAL_CT, atol=0.06 if bits else 1e-4)


@pytest.mark.parametrize(("version", "size", "message"), [
    (5, 0, "is cut into segments"), (4, 3000, "is truncated: its header promises 600 samples, 7236 bytes.*3000"),
])  # fmt: skip
def test_egi_simple_binary_that_cannot_be_read(tmp_path, version, size, message):
    header = struct.pack(">i6hi", version, 2020, 1, 31, 12, 0, 0, 0) + struct.pack(">5h", 100, 3, 1, 0, 0)
    (tmp_path / "a.raw").write_bytes((header + struct.pack(">ih", 600, 0)).ljust(size, b"\x00"))
    with pytest.raises(ValueError, match=message):
        opened(tmp_path / "a.raw")


@pytest.mark.parametrize("n_channels", [129, 128])
def test_mff_with_a_pause(tmp_path, n_channels):
    """128 channels do not fit the layout of 129 with its reference; they are read all the same."""
    signal_CT = np.random.default_rng(0).normal(scale=20, size=(n_channels, 1000)).astype(np.float32)
    samples = mffpy.bin_writer.BinWriter(sampling_rate=250, data_type="EEG")
    samples.add_block(signal_CT[:, :600])
    samples.add_block(signal_CT[:, 600:], offset_us=2_000_000)
    writer = mffpy.writer.Writer(str(tmp_path / "a.mff"))
    writer.addxml("fileInfo", recordTime=datetime(2020, 1, 31, 12, tzinfo=UTC))
    writer.addbin(samples)
    writer.add_coordinates_and_sensor_layout("HydroCel GSN 128 1.0")
    writer.write()
    with opened(tmp_path / "a.mff") as recording:
        assert len(recording.channels) == n_channels
        assert [c.name for c in recording.channels if c.kind == "ref"] == ["E129"][: n_channels - 128]
        assert recording.meta["device"] == "HydroCel GSN 128 1.0"
        assert all(channel.position for channel in recording.channels[:128])
        assert recording.sfreq == 250
        assert recording.spans == [(0, 600), (600, 1000)]
        assert recording.read(590, 610).shape == (n_channels, 20)
        found_CT = np.hstack([recording.read(*span) for span in recording.spans])
        np.testing.assert_allclose(found_CT, signal_CT, atol=1e-4)
        start = recording.spans[1][0]
        np.testing.assert_allclose(recording.read(start + 10, start + 20), signal_CT[:, 610:620], atol=1e-4)


# ---- Nicolet, Persyst, BCI2000 ----------------------------------------------------------------------------------


def write_nicolet(folder: Path) -> Path:
    (folder / "a.head").write_text(
        "start_ts=2015-01-01 12:00:00.000\nnum_samples=600\nsample_freq=100\nconversion_factor=0.1\n"
        "num_channels=3\nelec_names=[FP1,EOG1,PHO]\npat_id=1\nadm_id=1\nrec_id=1\nduration_in_sec=6\nsample_bytes=2\n"
    )
    np.round(SIGNAL_CT.T * 10).astype("<i2").tofile(folder / "a.data")
    return folder / "a.data"


def test_nicolet(tmp_path):
    path = write_nicolet(tmp_path)
    with opened(path, kinds={"PHO": "stim"}) as recording:
        assert [(c.name, c.standard, c.kind) for c in recording.channels] == [
            ("FP1", "Fp1", "eeg"),
            ("EOG1", None, "eog"),
        ]
        np.testing.assert_allclose(recording.read(0, 600), SIGNAL_CT[:2], atol=0.06)
        assert recording.unit_source == "assumed"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(
        ValueError, match=r"a\.data is truncated: a\.head promises 3600 bytes, and the file has 3000"
    ):
        opened(path)
    (tmp_path / "a.head").unlink()
    with pytest.raises(ValueError, match=r"a\.data has no a\.head beside it, which holds its header"):
        opened(path)


def test_persyst(tmp_path):
    (tmp_path / "a.lay").write_text(
        "[FileInfo]\nFile=a.dat\nFileType=Interleaved\nSamplingRate=100\nHeaderLength=0\nCalibration=0.1\n"
        "WaveformCount=3\nDataType=0\n[Patient]\nFirst=Jane\nLast=Doe\nBirthDate=01/31/1980\nSex=F\nHand=R\nTestDate=2020.01.31\nTestTime=12:00:00\n"
        "[ChannelMap]\nFp1=1\nCz=2\nO2=3\n[SampleTimes]\n0=0.0\n[Comments]\n"
    )
    with pytest.raises(ValueError, match=r"a\.lay has no a\.dat beside it, which holds its data"):
        opened(tmp_path / "a.lay")
    np.round(SIGNAL_CT.T * 10).astype("<i2").tofile(tmp_path / "a.dat")
    with opened(tmp_path / "a.lay") as recording:
        np.testing.assert_allclose(recording.read(0, 600), SIGNAL_CT, atol=0.06)
        assert "Doe" not in str(recording.meta)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"0       X X X X", "EDF"),
        (b"0\x00\x00\x00\x00\x00\x00\x00X X X X", "EDF"),
        (b"0,1,2,3,4\n", "text"),
        (b"\xffBIOSEMI", "BDF"),
        (b"GDF 2.20", "GDF"),
        (b"\xef\xbb\xbfBrain Vision Data Exchange Header File Version 2.0", "BrainVision"),
        (b"Version 3.0\x00", "Neuroscan CNT"),
        (b"EEG-1100A V01.00", "Nihon Kohden"),
        (b"HeaderLen=  3000 SourceCh= 64", "BCI2000"),
        (b"[FileInfo]\r\nFile=x.dat", "Persyst"),
        (b"RF64\xff\xff\xff\xffCNT ", "ANT CNT"),
        (b"NEURALCD", "Blackrock NSx"),
        (b"1,2,3\n", "text"),
        (b"\x00\x00\x00\x02" + bytes(100), None),
        (b"", None),
    ],
)
def test_signatures(head, name):
    assert format_of(head) == name
