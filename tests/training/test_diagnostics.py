"""What a run says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medcl3d.losses.contrastive import Tile
from medcl3d.training.diagnostics import Tally, Watch, diagnose, effective_rank
from medcl3d.training.logs import run_folder
from medcl3d.types import Relation

HEALTHY = {"loss": 2.0, "effective_rank": 20.0, "anchors_without_positive": 0.0, "effective_negatives": 30.0}


def rows(number: int, **changes: float) -> list[str]:
    watch = Watch()
    return [text for i in range(number) for text in watch.look({**HEALTHY, "loss": 2.0 - 0.01 * i, **changes})]


def tally_of(z: Tensor, relation: Relation) -> Tally:
    tally = Tally()
    tally.add(Tile(relation), z @ z.T)
    return tally


def test_a_healthy_run_is_not_warned_of() -> None:
    assert rows(20) == []


@pytest.mark.parametrize(
    ("changes", "words", "least"),
    [
        ({"anchors_without_positive": 3.0}, "3 anchors of this batch have no positive", 1),
        ({"effective_negatives": 0.2}, "0.2 effective negatives", 1),
        ({"effective_rank": 1.1}, "effective rank 1.10", 3),
        ({"loss": 2.0}, "the loss has not changed", 5),
    ],
)
def test_each_trouble_is_said_once_and_not_too_soon(changes: dict[str, float], words: str, least: int) -> None:
    said = rows(20, **changes)
    assert len(said) == 1 and words in said[0]
    assert not rows(least - 1, **changes)


def test_what_a_fine_tuning_logs_is_enough() -> None:
    assert Watch().look({"loss": 0.5, "dice": 0.1}) == []


def test_a_warning_is_kept_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with run_folder(tmp_path / "run", {"seed": 0}, {"data": "a"}) as run:
        run.log(7, {**HEALTHY, "anchors_without_positive": 2.0})
    assert (tmp_path / "run" / "warnings.txt").read_text().startswith("step 7: 2 anchors")
    assert "warning: step 7: 2 anchors" in capsys.readouterr().err


def test_the_numbers_of_a_relation_by_hand() -> None:
    z = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    positive = torch.tensor([[0, 1, 0], [0.5, 0, 0], [0, 0, 0.0]])
    negative = torch.tensor([[0, 0, 1], [0.5, 0, 1], [0, 0, 0.0]])
    found = {name: float(value) for name, value in diagnose(z, tally_of(z, Relation(positive, negative))).items()}
    assert found["positives_per_anchor"] == pytest.approx(0.5)
    assert found["anchors_without_positive"] == 1
    assert found["effective_negatives"] == pytest.approx(2.5 / 3)
    assert found["fraction_left_alone"] == pytest.approx(2 / 6), "two pairs of the last row, and nothing of the diagonal"
    assert found["alignment"] == pytest.approx(2.0), "both attracted pairs are at a right angle"
    assert effective_rank(z) > 1.5 and effective_rank(torch.ones(5, 3)) == pytest.approx(1.0, abs=1e-3)


def test_tiles_are_counted_as_the_whole_is() -> None:
    """Blocks of rows, one of them told of some columns only: the others have P = 0 and M = 1."""
    rng = torch.Generator().manual_seed(0)
    z = F.normalize(torch.randn(10, 4, generator=rng), dim=1)
    positive = torch.zeros(10, 10)
    positive[:5, :5] = torch.rand(5, 5, generator=rng) * (1 - torch.eye(5))
    negative = (1 - positive) * (1 - torch.eye(10))
    negative[1, 3] = negative[7, 2] = 0
    tally, similarity = Tally(), z @ z.T
    some = torch.arange(5)
    tally.add(Tile(Relation(positive[:5, :5], negative[:5, :5]), some), similarity[:5])
    tally.add(Tile(Relation(positive[5:], negative[5:])), similarity[5:])
    whole = diagnose(z, tally_of(z, Relation(positive, negative)))
    for name, value in diagnose(z, tally).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-6, atol=1e-9)


def test_rows_that_are_no_columns_leave_nothing_alone_by_being_absent() -> None:
    """Small views against large ones, as a teacher sees them: two of the four rows are among the columns."""
    positive = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    negative = torch.zeros_like(positive)
    tally = Tally()
    tally.add(Tile(Relation(positive, negative)), selves=torch.tensor(2))
    found = diagnose(F.normalize(torch.randn(4, 3), dim=1), tally)
    assert found["fraction_left_alone"] == pytest.approx(1 / 6), "one of six pairs of different things"
