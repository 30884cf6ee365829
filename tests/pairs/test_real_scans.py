"""Every strategy on real scans: a short pretraining gives every anchor a positive, and ends below its placebo's loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medcl3d.data.options import prepare_options
from medcl3d.data.prepare import prepare
from medcl3d.training.pretrain import pretrain

CONFIGS = Path(__file__).parents[2] / "configs" / "pretrain"
SOURCES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "hippocampus": ("decathlon", "hippocampus", {}),
    "ixi40": ("bids", "ixi40", {}),
    "ms": ("bids", "ms_longitudinal", {"spacing_mm": [1.5, 1.5, 1.5]}),
    "sarcoma": ("csv", "sarcoma", {"spacing_mm": [3, 3, 3], "test_fraction": 0.4}),
    "sunnybrook": ("csv", "sunnybrook", {"assume_spacing_mm": [2.6, 2.6, 9], "test_fraction": 0.4}),
}
SMALL = ("data.patch_size=[32, 32, 32]", "train.samples_per_step=16")
# A shipped configuration, what is changed of it, and whether the placebo is another task from the first batch on.
CASES: list[tuple[str, tuple[str, ...]]] = [
    ("ms_same_patient", SMALL),
    ("ms_longitudinal", SMALL),
    ("sunnybrook_same_patient", ()),
    ("sarcoma_cross_modality", ()),
    ("sarcoma_cross_modality", ("pairs={cross_modality: {modalities: [CT, MR], across_frames: body}}",)),
    ("ixi_metadata", ()),
    ("ixi_tabular", ()),
    ("ixi_slice_position", ()),
    ("ixi_adjacent_resnet", ()),
    ("ixi_adjacent_resnet", ("pairs=voxel_correspondence", "objective=dense", "encoder={unet3d: {channels: [8, 32, 64, 128]}}")),
    ("hippocampus_slice_position", ()),
    ("hippocampus_slice_position", ("pairs={adjacent_slices: {axis: 1, thickness_mm: 8, max_gap_mm: 4, ignore_mm: 8}}",)),
    ("hippocampus_dense", ()),
    ("hippocampus_body_position", ()),
]


@pytest.fixture(scope="session")
def stores(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real collections, prepared as the configurations say."""
    root = tmp_path_factory.mktemp("real")
    for name, (source, folder, options) in SOURCES.items():
        given = prepare_options(source, options)
        prepare(source, shared_data / folder, root / "data" / name, fields=given.fields, options=given.options)
    return root


def last_losses(config: str, overrides: tuple[str, ...], placebo: bool, stores: Path) -> tuple[float, list[dict[str, float]]]:
    """Mean loss of the last third of a short pretraining, and all logged rows."""
    name = f"{config}_{abs(hash(overrides)) % 10_000}_{placebo}"
    more = ("train.steps=90", "train.warmup_steps=9", "train.log_every=3", f"placebo={str(placebo).lower()}", f"out_dir={stores / name}")
    run = pretrain(CONFIGS / f"{config}.yaml", (*overrides, *more))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return float(np.mean([row["loss"] for row in rows[-10:]])), rows


@pytest.mark.slow
@pytest.mark.parametrize(("config", "overrides"), CASES, ids=[f"{config} {' '.join(changes)[:40]}" for config, changes in CASES])
def test_it_learns_what_its_placebo_does_not_know(
    config: str, overrides: tuple[str, ...], stores: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(stores)
    loss, rows = last_losses(config, overrides, False, stores)
    assert all(row["anchors_without_positive"] == 0 for row in rows), "an anchor had no positive"
    assert loss < rows[0]["loss"], "it learns"
    of_placebo, _ = last_losses(config, overrides, True, stores)
    with capsys.disabled():
        print(f"\n{config} {' '.join(overrides)}: loss {loss:.3f}, its placebo's {of_placebo:.3f}")
    assert loss < of_placebo
