"""How EEG lies on disk: records in tar or Zarr shards, one index, one manifest.

store = open_store("demo/store")
window_TC = store.read(row, start, stop)     # int16; times store.step is µV
verify("demo/store").problems                # [] when all is well
describe("demo/store")                       # hours, subjects, channel counts, what was rejected
"""

from ddscale.store.describing import describe
from ddscale.store.images import ImageFile
from ddscale.store.manifest import Manifest, Montage
from ddscale.store.reading import Store, open_store
from ddscale.store.staging import StagedTrial
from ddscale.store.verifying import Report, verify
from ddscale.store.writing import ArrayRecording, write_store

__all__ = [
    "ArrayRecording",
    "ImageFile",
    "Manifest",
    "Montage",
    "Report",
    "StagedTrial",
    "Store",
    "describe",
    "open_store",
    "verify",
    "write_store",
]
