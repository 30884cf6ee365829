"""An array in one file, of which a part can be read alone: .npy as a memory map, or .b2nd compressed by blosc2."""

from __future__ import annotations

import hashlib
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from medcl3d.data.atomic import replacing
from medcl3d.errors import DataError, MachineError

Container = Literal["npy", "blosc2"]
SUFFIXES: dict[Container, str] = {"npy": ".npy", "blosc2": ".b2nd"}
AGAIN = "delete it and run the same prepare command again"

# What is decompressed at once, and what is compressed as one piece, in voxels along each spatial axis. After nnU-Net 2.6
# (nnunet_dataset.py, comp_blosc2_params): a block fits the 32 KiB of a core's first cache, 24^3 voxels of 2 bytes have 27 KiB,
# and a chunk the 1.4 MB of the last, 72^3 have 0.7 MB. Blocks of 16 compress less, of 32 cost crops of 32^3 a quarter more.
_BLOCK, _CHUNK = 24, 72
# LZ4HC at level 5 is what nnU-Net has come to; ZSTD takes 10 to 25 percent less on the disk and twice the time of a crop.
_LEVEL = 5


class Stored(Protocol):
    """What can be sliced as a NumPy array; a slice of it is a NumPy array."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    def __getitem__(self, key: Any, /) -> np.ndarray: ...


@dataclass(frozen=True)
class _Compressed:
    """A blosc2 array in a memory map, both open as long as this lives. DataError where a slice cannot be decompressed."""

    path: Path
    frame: mmap.mmap
    array: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.array.dtype)

    def __getitem__(self, key: Any, /) -> np.ndarray:
        try:
            return self.array[key]
        except RuntimeError as error:
            raise DataError(f"{self.path}: cannot be decompressed ({error}); {AGAIN}") from None


def write_array(path: Path, values: np.ndarray) -> tuple[str, int]:
    """Write an array, atomically, as the suffix says. Returns the hash of its values, whatever the container, and the file's bytes."""
    values = np.ascontiguousarray(values)
    with replacing(path) as file:
        if path.suffix == SUFFIXES["npy"]:
            np.save(file, values)
        else:
            file.write(_compressed(values, path))
        size = file.tell()
    return hashlib.sha256(values.data).hexdigest(), size


def _compressed(values: np.ndarray, path: Path) -> bytes:
    """Channels apart; one thread, since scans are prepared beside each other."""
    blosc2 = import_blosc2(path)
    chunks, blocks = ((1,) * (values.ndim - 3) + tuple(min(most, n) for n in values.shape[-3:]) for most in (_CHUNK, _BLOCK))
    how = {"codec": blosc2.Codec.LZ4HC, "clevel": _LEVEL, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1}
    array = blosc2.asarray(values, chunks=chunks, blocks=blocks, cparams=how)
    return array.to_cframe()


def open_array(path: Path) -> Stored:
    """Open the file of an array. DataError where it is none; MachineError where it needs blosc2, which is missing."""
    try:
        if path.suffix == SUFFIXES["npy"]:
            # A plain array over the map: indexing np.memmap itself costs a Python call a slice.
            return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
        blosc2 = import_blosc2(path)
        with path.open("rb") as file:
            frame = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # Not blosc2.open: it follows what a file says of other files and of expressions, and copies each block out of its own
        # map. Arrays made in this way decompress on the thread that reads.
        return _Compressed(path, frame, blosc2.ndarray_from_cframe(frame))
    except MachineError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); run the same prepare command again") from None
    except Exception as error:  # blosc2 raises what the bytes make it raise
        raise DataError(f"{path}: cannot be read ({error}); {AGAIN}") from None


def import_blosc2(where: Any) -> Any:
    """The package, which not everyone has. MachineError, naming what needs it."""
    try:
        import blosc2
    except ImportError:
        raise MachineError(
            f"{where}: blosc2 is not installed, and needed here; pip install 'medcl3d[blosc2]' (Python 3.11 or later)"
        ) from None
    return blosc2
