"""The devices that are simulated: electrodes, rate, format, unit and habits of real ones.

The names say what each resembles; no recording of the real device is imitated sample by sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Format = Literal["EDF", "BDF", "BrainVision", "FIF"]

_TEN_TWENTY = "Fp1 Fp2 F7 F3 Fz F4 F8 T3 C3 Cz C4 T4 T5 P3 Pz P4 T6 O1 O2"
_CAP_32 = (
    "Fp1 Fz F3 F7 FT9 FC5 FC1 C3 T7 TP9 CP5 CP1 Pz P3 P7 O1 Oz O2 P4 P8 TP10 CP6 CP2 Cz C4 T8 FT10 FC6 FC2 "
    "F4 F8 Fp2"
)
_CAP_64 = (
    "Fp1 AF7 AF3 F1 F3 F5 F7 FT7 FC5 FC3 FC1 C1 C3 C5 T7 TP7 CP5 CP3 CP1 P1 P3 P5 P7 P9 PO7 PO3 O1 Iz Oz POz Pz CPz "
    "Fpz Fp2 AF8 AF4 AFz Fz F2 F4 F6 F8 FT8 FC6 FC4 FC2 FCz Cz C2 C4 C6 T8 TP8 CP6 CP4 CP2 P2 P4 P6 P8 P10 PO8 PO4 O2"
)


@dataclass(frozen=True)
class Device:
    """What records.

    electrodes: names as the device writes them. label: how its files spell them. extras: recorded beside the
    EEG. reference: the electrodes it measures against (their mean); empty: the mean of all.
    sensor_noise: µV RMS. offset: µV, the spread of the channels' DC levels. unit: of the numbers in its files.
    """

    electrodes: tuple[str, ...]
    sfreq: int
    format: Format
    mains: int
    unit: Literal["uV", "mV", "V"] = "uV"
    label: str = "{}"
    extras: tuple[Literal["EOG", "ECG", "Status"], ...] = ()
    reference: tuple[str, ...] = ()
    sensor_noise: float = 1.0
    offset: float = 50.0


def _banks(letters: str) -> tuple[str, ...]:
    return tuple(f"{bank}{number}" for bank in letters for number in range(1, 33))


DEVICES: dict[str, Device] = {
    "headband4": Device(("TP9", "AF7", "AF8", "TP10"), 256, "EDF", 60, reference=("Fpz",), sensor_noise=1.8),
    "board8": Device(
        ("Fp1", "Fp2", "C3", "C4", "P7", "P8", "O1", "O2"), 250, "BDF", 60, reference=("M1",), offset=8000.0
    ),
    "headset14": Device(
        ("AF3", "F7", "F3", "FC5", "T7", "P7", "O1", "O2", "P8", "T8", "FC6", "F4", "F8", "AF4"), 128, "EDF", 60,
        reference=("P3", "P4"), sensor_noise=1.6,
    ),
    "clinical19": Device(
        tuple(_TEN_TWENTY.split()), 200, "EDF", 60, unit="mV", label="EEG {}-REF", extras=("ECG",),
        reference=("M1", "M2"),
    ),
    "cap32": Device(tuple(_CAP_32.split()), 500, "BrainVision", 50, extras=("EOG",), reference=("FCz",)),
    "cap64": Device(
        tuple(_CAP_64.split()), 512, "BDF", 50, extras=("EOG", "Status"), offset=15000.0, sensor_noise=0.8
    ),
    "cap64fast": Device(tuple(_CAP_64.split()), 1024, "BrainVision", 50, reference=("TP9", "TP10")),
    "abc128": Device(_banks("ABCD"), 512, "BDF", 50, extras=("Status",), offset=15000.0, sensor_noise=0.8),
    "net128": Device(
        tuple(f"E{i}" for i in range(1, 129)), 250, "FIF", 60, unit="V", reference=("Cz",), sensor_noise=1.5
    ),
    "net256": Device(
        tuple(f"E{i}" for i in range(1, 257)), 250, "FIF", 60, unit="V", reference=("Cz",), sensor_noise=1.5
    ),
}  # fmt: skip
