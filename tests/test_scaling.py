"""The model of several ranks follows its formulas; benchmarks of ranks, rows and GPUs fill their tables."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import COLUMNS, Run, measured
from benchmarks.measure import Bench, Scale, Table
from benchmarks.prediction import Assumed, prediction
from benchmarks.rows import STRATEGIES, rows
from benchmarks.scaling import TITLES, scaling
from benchmarks.scaling_model import (
    BUCKET,
    FIRST_BUCKET,
    KINDS,
    Link,
    Shape,
    Speed,
    hops,
    message_s,
    messages,
    sent_bytes,
    step,
    step_bytes,
)
from tests.test_cli import medcl3d

SHAPE = Shape(samples=8, hidden=256, dim=128, keys=40, weights=1000, activations=5000)
SPEED = Speed(load=1e-3, crop=1e-2, pair=1e-7, fixed=1e-3, links=dict.fromkeys(KINDS, Link(1e-4, 1e-9)))
SMALL = Scale(
    num_patients=6, shape=(36, 36, 36), repeats=2, steps=6, samples_per_step=2, rows=(40,), ranks=(1, 2)
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), SMALL)


def test_one_rank_sends_nothing_and_a_ring_sends_each_part_once_or_twice() -> None:
    assert step(SHAPE, SPEED, 1).communication == 0
    assert sent_bytes(("all-reduce", 800), 4) == 2 * 3 * 200 and hops("all-reduce", 4) == 6
    assert sent_bytes(("all-gather", 800), 4) == sent_bytes(("reduce-scatter", 800), 4) == 2400
    assert message_s(("all-gather", 800), 4, SPEED) == pytest.approx(3 * 1e-4 + 2400e-9)


def test_the_loss_and_what_is_gathered_grow_with_the_ranks_and_the_encoder_does_not() -> None:
    two, eight = (step(SHAPE, SPEED, ranks) for ranks in (2, 8))
    assert eight.loss == pytest.approx(4 * two.loss) and eight.encoder == two.encoder == 16e-2
    of_a_view = 8 * 256 + 8 * 128 + 16 * 40
    assert step_bytes(SHAPE, 8) - step_bytes(SHAPE, 2) == 6 * 16 * of_a_view
    assert step_bytes(SHAPE, 1) == 16 * 1000 + 16 * 5000 + 16 * of_a_view


def test_ranks_that_outnumber_the_cores_take_turns() -> None:
    own, shared = (step(SHAPE, replace(SPEED, cores=cores), 4) for cores in (4, 2))
    assert shared.total == pytest.approx(2 * own.total)


def test_workers_load_beside_the_step() -> None:
    alone, beside = (step(SHAPE, replace(SPEED, workers=workers, load=0.01), 2) for workers in (0, 4))
    assert alone.total == pytest.approx(alone.load + beside.total) and beside.load == alone.load / 4
    slow = step(SHAPE, replace(SPEED, workers=1, load=1.0), 2)
    assert slow.total == slow.load == 8.0


def test_gradients_are_sent_in_buckets() -> None:
    shape = replace(SHAPE, weights=(FIRST_BUCKET + BUCKET + 40) // 4)
    sizes = [size for kind, size in messages(shape) if kind == "all-reduce"]
    assert sizes == [16, FIRST_BUCKET, BUCKET, 40, 4]


def test_a_prediction_follows_from_its_assumptions() -> None:
    assumed = Assumed(patch=(32, 32, 32), depth=10)
    values = [
        {row[0]: row[1] for row in prediction(SPEED, one).rows}
        for one in (assumed, replace(assumed, gb_per_s=math.inf, latency_us=0.0))
    ]
    assert values[0]["negatives per anchor"] == str(2 * (64 * 32 - 1)) == "4094"
    assert values[0]["steps of an epoch"] == str(100_000 // 2048)
    assert values[1]["communication, ms"] == "0" != values[0]["communication, ms"]


def test_without_a_gpu_the_benchmark_is_refused_with_the_exit_code_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = medcl3d("benchmark", "gpu")
    assert done.exit_code == 4 and "benchmark gpu: no GPU is visible to torch" in done.stderr


def filled(table: Table) -> bool:
    return all(len(row) == len(table.columns) and all(row) for row in table.rows) and bool(table.rows)


@pytest.mark.slow
def test_steps_of_ranks_are_measured_on_processors_as_on_gpus(bench: Bench) -> None:
    run = Run(patch=(32, 32, 32), depth=10, samples=2, workers=0, steps=4, log_every=1, matrix=64)
    table = measured(bench, run, [1, 2], torch.device("cpu"))
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in table.rows]
    assert [row["ranks"] for row in rows] == ["1", "2"] and rows[0]["efficiency"] == "100%" and filled(table)
    assert all(float(row["TFLOP/s per rank"]) > 0 and float(row["peak GiB"]) > 0.1 for row in rows)


@pytest.mark.slow
def test_predictions_are_held_against_ranks(bench: Bench) -> None:
    tables = scaling(bench)
    assert tuple(table.title for table in tables) == TITLES and all(map(filled, tables))
    found = [dict(zip(tables[1].columns, row, strict=True)) for row in tables[1].rows]
    assert [row["ranks"] for row in found] == ["1", "2"]
    assert all(row["MB sent per rank, predicted"] == row["MB sent, recorded"] for row in found)
    assert all(0.05 < float(row["predicted / measured"]) < 20 for row in found)


@pytest.mark.slow
def test_rows_are_measured_for_each_strategy(bench: Bench) -> None:
    table = rows(bench)
    assert [row[:2] for row in table.rows] == [("40", name) for name in STRATEGIES]
    assert filled(table) and all(float(row[3]) > 0 and float(row[4]) > 50 for row in table.rows)
    assert not list(Path(bench.folder).glob("rows_*")), "the rows are removed"
