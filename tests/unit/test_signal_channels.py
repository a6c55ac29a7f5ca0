"""Channel names as recordings really spell them."""

from __future__ import annotations

import numpy as np
import pytest

from ddscale.signal.channels import Channel, standardise


def one(name: str, kind: str | None = None) -> Channel:
    return standardise([name], [kind])[0]


@pytest.mark.parametrize(
    ("name", "standard"),
    [
        ("Fp1", "Fp1"), ("FP1", "Fp1"), ("fp2", "Fp2"), ("FPz", "Fpz"), ("CZ", "Cz"), ("poz", "POz"), ("Iz", "Iz"),
        ("AFF1h", "AFF1h"), ("FTT9H", "FTT9h"), ("PO10", "PO10"), ("TP9", "TP9"), ("Fc5.", "FC5"), ("Afz.", "AFz"),
        (" C3 ", "C3"), ("T3", "T7"), ("T4", "T8"), ("T5", "P7"), ("T6", "P8"), ("t7", "T7"), ("P8", "P8"),
        ("EEG Fp1-REF", "Fp1"), ("EEG FP2-LE", "Fp2"), ("EEG T3-REF", "T7"), ("EEG Fz", "Fz"), ("EEG C3-AR", "C3"),
        ("EEG O2-A1A2", "O2"), ("POL Fp1", "Fp1"), ("EEG:Pz", "Pz"), ("EEG P3-A1+A2", "P3"), ("Oz-Avg", "Oz"),
        ("Fp1-0", "Fp1"), ("C3-A2", "C3"), ("C4-M1", "C4"), ("EEG_Cz", "Cz"),
    ],
)  # fmt: skip
def test_scalp_electrodes(name: str, standard: str) -> None:
    channel = one(name)
    assert (channel.name, channel.standard, channel.kind) == (name, standard, "eeg")
    assert channel.position is not None


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        ("FP1-F7", ("Fp1", "F7")), ("EEG T3-C3", ("T7", "C3")), ("Fp1 - F3", ("Fp1", "F3")), ("T8-P8-0", ("T8", "P8")),
        ("EEG Fpz-Cz", ("Fpz", "Cz")), ("EEG Pz-Oz", ("Pz", "Oz")),
    ],
)  # fmt: skip
def test_bipolar_channels_stay_bipolar(name: str, pair: tuple[str, str]) -> None:
    channel = one(name)
    assert (channel.standard, channel.kind, channel.position, channel.pair) == (None, "eeg", None, pair)


def test_one_electrode_behind_every_hyphen_is_a_common_reference() -> None:
    channels = standardise([f"{name}-Cz" for name in ("Fp1", "Fp2", "C3", "C4", "O1")])
    assert [channel.standard for channel in channels] == ["Fp1", "Fp2", "C3", "C4", "O1"]
    assert channels[0].pair == ("Fp1", "Cz")
    chain = standardise(["Fp1-F7", "F7-T3", "T3-T5", "T5-O1", "Fp1-F3"])
    assert [channel.standard for channel in chain] == [None] * 5


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("EOG VEOG_I", "eog"), ("HEOGli", "eog"), ("VEOGo", "eog"), ("REOG", "eog"), ("LEOG", "eog"), ("IEOG", "eog"),
        ("EOG1", "eog"), ("EEG LOC-REF", "eog"), ("EEG ROC-REF", "eog"), ("E1-M2", "eog"), ("E2-A1", "eog"),
        ("HEO", "eog"), ("EOG horizontal", "eog"),
        ("ECG ECG1", "ecg"), ("EKG", "ecg"), ("EEG EKG1-REF", "ecg"), ("ECG", "ecg"),
        ("EMG", "emg"), ("EMG-REF", "emg"), ("Chin1-Chin2", "emg"), ("EMG submental", "emg"),
        ("DIG DTRIG", "stim"), ("Status", "stim"), ("BioSemi Status", "stim"), ("STI 014", "stim"), ("TRIGGER", "stim"),
        ("Trigger_1", "stim"), ("EDF Annotations", "stim"), ("stim", "stim"), ("Event marker", "stim"),
        ("DIN1", "stim"),
        ("REF_EEG REF_EEG", "ref"), ("A1", "ref"), ("A2", "ref"), ("M1", "ref"), ("EEG A1-REF", "ref"), ("CMS", "ref"),
        ("GND", "ref"), ("VREF", "ref"),
        ("EXG1", "misc"), ("EXG8", "misc"), ("PHO", "misc"), ("PHOTIC-REF", "misc"), ("DC1-DC", "misc"),
        ("ACC_X", "misc"),
        ("RESP ABDOMEN-REF", "misc"), ("Temp rectal", "misc"), ("IBI", "misc"), ("GSR1", "misc"), ("SpO2", "misc"),
        ("Fp1", "eeg"), ("SP1", "eeg"), ("EEG T1-REF", "eeg"), ("EEG 20-REF", "eeg"), ("ch1", "eeg"),
        ("EEG 001", "eeg"),
    ],
)  # fmt: skip
def test_kind_by_name_overrules_a_reader_that_says_eeg(name: str, kind: str) -> None:
    assert one(name).kind == kind
    assert one(name, "eeg").kind == kind


@pytest.mark.parametrize("said", ["eog", "emg", "ecg", "stim", "misc"])
def test_any_other_word_of_the_reader_is_believed(said: str) -> None:
    channel = one("Fp1", said)
    assert (channel.kind, channel.standard, channel.position) == (said, None, None)


@pytest.mark.parametrize("said", ["seeg", "ecog", "mag", "temperature", "something new"])
def test_what_is_not_scalp_eeg_is_misc(said: str) -> None:
    assert one("X1", said).kind == "misc"


def banks(letters: str) -> list[str]:
    return [f"{letter}{number}" for letter in letters for number in range(1, 33)]


@pytest.mark.parametrize(
    ("labels", "checks"),
    [
        (banks("A")[:16], {0: "Fp1", 1: "Fp2", 2: "F4", 15: "O2"}),
        (banks("A"), {0: "Fp1", 1: "AF3", 31: "Cz"}),
        (banks("AB"), {0: "Fp1", 1: "AF7", 32: "Fpz", 63: "O2"}),
        (banks("ABCD"), {0: "A1", 1: "A2", 66: "C3", 127: "D32"}),
        (banks("ABCDE"), {0: "A1", 159: "E32"}),
        (banks("ABCDEFGH"), {0: "A1", 255: "H32"}),
    ],
    ids=["16", "32", "64", "128", "160", "256"],
)
def test_biosemi_banks(labels: list[str], checks: dict[int, str]) -> None:
    channels = standardise([*labels, "EXG1", "Status"])
    for index, standard in checks.items():
        assert channels[index].standard == standard
    assert all(channel.kind == "eeg" and channel.position is not None for channel in channels[:-2])
    assert len({channel.standard for channel in channels[:-2]}) == len(labels)
    assert [channel.kind for channel in channels[-2:]] == ["misc", "stim"]


def test_biosemi_labels_with_box_number_and_leading_zero() -> None:
    channels = standardise([f"1-A{number}" for number in range(1, 33)])
    assert channels[1].standard == "AF3"
    assert standardise([f"A{number:02d}" for number in range(1, 33)])[1].standard == "AF3"


def test_a1_and_a2_alone_are_ears() -> None:
    channels = standardise(["Fp1", "Fp2", "C3", "C4", "O1", "O2", "A1", "A2"])
    assert [channel.kind for channel in channels] == ["eeg"] * 6 + ["ref"] * 2
    assert channels[6].standard == "A1"


def test_biosemi_c_and_p_names_of_the_10_10_system_are_no_banks() -> None:
    names = ["C1", "C2", "C3", "C4", "C5", "C6", "F1", "F2", "F3", "F4", "A1"]
    assert [channel.standard for channel in standardise(names)] == names


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_egi_nets(size: int) -> None:
    labels = [f"E{number}" for number in range(1, size + 1)]
    channels = standardise([*labels, "STIM"])
    assert [channel.standard for channel in channels[:-1]] == labels
    assert all(channel.position is not None and channel.kind == "eeg" for channel in channels[:-1])
    assert channels[-1].kind == "stim"


def test_egi_spellings_and_devices() -> None:
    assert standardise([f"E{number:03d}" for number in range(1, 129)])[6].standard == "E7"
    numbered = standardise([str(number) for number in range(1, 130)], device="EGI HydroCel GSN 128")
    assert numbered[0].standard == "E1"
    assert numbered[128].standard == "E129"  # the vertex reference
    assert numbered[128].position is not None
    older = standardise([f"E{number}" for number in range(1, 129)], device="Geodesic Sensor Net 200")
    assert (older[0].standard, older[0].position) == ("E1", None)
    assert standardise(["1", "2", "3"])[0].standard is None  # numbers alone prove nothing
    assert standardise(["E1", "E2"])[0].standard is None  # nor do two


def test_a_128_net_is_not_placed_on_a_256_net() -> None:
    small = standardise([f"E{number}" for number in range(1, 129)])[30]
    large = standardise([f"E{number}" for number in range(1, 257)])[30]
    assert small.position is not None
    assert large.position is not None
    assert np.linalg.norm(np.subtract(small.position, large.position)) > 0.01


def test_own_positions_win_over_the_template() -> None:
    channels = standardise(["Fp1", "Fp2"], positions=[(0.1, 0.2, 0.3), None])
    assert channels[0].position == (0.1, 0.2, 0.3)
    template = standardise(["Fp2"])[0].position
    assert channels[1].position == template


def test_old_and_new_names_share_a_place_and_left_is_left() -> None:
    old, new, right = standardise(["T3"])[0], standardise(["T7"])[0], standardise(["T8"])[0]
    assert old.position == new.position
    assert new.position is not None
    assert right.position is not None
    assert new.position[0] < 0 < right.position[0]


def test_a_standard_name_occurs_once() -> None:
    channels = standardise(["T7", "T3", "EEG T7-REF"])
    assert [channel.standard for channel in channels] == ["T7", None, None]


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="2 channel names, 1 kinds"):
        standardise(["Fp1", "Fp2"], ["eeg"])


def test_no_channels() -> None:
    assert standardise([]) == []
