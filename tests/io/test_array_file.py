"""Arrays and their slices round-trip through both containers; compressed blocks are small."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from medcl3d.core.errors import DataError
from medcl3d.io.array_file import SUFFIXES, open_array, write_array


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 30, 3, 80), (1, 73, 25, 24), (75, 1, 49)], ids=str)
@pytest.mark.parametrize("dtype", ["float16", "int16"])
def test_an_array_and_its_slices_round_trip(
    tmp_path: Path, container: str, shape: tuple[int, ...], dtype: str
) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 100, shape).astype(dtype)
    path = tmp_path / f"a{SUFFIXES[container]}"  # type: ignore[index]
    digest, size = write_array(path, np.asfortranarray(values))
    assert size == path.stat().st_size and digest == hashlib.sha256(values.tobytes()).hexdigest()
    stored = open_array(path)
    assert stored.shape == shape and stored.dtype == dtype
    np.testing.assert_array_equal(stored[...], values)
    for _ in range(20):
        low = [int(rng.integers(0, n)) for n in shape]
        part = tuple(slice(a, int(rng.integers(a + 1, n + 1))) for a, n in zip(low, shape, strict=True))
        np.testing.assert_array_equal(stored[part], values[part])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_block_has_one_channel_and_fits_the_l1_cache_of_a_core(tmp_path: Path) -> None:
    blosc2 = pytest.importorskip("blosc2")
    write_array(tmp_path / "a.b2nd", np.zeros((3, 100, 20, 90), dtype=np.float16))
    array = blosc2.open(str(tmp_path / "a.b2nd"), mode="r")
    assert array.blocks == (1, 24, 20, 24) and array.chunks == (1, 72, 20, 72)
    assert array.schunk.blocksize <= 32768


def test_an_undamaged_part_of_a_damaged_file_is_read(tmp_path: Path) -> None:
    """A slice decompresses only its own blocks, so that damage is an error only in the damaged blocks."""
    pytest.importorskip("blosc2")
    path = tmp_path / "a.b2nd"
    values = np.random.default_rng(0).integers(0, 4, (1, 144, 72, 72)).astype(np.int16)
    write_array(path, values)
    content = bytearray(path.read_bytes())
    content[len(content) * 5 // 8 : len(content) * 7 // 8] = b"\xff" * (
        len(content) * 7 // 8 - len(content) * 5 // 8
    )
    path.write_bytes(content)
    stored = open_array(path)
    np.testing.assert_array_equal(stored[:, :72], values[:, :72])
    with pytest.raises(
        DataError,
        match=r"a\.b2nd: cannot be decompressed .*; delete it and run the same prepare command again",
    ):
        stored[...]


def test_a_file_that_is_not_an_array_is_refused(tmp_path: Path, container: str) -> None:
    path = tmp_path / f"a{SUFFIXES[container]}"  # type: ignore[index]
    for content in (b"", b"no array", bytes(1000)):
        path.write_bytes(content)
        with pytest.raises(
            DataError, match=r"cannot be read .*; delete it and run the same prepare command again"
        ):
            open_array(path)
