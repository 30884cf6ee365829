"""Structure at the centre of a crop: the class is right, and examples are the same in every run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medcl3d.core.errors import ConfigError
from medcl3d.distributed.seeding import generator
from medcl3d.downstream.tasks.structure_at_centre import StructureAtCentre
from medcl3d.store.store import Store


def at_centre(store: Store, scan: int, box: object) -> int:
    start, size = np.array(box.start), np.array(box.size)  # type: ignore[attr-defined]
    return int(store.read_label(scan)[tuple(start + size // 2)])


@pytest.mark.parametrize("size", [(8, 8, 8), (7, 9, 20)])
def test_the_class_is_the_structure_at_the_centre(ball_store: Store, size: tuple[int, int, int]) -> None:
    task = StructureAtCentre(structures=2, crops_per_scan=30)
    values = {"ball": 1, "cube": 3}
    assert task.class_names(ball_store) == ("ball", "cube")
    examples = task.examples(ball_store, [1, 2], size)
    assert len(examples) == 60
    for example in examples:
        assert (
            at_centre(ball_store, example.scan, example.boxes[0])
            == values[task.class_names(ball_store)[example.target]]
        )
    shares = np.bincount([example.target for example in examples]) / 60
    assert (abs(shares - 0.5) < 0.25).all()  # equally often, though the ball is much larger


def test_examples_are_of_structures_in_the_scan(ball_store: Store) -> None:
    task = StructureAtCentre(structures=2, crops_per_scan=10)
    assert {example.target for example in task.examples(ball_store, [0], (8, 8, 8))} == {0}  # p0 has no cube
    unlabelled = next(i for i in range(len(ball_store)) if not ball_store.has_label(i))
    assert not task.has_target(ball_store, unlabelled) and task.has_target(ball_store, 0)


def test_examples_are_the_same_in_every_run_and_training_draws_are_not(ball_store: Store) -> None:
    one, two = (
        StructureAtCentre(crops_per_scan=5).examples(ball_store, scans, (8, 8, 8)) for scans in ([1, 2], [2])
    )
    assert one[5:] == two
    task = StructureAtCentre()
    boxes = {task.draw(ball_store, 1, (8, 8, 8), generator(seed, 0, 0, 0))[0] for seed in range(5)}
    assert len(boxes) > 1


def test_one_structure_is_refused(ball_store: Store, ball_root: Path) -> None:
    with pytest.raises(ConfigError, match="have 1 structures, at least two are needed"):
        StructureAtCentre(structures=1).class_names(ball_store)
