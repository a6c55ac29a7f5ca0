"""A store behind a URL, read through a cache on this node: fsspec's file systems do the transport."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddscale.store import layout, tables
from ddscale.store.manifest import Manifest, read_manifest
from ddscale.store.retrying import patiently
from ddscale.store.shard_cache import ShardCache
from ddscale.store.shard_files import ReadError

_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "http": "aiohttp",
    "https": "aiohttp",
}
_PACKAGES |= {"abfs": "adlfs", "abfss": "adlfs", "az": "adlfs", "hf": "huggingface_hub", "sftp": "paramiko"}


class RemoteFolder:
    """Files below a URL.

    Raises ValueError for a protocol that fsspec does not know, ModuleNotFoundError naming the package it needs.
    """

    def __init__(self, url: str) -> None:
        import fsspec.core

        self.url = url.rstrip("/")
        protocol = url.split("://")[0].lower()
        try:
            self._fs, root = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            package = _PACKAGES.get(protocol, f"fsspec's package for {protocol}://")
            raise ModuleNotFoundError(
                f"{url} cannot be opened: {protocol}:// needs {package}, which is not installed ({error}): "
                f"pip install {_PACKAGES.get(protocol, 'it')}, or copy the store to a local folder."
            ) from error
        except ValueError as error:
            raise ValueError(
                f"{url} cannot be opened ({error}): use s3://, gs://, https://, file:// or another protocol of fsspec."
            ) from error
        self._root = str(root).rstrip("/")

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where the server does not say. Raises ReadError."""
        size: int | None = self._asked(name, lambda path: self._fs.info(path)["size"])
        return size

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file to the local path `target`. Raises ReadError."""
        self._asked(name, lambda path: self._fs.get_file(path, os.fspath(target)))

    def _asked(self, name: str, call: Callable[[str], Any]) -> Any:
        try:
            return call(f"{self._root}/{name}")
        except (FileNotFoundError, PermissionError) as error:
            cause = "it is not there" if isinstance(error, FileNotFoundError) else str(error)
            raise ReadError(f"Cannot fetch {self.url}/{name}: {cause}.", transient=False) from error
        except Exception as error:  # each file system has its own, and few of them are OSErrors
            self._fs.invalidate_cache()
            raise ReadError(
                f"Cannot fetch {self.url}/{name}: {type(error).__name__}: {error}.", transient=True
            ) from error


class Origin:
    """Where the files of an open store come from, and the folder of the cache where they lie.

    The folder belongs to the manifest's content: the same store at two addresses shares it, and one that has grown
    or was ingested anew gets another.
    """

    def __init__(self, remote: RemoteFolder, cache: ShardCache, folder: Path) -> None:
        self.url = remote.url
        self.cache = cache
        self.folder = folder
        self._remote = remote

    def hold(self, name: str, sound: Callable[[Path], bool] | None = None, insist: bool = False) -> Path:
        """Have a file of the store in the cache. Raises ReadError.

        sound: whether what was fetched is what it should be; fetched again if not, and then, with `insist`, refused.
        """
        self.cache.hold(self._remote, name, self.folder / name, sound, insist)
        return self.folder / name

    def open(self, name: str, sound: Callable[[Path], bool]) -> int:
        """Descriptor of a file, fetched when the cache has not got it. Raises ReadError."""
        for _ in range(3):
            try:
                descriptor = os.open(self.folder / name, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                self.hold(name, sound)
            else:
                os.utime(descriptor)  # what is evicted is what was not opened for longest
                return descriptor
        raise ReadError(
            f"{name} of {self.url} was evicted from {self.cache.folder} before it could be opened, three times: raise "
            "data.cache.max_gb.",
            transient=True,
        )


def fetch_manifest(remote: RemoteFolder) -> tuple[Manifest, bytes]:
    """The manifest of the store there, read and as it is.

    Raises what `read_manifest` raises, ReadError when it cannot be fetched within a minute.
    """
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / layout.MANIFEST
        try:
            patiently(lambda: remote.fetch(layout.MANIFEST, path))
            manifest = read_manifest(Path(temporary))
        except ReadError as error:
            if error.transient:
                raise
            raise FileNotFoundError(
                f"No store at {remote.url}: {error} An ingest that has not finished has none yet."
            ) from error
        except ValueError as error:
            raise ValueError(str(error).replace(temporary, remote.url)) from error
        return manifest, path.read_bytes()


def open_origin(url: str, cache: ShardCache) -> tuple[Manifest, Origin]:
    """The manifest of the store at `url` and its origin, with manifest and indexes in the cache.

    Raises what `fetch_manifest` raises, ValueError when an index is not the one the manifest names.
    """
    remote = RemoteFolder(url)
    manifest, content = fetch_manifest(remote)
    folder = cache.folder / hashlib.sha256(content).hexdigest()[:24]
    layout.write_bytes(folder / layout.MANIFEST, content)
    origin = Origin(remote, cache, folder)
    for name in (layout.RECORDS, layout.IMAGES):
        if name in manifest.tables:
            _hold_index(origin, name, manifest.tables[name].sha256)
    return manifest, origin


def _hold_index(origin: Origin, name: str, sha256: str) -> None:
    def sound(path: Path) -> bool:
        return tables.sha256_of(path) == sha256

    try:
        patiently(lambda: origin.hold(name, sound, insist=True))
    except ReadError as error:
        if error.transient:
            raise
        raise ValueError(
            f"{error} The store at {origin.url} is half-published or half-copied: finish that first."
        ) from error
