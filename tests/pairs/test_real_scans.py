"""All strategies on real scans: after a short pretraining each anchor has a positive, and the loss is below
the placebo's.

Both networks are evaluated by the strategy's loss, on crops that neither was trained on. The final training
losses are not
comparable, since a placebo can be the easier task: with modalities permuted, there are fewer pairs, of fewer
patients, or negatives are of another modality and distinguishable by that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medcl3d.config.loading import load
from medcl3d.preprocessing.options import prepare_options
from medcl3d.preprocessing.prepare import prepare
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.parts import assemble
from medcl3d.pretraining.pretrain import pretrain
from medcl3d.training.checkpoint import load_latest

CONFIGS = Path(__file__).parents[2] / "configs" / "pretrain"
SOURCES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "hippocampus": ("decathlon", "hippocampus", {}),
    "ixi40": ("bids", "ixi40", {}),
    "ixi40_5mm": ("bids", "ixi40", {"spacing_mm": [5, 5, 5]}),
    "ms": ("bids", "ms_longitudinal", {"spacing_mm": [3, 3, 3]}),
    "sarcoma": ("csv", "sarcoma", {"spacing_mm": [3, 3, 3], "test_fraction": 0.4}),
    "sunnybrook": ("csv", "sunnybrook", {"assume_spacing_mm": [2.6, 2.6, 9], "test_fraction": 0.4}),
}
SHORT = ("train.steps=90", "train.warmup_steps=9", "train.log_every=3")
LONGER = ("train.steps=300", "train.warmup_steps=30")  # the signal is the identity of the patient
UNSEEN = range(10_000, 10_016)
# A shipped configuration and its overrides.
CASES: list[tuple[str, tuple[str, ...]]] = [
    ("ms_same_patient", LONGER),
    ("ms_longitudinal", ()),
    ("sunnybrook_same_patient", ()),
    ("sarcoma_cross_modality", ()),
    ("sarcoma_cross_modality", ("pairs={cross_modality: {modalities: [CT, MR], across_frames: body}}",)),
    *(("ixi_metadata", (f"seed={seed}", *LONGER)) for seed in range(3)),
    *(("ixi_tabular", (f"seed={seed}", *LONGER)) for seed in range(3)),
    ("ixi_slice_position", ()),
    ("ixi_adjacent_resnet", ()),
    (
        "ixi_adjacent_resnet",
        (
            "pairs=voxel_correspondence",
            "objective=dense",
            "encoder={unet3d: {channels: [8, 32, 64, 128]}}",
            "train.samples_per_step=8",
            "train.lr=2e-3",
        ),
    ),
    ("hippocampus_slice_position", ()),
    (
        "hippocampus_slice_position",
        ("pairs={adjacent_slices: {axis: 1, thickness_mm: 8, max_gap_mm: 4, ignore_mm: 8}}",),
    ),
    ("hippocampus_dense", ("train.samples_per_step=8",)),
    ("hippocampus_body_position", ("train.samples_per_step=8",)),
]
# A placebo keeps the pairs of a sample. With two visits time only weights samples
# (tests/pairs/test_longitudinal.py), and one
# point in two crops remains one point: these placebos draw the same positives and lose almost no signal. Both
# figures are
# printed without a claim (docs/results/appendix.md).
SAME_POSITIVES = ("longitudinal", "voxel_correspondence")


@pytest.fixture(scope="session")
def stores(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real collections, prepared as in the configurations."""
    root = tmp_path_factory.mktemp("real")
    for name, (source, folder, options) in SOURCES.items():
        given = prepare_options(source, options)
        prepare(
            source, shared_data / folder, root / "data" / name, fields=given.fields, options=given.options
        )
    return root


def pretrained(
    config: str, overrides: tuple[str, ...], placebo: bool, stores: Path
) -> tuple[Path, list[dict[str, float]]]:
    """Run a short pretraining; return the run folder and its logged rows."""
    name = f"{config}_{abs(hash(overrides)) % 10_000}_{placebo}"
    run = pretrain(
        CONFIGS / f"{config}.yaml",
        (*SHORT, *overrides, f"placebo={str(placebo).lower()}", f"out_dir={stores / name}"),
    )
    return run, [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@torch.no_grad()
def loss_on_unseen(config: str, overrides: tuple[str, ...], run: Path) -> float:
    """The strategy's loss with a run's weights, on crops of steps far beyond those of training."""
    parts = assemble(load(CONFIGS / f"{config}.yaml", (*SHORT, *overrides), PretrainConfig))
    state = load_latest(run / "checkpoints")
    assert state is not None
    parts.learner.load_state_dict(state.model)
    parts.learner.eval()
    dataset = parts.dataset()
    return float(np.mean([float(parts.learner(dataset[step]).value) for step in UNSEEN]))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("config", "overrides"), CASES, ids=[f"{config} {' '.join(changes)[:40]}" for config, changes in CASES]
)
def test_a_strategy_learns_more_than_its_placebo(
    config: str,
    overrides: tuple[str, ...],
    stores: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(stores)
    run, rows = pretrained(config, overrides, False, stores)
    assert all(row["anchors_without_positive"] == 0 for row in rows), "an anchor had no positive"
    other, rows_of_placebo = pretrained(config, overrides, True, stores)
    ends = [float(np.mean([row["loss"] for row in some[-10:]])) for some in (rows, rows_of_placebo)]
    own, placebos = (loss_on_unseen(config, overrides, one) for one in (run, other))
    with capsys.disabled():
        print(
            f"\n{config} {' '.join(overrides)}: on unseen crops {own:.3f}, its placebo's network "
            f"{placebos:.3f}",
            end="",
        )
        print(
            f" (at the end of training {ends[0]:.3f}, its placebo {ends[1]:.3f}; first step "
            f"{rows[0]['loss']:.3f})"
        )
    assert ends[0] < rows[0]["loss"], "the loss falls"
    strategy = load(CONFIGS / f"{config}.yaml", overrides, PretrainConfig).pairs.name
    assert own < placebos or strategy in SAME_POSITIVES
