"""Metrics and warnings of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medcl3d.core.relation import Relation
from medcl3d.losses.contrastive import Tile
from medcl3d.objectives.diagnostics import Tally, Watch, diagnose, effective_rank, own_sums
from medcl3d.training.run_folder import run_folder

HEALTHY = {"loss": 2.0, "effective_rank": 20.0, "anchors_without_positive": 0.0, "effective_negatives": 30.0}


def rows(number: int, **changes: float) -> list[str]:
    watch = Watch()
    return [
        text for i in range(number) for text in watch.look({**HEALTHY, "loss": 2.0 - 0.01 * i, **changes})
    ]


def tally_of(z: Tensor, relation: Relation) -> Tally:
    tally = Tally()
    tally.add(Tile(relation), z @ z.T)
    return tally


def test_a_healthy_run_gives_no_warning() -> None:
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
def test_each_warning_is_given_once_and_not_too_early(
    changes: dict[str, float], words: str, least: int
) -> None:
    warnings = rows(20, **changes)
    assert len(warnings) == 1 and words in warnings[0]
    assert not rows(least - 1, **changes)


def test_metrics_of_a_fine_tuning_are_accepted() -> None:
    assert Watch().look({"loss": 0.5, "dice": 0.1}) == []


def test_a_warning_is_written_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with run_folder(tmp_path / "run", {"seed": 0}, {"data": "a"}) as run:
        run.log(7, {**HEALTHY, "anchors_without_positive": 2.0})
    assert (tmp_path / "run" / "warnings.txt").read_text().startswith("step 7: 2 anchors")
    assert "warning: step 7: 2 anchors" in capsys.readouterr().err


def test_metrics_of_a_relation_computed_by_hand() -> None:
    z = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    positive = torch.tensor([[0, 1, 0], [0.5, 0, 0], [0, 0, 0.0]])
    negative = torch.tensor([[0, 0, 1], [0.5, 0, 1], [0, 0, 0.0]])
    found = {
        name: float(value)
        for name, value in diagnose(own_sums(z, tally_of(z, Relation(positive, negative)))).items()
    }
    assert found["positives_per_anchor"] == pytest.approx(0.5)
    assert found["anchors_without_positive"] == 1
    assert found["effective_negatives"] == pytest.approx(2.5 / 3)
    assert found["fraction_ignored"] == pytest.approx(2 / 6), (
        "two pairs of the last row, without the diagonal"
    )
    assert found["alignment"] == pytest.approx(2.0), "both attracting pairs are orthogonal"
    assert effective_rank(z) > 1.5 and effective_rank(torch.ones(5, 3)) == pytest.approx(1.0, abs=1e-3)


def test_tiles_give_the_counts_of_the_whole_matrix() -> None:
    """Tiles of rows, one of which covers only some columns: in the other columns P = 0 and M = 1."""
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
    whole = diagnose(own_sums(z, tally_of(z, Relation(positive, negative))))
    for name, value in diagnose(own_sums(z, tally)).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-6, atol=1e-9)


def test_only_rows_that_are_columns_are_excluded_from_ignored_pairs() -> None:
    """Local views against global ones, as for a momentum encoder: two of four rows are also columns."""
    positive = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    negative = torch.zeros_like(positive)
    tally = Tally()
    tally.add(Tile(Relation(positive, negative)), selves=torch.tensor(2))
    found = diagnose(own_sums(F.normalize(torch.randn(4, 3), dim=1), tally))
    assert found["fraction_ignored"] == pytest.approx(1 / 6), "one of six pairs of different items"
