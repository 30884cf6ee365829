"""Steps on a pretended device mix no devices, and wait only where `allowed.py` permits it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medcl3d.config.field_types import Choice
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.downstream.crop_dataset import BATCH_SIZE, mean_outputs, whole_scans
from medcl3d.encoders.network import build_network
from medcl3d.objectives import OBJECTIVES
from medcl3d.pairs import PAIRS
from medcl3d.store.store import Store
from tests.pretend.allowed import FURTHER, INFERENCE, MAX_BLOCKING, MAX_READS, MORE_READS, READS
from tests.pretend.device import BLOCKING, COPY, DEVICE, MIXED, READ, pretended_device
from tests.pretend.steps import ENCODERS, by_kind, finetuning_steps, pretraining_steps

SAMPLE = [
    ("simclr", "overlapping_crops", "unet3d"),
    ("dense", "voxel_correspondence", "unet3d"),
    ("vicreg", "multi_crop", "vit3d"),
]
ALL = [
    *((objective, strategy, "unet3d") for objective in OBJECTIVES.names() for strategy in PAIRS.names()),
    *((objective, "overlapping_crops", encoder) for objective in OBJECTIVES.names() for encoder in ENCODERS),
]


def check(store: Path, objective: str, strategy: str, encoder: str) -> None:
    record, rows = pretraining_steps(store, objective, strategy, encoder)
    step = record.steps[-2]  # the last step is logged
    assert not [place for kind, place in record.total if kind == MIXED]
    reads = {place: number for (kind, place), number in step.items() if kind == READ}
    further = {place: n for place, n in reads.items() if place.startswith(FURTHER)}
    unknown = sorted(reads.keys() - READS.keys() - further.keys())
    assert not unknown, "reads that tests/pretend/allowed.py does not list"
    assert sum(further.values()) <= MORE_READS.get(strategy, 0)
    assert sum(reads.values()) - sum(further.values()) <= MAX_READS, reads
    assert by_kind(step)[BLOCKING] <= MAX_BLOCKING, step
    assert rows[-1]["step"] == len(record.steps) - 1 and rows[-1]["loss"] == pytest.approx(rows[-1]["loss"])


@pytest.mark.parametrize(("objective", "strategy", "encoder"), SAMPLE)
def test_a_step_waits_only_where_it_may(
    tiny_store: Path, objective: str, strategy: str, encoder: str
) -> None:
    check(tiny_store, objective, strategy, encoder)


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "strategy", "encoder"), [one for one in ALL if one not in SAMPLE])
def test_all_steps_wait_only_where_they_may(
    tiny_store: Path, objective: str, strategy: str, encoder: str
) -> None:
    try:
        check(tiny_store, objective, strategy, encoder)
    except (ConfigError, DataError) as error:  # incompatible parts, or too few samples for a positive
        pytest.skip(str(error))


def test_the_device_records_what_a_gpu_would_wait_for() -> None:
    with pretended_device() as record:
        x = torch.arange(4.0).to(DEVICE)
        pinned = torch.ones(4).pin_memory().to(DEVICE, non_blocking=True)
        assert by_kind(record.total) == {BLOCKING: 1, COPY: 1}
        assert (x + pinned).device == DEVICE and record.total == record.total
        record.next_step()
        assert float(x.sum()) == 6 and x[x > 1].tolist() == [2, 3] and bool(x.isfinite().all())
        assert by_kind(record.steps[-1])[READ] == 4
        record.next_step()
        x[x > 1] = 0.0  # a fill, without a read
        assert not record.steps[-1]
        _ = x + torch.ones(4)
        assert by_kind(record.steps[-1]) == {MIXED: 1}
        assert torch.equal(x.cpu(), torch.tensor([0.0, 1.0, 0.0, 0.0]))


def test_values_and_gradients_are_those_of_the_cpu() -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.Conv3d(1, 2, 3), torch.randn(2, 1, 5, 5, 5)
    expected = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    with pretended_device():
        there = layer.to(DEVICE)
        found = torch.autograd.grad(there(x.to(DEVICE)).square().sum(), list(there.parameters()))
        found = tuple(gradient.cpu() for gradient in found)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "task", ["segmentation", pytest.param("structure_at_centre", marks=pytest.mark.slow)]
)
def test_fine_tuning_and_prediction_wait_only_where_they_may(tiny_store: Path, task: str) -> None:
    record, _, parts = finetuning_steps(tiny_store, task)
    assert not [place for kind, place in record.total if kind == MIXED]
    step = record.steps[-2]
    assert {place for kind, place in step if kind == READ} <= READS.keys()
    assert by_kind(step)[READ] <= MAX_READS and by_kind(step)[BLOCKING] <= MAX_BLOCKING, step
    scans = [int(parts.test.rows[0])]
    with pretended_device() as record:
        model, size = parts.model.to(DEVICE), parts.config.data.patch_size
        record.next_step()
        found = parts.task.evaluate(model, parts.store, scans, size, DEVICE, None, 0)
    assert found.cases and not [place for kind, place in record.total if kind == MIXED]
    assert {place for kind, place in record.steps[-1] if kind == READ} <= INFERENCE.keys()


def test_features_of_a_frozen_encoder_wait_once_per_batch_of_crops(tiny_store: Path) -> None:
    store = Store.open(tiny_store)
    torch.manual_seed(0)
    network = build_network(Choice("unet3d", ENCODERS["unet3d"]), store.num_channels, decoder=False)
    examples = whole_scans(store, [0, 1], (16, 16, 16))
    expected = mean_outputs(lambda x: network.encoder(x).pooled, store, examples, torch.device("cpu"), None)
    with pretended_device() as record:
        encoder = network.to(DEVICE).encoder
        record.next_step()
        found = mean_outputs(lambda x: encoder(x).pooled, store, examples, DEVICE, None)
    assert np.allclose(found, expected, rtol=1e-6)
    crops = sum(len(example.boxes) for example in examples)
    assert by_kind(record.steps[-1])[READ] == -(-crops // BATCH_SIZE)
    assert not by_kind(record.steps[-1])[BLOCKING] and not by_kind(record.steps[-1])[MIXED]
