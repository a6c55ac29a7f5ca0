"""An ingest from beginning to end: list, process in parallel, seal in sorted order, publish."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from ddscale import __version__
from ddscale.ingest import names, twins
from ddscale.ingest.assembly import Assembly
from ddscale.ingest.chain import Job
from ddscale.ingest.pool import open_pool
from ddscale.ingest.recipe import IngestRecipe
from ddscale.ingest.summary import Summary, summarise, write_summary
from ddscale.ingest.work import State, Step, read_state, steps
from ddscale.signal.quality import Quality
from ddscale.sources import list_recordings
from ddscale.sources.recording import Picture, Recording
from ddscale.store import images, layout, tables
from ddscale.store.images import ImageFile
from ddscale.store.manifest import StoreFormat, read_manifest
from ddscale.store.publishing import UNLISTED, DatasetTerms, Terms, publish
from ddscale.store.withdrawing import withdraw

OnProgress = Callable[[int, int, str], None]

FORMAT_NOTE = "format.json"
"""Under .staging: the settings of an ingest that has not been published yet."""


def run(recipe: IngestRecipe, on_progress: OnProgress | None = None) -> Summary:
    """Build the recipe's store, or continue it: recordings that are in it already are not touched.

    on_progress(done, total, name): after every picture, then after every recording.
    Interrupted at any point, by Ctrl-C or a power cut, it continues when called again. What is wrong with single
    recordings is in the summary; raises ValueError or FileNotFoundError when the recipe cannot be carried out at
    all or nothing is usable, OSError when the store cannot be written.
    """
    recordings: list[Recording] = []
    pictures: list[ImageFile] = []
    notes: list[str] = []
    terms = Terms(
        recipe.salt, names.splitting(recipe), names.blocklist(recipe), writer=f"ddscale {__version__}"
    )
    for source in recipe.sources:
        listing = list_recordings(source)
        recordings += listing.recordings
        pictures += [_image_file(source.dataset, picture) for picture in listing.pictures]
        notes += [f"dataset {source.dataset}: {note}" for note in listing.notes]
        terms.datasets[source.dataset] = DatasetTerms(source.licence, source.url, listing.rejected)
    store = layout.local_folder(recipe.out)
    with _sole_writer(store):
        content, quality = _as_built(store, recipe.store_format(), recipe.effective_quality)
        if quality != recipe.effective_quality:
            notes.append(
                f"{store} was begun before ddscale left out what is marked as bad: to stay of one kind, it keeps such "
                "stretches of new recordings as well. Ingest into a new folder (`out:`) to leave them out."
            )
        if (store / layout.STAGING).is_dir():
            layout.remove_temporaries(store)
        state = read_state(store)
        everybody = {f"{recording.dataset}/{recording.subject}" for recording in recordings}
        hashes = {name: names.hashed(name, recipe.salt) for name in everybody}
        recordings = names.as_stored(store, recordings, state, hashes)
        subjects = {known.subject for known in state.published.values()}
        names.check_held_out(recipe, recordings, subjects)
        in_store = {"/".join(name) for name in state.published}
        notes += names.unknown_blocked(recipe, recordings, subjects, in_store)
        if withdraw(store, content, terms.blocklist):
            state = read_state(store)
        todo, restated = steps(store, recordings, state, terms.blocklist, hashes)
        problems = [*_changed_pictures(store, pictures), *restated]
        new: Counter[str] = Counter()
        format_note = store / layout.STAGING / FORMAT_NOTE
        fresh = images.missing(store, pictures)
        if fresh:
            layout.write_bytes(format_note, content.model_dump_json().encode())
        # Before the recordings: a damaged picture stops the ingest now, and not after hours.
        images.add(store, content.shard_mb * 1e6, fresh, on_progress)
        if (
            fresh
            or todo
            or images.pending(store)
            or state.staged
            or state.sealed_shards
            or not _same_terms(store, terms)
        ):
            layout.write_bytes(format_note, content.model_dump_json().encode())
            job = Job(os.fspath(store), content, recipe.preprocessing, quality, recipe.salt)
            work = sum(step in (Step.PROCESS, Step.COMPARE) for _, step in todo)
            assembly = Assembly(job, todo, state)
            limit_s = None if recipe.recording_limit_h is None else 3600 * recipe.recording_limit_h
            with open_pool(recipe.workers, recipe.scheduler, work, limit_s) as pool:
                assembly.run(pool, on_progress)
            problems, new = [*problems, *assembly.changed], assembly.new
            if not new and not any(entry.status == "kept" for entry in state.published.values()):
                _give_up(store, state, [staged.detail or "" for staged in assembly.staged()])
            publish(store, content, assembly.staged(), terms)
        notes += twins.notes(store)
        summary = summarise(store, read_manifest(store), new, problems, notes)
        write_summary(store, summary)
    return summary


@contextlib.contextmanager
def _sole_writer(store: Path) -> Iterator[None]:
    """Two ingests into one folder would undo each other's work. Leaves no folder behind when nothing came of it."""
    if store.exists() and not store.is_dir():
        raise ValueError(f"out: {store} is a file. Name a folder for the store.")
    try:
        store.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(store, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise OSError(f"out: {store} cannot be written ({error.strerror}). Choose another folder.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some network file systems lock no folders; there the user has to take care.
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise OSError(
                    f"Another ingest is writing {store}. Wait for it to end, or stop it: this one can then continue."
                ) from None
        yield
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            store.rmdir()  # only when empty


def _as_built(store: Path, content: StoreFormat, quality: Quality) -> tuple[StoreFormat, Quality]:
    """The recipe's settings, or those that continue a store which knows no `marked_bad`.

    Raises ValueError when the folder holds a store of other settings, or something else.
    """
    staged_format = store / layout.STAGING / FORMAT_NOTE
    if (store / layout.MANIFEST).is_file():
        built = read_manifest(store).content
        remedy = "Ingest into a new folder (`out:`), or take back the change."
    elif staged_format.is_file():
        built = StoreFormat.model_validate_json(staged_format.read_bytes())
        remedy = f"Take back the change to continue, or remove {store / layout.STAGING} to start again."
    else:
        strange = sorted(path.name for path in store.iterdir())
        if strange and layout.STAGING not in strange:
            raise ValueError(
                f"out: {store} holds other things ({', '.join(strange[:5])}). Choose an empty or a new folder."
            )
        return content, quality
    if "marked_bad" not in built.quality:
        quality = quality.model_copy(update={"marked_bad": False})
        stated = {name: value for name, value in content.quality.items() if name != "marked_bad"}
        content = content.model_copy(update={"quality": stated})
    old, new = built.model_dump(mode="json"), content.model_dump(mode="json")
    differing = [part for name in old for part in _differences(name, old[name], new[name])]
    if differing:
        raise ValueError(f"{store} was built with other settings: {'; '.join(differing)}. {remedy}")
    return content, quality


def _differences(name: str, old: object, new: object) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(f"{name}.{key}", old.get(key), new.get(key))
    elif old != new:
        yield "another salt" if name == "salt_check" else f"{name} was {old}, the recipe asks {new}"


def _same_terms(store: Path, terms: Terms) -> bool:
    """Whether splits, blocklist, licences and the list of unusable files are as published."""
    if not (store / layout.MANIFEST).is_file():
        return False
    manifest = read_manifest(store)
    rejected = tables.read(
        store / layout.REJECTED, tables.REJECTED, ["dataset", "recording", "reason", "detail"]
    )
    listed = sorted(
        (row["dataset"], row["recording"], row["detail"])
        for row in rejected.to_pylist()
        if row["reason"] == UNLISTED and row["dataset"] in terms.datasets
    )
    found = sorted((name, *pair) for name, stated in terms.datasets.items() for pair in stated.unlisted)
    return (
        manifest.splitting == terms.splitting
        and manifest.blocklist == terms.blocklist
        and listed == found
        and all(
            name in manifest.datasets
            and (manifest.datasets[name].licence, manifest.datasets[name].url) == (stated.licence, stated.url)
            for name, stated in terms.datasets.items()
        )
        and all((store / name).is_file() for name in manifest.tables)
        and tables.sha256_of(store / layout.RECORDS) == manifest.tables[layout.RECORDS].sha256
    )


def _image_file(dataset: str, picture: Picture) -> ImageFile:
    return ImageFile(
        dataset=dataset,
        image=picture.image,
        suffix=picture.suffix,
        path=picture.path,
        read=picture.read,
        label=picture.label,
        caption=picture.caption,
        stated=picture.split,
    )


def _changed_pictures(store: Path, pictures: list[ImageFile]) -> list[str]:
    """Sentences about files of another length than the pictures stored under their names."""
    known = {
        (row["dataset"], row["image"]): row["length"]
        for row in images.present(store).select(["dataset", "image", "length"]).to_pylist()
    }
    changed = []
    for picture in pictures:
        length = known.get((picture.dataset, picture.image))
        place = Path(picture.path)
        if length is not None and place.is_file() and place.stat().st_size != length:
            changed.append(
                f"{picture.path} has changed since it was stored as {picture.dataset}/{picture.image}. The store keeps "
                "what it has: ingest into a new folder to take the new file."
            )
    return changed


def _give_up(store: Path, state: State, quarantined: list[str]) -> None:
    """Raises ValueError: there is not a single record. Leaves no half-made store behind."""
    if not state.published:
        images.remove_unpublished(store)
        shutil.rmtree(store / layout.STAGING, ignore_errors=True)
    shown = "\n".join(f"  - {line}" for line in quarantined[:20])
    more = f"\n  - and {len(quarantined) - 20} more" if len(quarantined) > 20 else ""
    raise ValueError(f"None of the {len(quarantined)} recordings found can be used:\n{shown}{more}")
