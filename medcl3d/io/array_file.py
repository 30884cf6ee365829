"""Array files that can be read in part: .npy memory maps, or .b2nd files compressed by blosc2."""

from __future__ import annotations

import hashlib
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from medcl3d.core.errors import DataError, MachineError
from medcl3d.io.atomic import open_atomic

Container = Literal["npy", "blosc2"]
SUFFIXES: dict[Container, str] = {"npy": ".npy", "blosc2": ".b2nd"}
PREPARE_AGAIN = "delete it and run the same prepare command again"

# Block (decompressed at once) and chunk (compressed as one piece), in voxels along each spatial axis. After
# nnU-Net 2.6 (nnunet_dataset.py, comp_blosc2_params): a block fits the 32 KiB L1 cache of a core (24^3 voxels
# of 2 bytes have 27 KiB), a chunk the 1.4 MB of the last cache level (72^3 voxels have 0.7 MB). Blocks of 16
# compress less; with blocks of 32, crops of 32^3 take a quarter longer.
_BLOCK, _CHUNK = 24, 72
# LZ4HC at level 5 is nnU-Net's choice; ZSTD needs 10 to 25 % less disk space and twice the time per crop.
_LEVEL = 5


class Stored(Protocol):
    """An array whose slices are NumPy arrays."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    def __getitem__(self, key: Any, /) -> np.ndarray: ...


@dataclass(frozen=True)
class _Compressed:
    """A blosc2 array in a memory map; both stay open with this object.

    DataError if a slice cannot be decompressed.
    """

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
            raise DataError(self.path, f"cannot be decompressed ({error})", PREPARE_AGAIN) from None


def write_array(path: Path, values: np.ndarray) -> tuple[str, int]:
    """Write an array atomically; the suffix decides the format.

    Returns the SHA-256 of the values, which does not depend on the format, and the size of the file in bytes.
    """
    values = np.ascontiguousarray(values)
    with open_atomic(path) as file:
        if path.suffix == SUFFIXES["npy"]:
            np.save(file, values)
        else:
            file.write(_compressed(values, path))
        size = file.tell()
    return hashlib.sha256(values.data).hexdigest(), size


def _compressed(values: np.ndarray, path: Path) -> bytes:
    """Compress each channel separately, in one thread, since several scans are prepared in parallel."""
    blosc2 = import_blosc2(path)
    channels, size = (1,) * (values.ndim - 3), values.shape[-3:]
    chunks, blocks = (channels + tuple(min(limit, n) for n in size) for limit in (_CHUNK, _BLOCK))
    cparams = {
        "codec": blosc2.Codec.LZ4HC,
        "clevel": _LEVEL,
        "filters": [blosc2.Filter.SHUFFLE],
        "nthreads": 1,
    }
    return blosc2.asarray(values, chunks=chunks, blocks=blocks, cparams=cparams).to_cframe()


def open_array(path: Path) -> Stored:
    """Open an array file. DataError if it is not one; MachineError if it needs blosc2, which is missing."""
    try:
        if path.suffix == SUFFIXES["npy"]:
            # A plain array over the map: indexing np.memmap itself costs a Python call per slice.
            return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
        blosc2 = import_blosc2(path)
        with path.open("rb") as file:
            frame = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # Not blosc2.open: it follows references in a file to other files and evaluates expressions, and it
        # copies each block out of its own map. Arrays opened in this way decompress on the thread that reads.
        return _Compressed(path, frame, blosc2.ndarray_from_cframe(frame))
    except MachineError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise DataError(path, f"cannot be read ({reason})", "run the same prepare command again") from None
    except Exception as error:  # which error blosc2 raises depends on the bytes
        raise DataError(path, f"cannot be read ({error})", PREPARE_AGAIN) from None


def import_blosc2(where: Any) -> Any:
    """Import the optional package blosc2. MachineError, beginning with `where`, if it is not installed."""
    try:
        import blosc2
    except ImportError:
        remedy = "pip install 'medcl3d[blosc2]' (Python 3.11 or later)"
        raise MachineError(where, "needs blosc2, which is not installed", remedy) from None
    return blosc2
