"""What MNE does not look at before it reads: companion files, sizes promised by headers, and stated units."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np


def check(path: Path, format_name: str) -> None:
    """Raise ValueError when a companion file is missing or shorter than the header promises."""
    if format_name == "BrainVision":
        _check_brainvision(path)
    elif format_name == "Nicolet":
        _check_nicolet(path)
    elif format_name == "Curry":
        stem = path.with_suffix("")
        _need_one(
            path, [Path(f"{stem}.cdt.dpa"), Path(f"{stem}.cdt.dpo"), Path(f"{stem}.dap")], "its parameters"
        )
    elif format_name == "Persyst":
        named = re.search(r"(?im)^\s*File\s*=\s*(.+?)\s*$", path.read_text("latin-1"))
        data = path.with_name(re.split(r"[\\/]", named.group(1))[-1]) if named else path.with_suffix(".dat")
        _need_one(path, [data, path.with_suffix(".dat")], "its data")


def _need_one(path: Path, candidates: list[Path], what: str) -> None:
    if not any(candidate.exists() for candidate in candidates):
        names = " or ".join(dict.fromkeys(candidate.name for candidate in candidates))
        raise ValueError(f"{path} has no {names} beside it, which holds {what}: copy it there too.")


def _brainvision_text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")  # Codepage=ANSI, and older recorders that do not say


def brainvision_field(text: str, field: str) -> str | None:
    """The value of `field=` in a .vhdr, or None."""
    found = re.search(rf"(?im)^\s*{field}\s*=\s*(.*?)\s*$", text)
    return found.group(1) if found else None


def _check_brainvision(path: Path) -> None:
    text = _brainvision_text(path)
    for field, what in (("DataFile", "its samples"), ("MarkerFile", "its markers")):
        named = brainvision_field(text, field)
        if not named:
            if field == "DataFile":
                raise ValueError(
                    f"{path} names no DataFile: it is not a whole BrainVision header. Export it again."
                )
            continue
        named = named.replace("$b", path.stem)
        if not path.with_name(named).exists():
            beside = ", ".join(
                sorted(p.name for p in path.parent.glob(f"{_escaped(path.stem)}.*") if p != path)
            )
            raise ValueError(
                f"{path} names {named} as the file of {what}, and it is not in its folder (there is: {beside or '-'}). "
                f"Copy it there; if it was renamed, correct `{field}=` in the header."
            )
    points, channels = brainvision_field(text, "DataPoints"), brainvision_field(text, "NumberOfChannels")
    width = {"INT_16": 2, "IEEE_FLOAT_32": 4, "INT_32": 4}.get(brainvision_field(text, "BinaryFormat") or "")
    data = path.with_name((brainvision_field(text, "DataFile") or "").replace("$b", path.stem))
    if points and channels and width:
        _check_size(data, int(points) * int(channels) * width, path)


def _check_nicolet(path: Path) -> None:
    head = path.with_suffix(".head")
    _need_one(path, [head], "its header")
    text = head.read_text("latin-1")
    values = dict(re.findall(r"(?m)^(\w+)=(.*?)\s*$", text))
    try:
        expected = (
            int(values["num_samples"]) * int(values["num_channels"]) * int(values.get("sample_bytes", 2))
        )
    except (KeyError, ValueError):
        raise ValueError(
            f"{head} does not state num_samples and num_channels: it is not a Nicolet header."
        ) from None
    _check_size(path, expected, head)


def _check_size(data: Path, expected: int, header: Path) -> None:
    found = data.stat().st_size
    if found < expected:
        raise ValueError(
            f"{data} is truncated: {header.name} promises {expected} bytes, and the file has {found}. "
            "Copy it again from its origin."
        )


def brainvision_units(path: Path) -> dict[str, str]:
    """Units by channel name as a .vhdr states them (`Ch1=Fp1,,0.1,µV`); channels without one are left out."""
    units = {}
    for line in re.findall(r"(?m)^\s*Ch\d+=(.*)$", _brainvision_text(path)):
        fields = [part.strip().replace(r"\1", ",") for part in line.split(",")]
        if len(fields) > 3 and fields[3]:
            units[fields[0]] = fields[3]
    return units


def brainvision_reference(path: Path) -> str | None:
    """The reference electrode a .vhdr names, when it is the same for all channels."""
    lines = re.findall(r"(?m)^\s*Ch\d+=(.*)$", _brainvision_text(path))
    named = {line.split(",")[1].strip() for line in lines if line.count(",") >= 1}
    return named.pop() or None if len(named) == 1 else None


def gdf_units(path: Path) -> list[str | None]:
    """Units of a GDF file's signals as its header states them; None where it is silent.

    GDF 1 writes eight characters (MNE knows only uV of them), GDF 2 a code of ISO/IEEE 11073-10101.
    """
    with path.open("rb") as file:
        fixed = file.read(256)
        if float(fixed[4:8]) < 1.9:
            n = int(np.frombuffer(fixed[252:256], "<u4")[0])
            file.seek(256 + n * (16 + 80))
            texts = [file.read(8).split(b"\x00")[0].decode("latin-1").strip() for _ in range(n)]
            return [text or None for text in texts]
        n = int(np.frombuffer(fixed[252:254], "<u2")[0])
        file.seek(256 + n * (16 + 80 + 6))
        codes = np.frombuffer(file.read(2 * n), "<u2").tolist()
    known = {4256: "V", 4274: "mV", 4275: "uV", 4276: "nV", 0: None, 512: None}
    return [known.get(code, f"unit code {code}") for code in codes]


def _escaped(stem: str) -> str:
    return re.sub(r"([\[\]*?])", r"[\1]", stem)
