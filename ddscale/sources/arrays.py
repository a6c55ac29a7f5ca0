"""The `arrays` source: numbers in NumPy, HDF5, MATLAB and text files, with a layout that the recipe states."""

from __future__ import annotations

from functools import partial
from typing import Literal

from pydantic import Field, model_validator

from ddscale.recipes import Settings
from ddscale.sources.folder import FolderSource, list_folder
from ddscale.sources.provenance import Unit
from ddscale.sources.recording import Listing, OpenRecording

EXTENSIONS = (".npy", ".npz", ".csv", ".tsv", ".txt", ".h5", ".hdf5", ".mat")


class TextLayout(Settings):
    """How a table of numbers is written: a line per sample."""

    delimiter: str | None = None
    """What separates columns, or `whitespace`; left out: a tab in .tsv, otherwise a comma."""

    decimal: Literal[".", ","] = "."
    """What separates a number's whole part from its fraction: `,` in tables of a German, French... Excel."""

    comment: str | None = Field(None, min_length=1, max_length=1)
    """Character that begins lines to pass over, such as `%` or `#`."""

    header: bool = False
    """Whether the first line that is no comment names the columns."""

    columns: list[str] | list[int] | None = None
    """Columns that are channels: names from the header, or positions counted from 0; left out: all."""


class ArraysSource(FolderSource):
    """A folder of arrays, all of one layout."""

    kind: Literal["arrays"]

    sfreq: float = Field(gt=0)
    """Sampling rate, Hz."""

    unit: Unit
    """Unit of the numbers; nothing in such files says it."""

    axes: Literal["CT", "TC", "RCT", "RTC"] = "TC"
    """Order of the axes: C channels, T samples, R repetitions (trials), between which recording was interrupted.
    Text is always TC; MATLAB arrays are counted as MATLAB shows them."""

    channels: list[str] | int | None = None
    """Names of the channels in order, or just how many there must be; left out: a text header's names, or a
    number each."""

    key: str | None = None
    """Which array of a .npz, .h5 or .mat file: its name, with `/` between levels; left out where there is one."""

    text: TextLayout = TextLayout()
    """How .csv, .tsv and .txt files are written."""

    @model_validator(mode="after")
    def _consistent(self) -> ArraysSource:
        names, columns = self.channels, self.text.columns
        if isinstance(names, list) and columns is not None and len(names) != len(columns):
            raise ValueError(
                f"{len(names)} names in `channels:` for {len(columns)} `text.columns:`; give one name per column."
            )
        if columns and isinstance(columns[0], str) and not self.text.header:
            raise ValueError(
                "`text.columns:` names columns, so the file needs a header: set `text.header: true`."
            )
        return self


def list_arrays(source: ArraysSource) -> Listing:
    """The array files of a folder, without opening them.

    Raises FileNotFoundError when the folder is missing or holds none.
    """
    return list_folder(
        source,
        EXTENSIONS,
        screen=lambda path: None,
        size_of=lambda path: path.stat().st_size,
        opener=lambda path: partial(open_array, path, source),
    )


def open_array(path: str, source: ArraysSource) -> OpenRecording:
    """Open one array file as a recording.

    Raises ValueError when its content is not of the stated layout, naming what it has.
    """
    from ddscale.sources.array_files import open_stated_array  # pandas and h5py only when they are needed

    return open_stated_array(path, source)
