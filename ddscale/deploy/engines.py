"""engines.json: what TensorRT engines were built from, by what and for which GPU; and whether they may run here.

Standard library only. TensorRT itself notices some mismatches, late and in its own words; an engine of other graphs
it runs without a word.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ddscale.deploy.manifest import GraphInfo, Manifest, ManifestError, Profile, sha256_of

SCHEMA_VERSION = 1
FILE_NAME = "engines.json"
FOLDER = "engines"
SYSTEM = f"{platform.system()}-{platform.machine()}".lower()
Flavour = Literal["rtx", "datacentre"]
# Families by the name people know; where one has several, the one that most cards of today have.
FAMILIES = {"turing": "sm75", "ampere": "sm86", "ada": "sm89", "hopper": "sm90", "blackwell": "sm120"}


class EngineError(ManifestError):
    """Engines that must not be run here; the message says why and how to build them anew."""


@dataclass(frozen=True)
class Device:
    """Where engines are to run: what the inference library and the driver say."""

    flavour: Flavour
    version: str
    """Of TensorRT or TensorRT-RTX."""
    sm: str
    """Compute capability, such as sm89."""
    system: str = SYSTEM


@dataclass(frozen=True)
class EngineInfo:
    """One engine's file."""

    file: str
    sha256: str
    graph_sha256: str
    """GraphInfo.sha256 of the graph that it was built from."""
    seconds: float
    """That building took."""


@dataclass(frozen=True)
class EngineRecord:
    """The engines of one exported folder for one kind of GPU."""

    flavour: Flavour
    version: str
    sm: str
    system: str
    precision: str
    profiles: tuple[Profile, ...]
    """In the order in which the engines have them."""
    engines: dict[str, EngineInfo]
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def load(cls, folder: Path) -> EngineRecord:
        """Read engines.json. Raises EngineError when it is missing, damaged or of another version."""
        path = folder / FILE_NAME
        again = f"build again: {rebuild_command(folder.parent.parent, folder.name)}"
        if not path.is_file():
            raise EngineError(f"no {FILE_NAME} in {folder}: {again}")
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            if (version := tree["schema_version"]) != SCHEMA_VERSION:
                raise EngineError(
                    f"{path} is of schema version {version!r}, this ddscale reads {SCHEMA_VERSION}: {again}"
                )
            profiles = tuple(Profile(**profile) for profile in tree.pop("profiles"))
            engines = {name: EngineInfo(**engine) for name, engine in tree.pop("engines").items()}
            return cls(profiles=profiles, engines=engines, **tree)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, EngineError):
                raise
            raise EngineError(f"{path} is damaged ({error!r}): {again}") from None

    def save(self, folder: Path) -> None:
        """Write engines.json."""
        text = json.dumps(dataclasses.asdict(self), indent=2)
        (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")

    @property
    def name(self) -> str:
        """Name of the folder in engines/."""
        return folder_name(self.flavour, self.sm)


def folder_name(flavour: str, sm: str) -> str:
    """Name of a folder in engines/."""
    return f"{flavour}-{sm}"


def sm_named(target: str) -> str:
    """`ada`, `8.9`, `89` or `sm89` as sm89. Raises ValueError for what is none of these."""
    text = FAMILIES.get(target.lower(), target.lower().removeprefix("sm").replace(".", ""))
    text = text.removeprefix("sm")
    if not re.fullmatch(r"\d{2,3}", text):
        raise ValueError(f"target {target!r} is not known: use {', '.join(FAMILIES)}, or sm75 to sm121.")
    return f"sm{text}"


def rebuild_command(export: Path, name: str) -> str:
    """The command that builds an export's engines for a flavour and target."""
    flavour, _, sm = name.rpartition("-")
    return f"python export/to_tensorrt.py {export} --flavour {flavour} --target {sm}"


def mismatches(record: EngineRecord, device: Device, graphs: dict[str, GraphInfo]) -> list[str]:
    """Why these engines may not run on that device for those graphs; empty when they may."""
    problems = []
    flavours = {"rtx": "TensorRT-RTX", "datacentre": "TensorRT"}
    if record.flavour != device.flavour:
        problems.append(f"they are for {flavours[record.flavour]}, this is {flavours[device.flavour]}")
    elif record.version != device.version:
        problems.append(
            f"they were built by {flavours[record.flavour]} {record.version}, this is {device.version}"
        )
    if record.sm != device.sm:
        problems.append(f"they are for GPUs of {record.sm}, this one is {device.sm}")
    if record.system != device.system:
        problems.append(f"they are for {record.system}, this is {device.system}")
    for name, graph in graphs.items():
        if name not in record.engines:
            problems.append(f"there is none for {name}")
        elif record.engines[name].graph_sha256 != graph.sha256:
            built_from = record.engines[name].graph_sha256[:12]
            problems.append(
                f"that of {name} was built from other weights ({built_from}... instead of {graph.sha256[:12]}...)"
            )
    return problems


def usable_engines(export: Path, device: Device, graphs: dict[str, GraphInfo]) -> tuple[Path, EngineRecord]:
    """The engines of an export for a device: their folder and record, checked against graphs and files.

    graphs: those that will be run, from the export's manifest.
    Raises EngineError naming every mismatch and the command that builds what fits.
    """
    wanted = folder_name(device.flavour, device.sm)
    command = rebuild_command(export, wanted)
    there = sorted(path.name for path in (export / FOLDER).glob("*") if (path / FILE_NAME).is_file())
    if not there:
        raise EngineError(f"{export} has no engines. Build them: {command}")
    if wanted not in there:
        raise EngineError(
            f"{export} has engines for {', '.join(there)}, this is {wanted}. Build them: {command}"
        )
    folder = export / FOLDER / wanted
    record = EngineRecord.load(folder)
    problems = mismatches(record, device, graphs)
    for name in graphs.keys() & record.engines.keys():
        engine = record.engines[name]
        if not (folder / engine.file).is_file():
            problems.append(f"{engine.file} is missing")
        elif sha256_of(folder / engine.file) != engine.sha256:
            problems.append(f"{engine.file} is not the file that was built")
    if problems:
        raise EngineError(
            f"the engines in {folder} cannot be used: {'; '.join(problems)}. Build again: {command}"
        )
    return folder, record


def check_batch(record: EngineRecord, manifest: Manifest, graph: str, batch: int) -> int:
    """Position of the first profile whose range holds a graph's batch. Raises EngineError naming the ranges."""
    ranges = [manifest.batches(graph, profile) for profile in record.profiles]
    for position, (least, _, most) in enumerate(ranges):
        if least <= batch <= most:
            return position
    stated = ", ".join(f"{least} to {most}" for least, _, most in ranges)
    raise EngineError(
        f"{graph} with a batch of {batch}: the engines were built for {stated}. Give fewer at once, or add a profile "
        "to the recipe, export and build again."
    )
