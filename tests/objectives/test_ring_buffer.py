"""Ring buffers of embeddings hold the last chosen rows, in their order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medcl3d.objectives.relating import append


@pytest.mark.parametrize("size", [1, 5, 8, 20])
def test_a_ring_buffer_equals_writing_row_by_row(size: int) -> None:
    """Batches smaller and larger than the buffer, with all, some and none of their rows chosen."""
    rng = np.random.default_rng(0)
    buffer, count, expected, written = (
        torch.zeros(size, 1),
        torch.zeros((), dtype=torch.int64),
        [0.0] * size,
        0,
    )
    for number in (3, 8, 0, 12, 5, 20, 7):
        rows, chosen = rng.random(number).astype(np.float32), rng.random(number) < rng.choice([0.0, 0.5, 1.0])
        # Of more rows than the buffer holds, only the last have a position of their own.
        for value in rows[chosen][-size:] if number > size else rows[chosen]:
            expected[written % size] = float(value)
            written += 1
        append(count, torch.from_numpy(chosen), (buffer, torch.from_numpy(rows)[:, None]))
        assert int(count) == written and buffer[:, 0].tolist() == expected
