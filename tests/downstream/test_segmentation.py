"""Segmentation: foreground oversampling of patches, the loss, and training on simple structures."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.losses import DiceLoss

from medcl3d.config.field_types import Choice
from medcl3d.config.loading import load
from medcl3d.config.plain import plain
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.core.geometry import Triple
from medcl3d.downstream.finetune import FinetuneConfig
from medcl3d.downstream.patch_dataset import PatchBatch, PatchDataset, class_indices
from medcl3d.downstream.tasks import TASKS
from medcl3d.downstream.tasks.segmentation import Segmentation, dice_and_cross_entropy, dice_loss
from medcl3d.encoders.network import build_network
from medcl3d.sampling.plan import Plan
from medcl3d.store.store import Store

TRAIN = np.arange(1, 5)  # labelled training scans of the balls


def patches(
    store: Store,
    fraction: float,
    size: Triple = (8, 8, 8),
    steps: int = 50,
    num: int = 4,
    rank: int = 0,
    world_size: int = 1,
) -> PatchDataset:
    return PatchDataset(store, Plan(TRAIN, num, 0), (1, 3), size, fraction, None, steps, rank, world_size)


def equal(a: PatchBatch, b: PatchBatch) -> bool:
    return (
        torch.equal(a.voxels, b.voxels)
        and torch.equal(a.labels, b.labels)
        and a.boxes == b.boxes
        and a.scans == b.scans
    )


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1 / 3, 1.0])
def test_the_configured_fraction_of_patches_is_centred_on_foreground(
    ball_store: Store, fraction: float
) -> None:
    dataset = patches(ball_store, fraction)
    batches = [dataset[step] for step in range(len(dataset))]
    centred = [c for batch in batches for c in batch.centred]
    assert abs(sum(centred) - fraction * len(centred)) <= 1
    kinds = []
    for batch in batches:
        for label, box, scan, is_centred in zip(
            batch.labels, batch.boxes, batch.scans, batch.centred, strict=True
        ):
            shape = ball_store.collection.shapes[scan]
            assert all(a >= 0 and b <= n for a, b, n in zip(box.start, box.stop, shape, strict=True))
            if is_centred:
                assert (label > 0).any()
                clamped = any(a == 0 or b == n for a, b, n in zip(box.start, box.stop, shape, strict=True))
                if not clamped:
                    kinds.append(int(label[4, 4, 4]))
    assert 0 not in kinds


def test_classes_of_unequal_size_are_drawn_equally_often(ball_store: Store) -> None:
    """Both classes of a scan are drawn equally often: patches of one voxel show the class."""
    dataset = patches(ball_store, 1.0, size=(1, 1, 1), steps=100)
    labels = torch.cat([dataset[step].labels.flatten() for step in range(100)])
    assert (labels > 0).all()
    assert 0.4 < (labels == 1).float().mean() < 0.6
    scans = [scan for step in range(100) for scan in dataset[step].scans]
    assert set(np.unique(scans, return_counts=True)[1]) == {100}


def test_uniform_patches_reach_every_corner(ball_store: Store) -> None:
    dataset = patches(ball_store, 0.0, size=(16, 16, 8), steps=150)
    starts = np.array(
        [
            box.start
            for step in range(150)
            for box, scan in zip(dataset[step].boxes, dataset[step].scans, strict=True)
            if scan == 1
        ]
    )
    assert (starts.min(0) == 0).all()
    assert (starts.max(0) == ball_store.collection.shapes[1] - (16, 16, 8)).all()


def test_a_step_is_the_same_in_any_worker_and_any_rank(ball_store: Store) -> None:
    dataset = patches(ball_store, 0.5)
    again = pickle.loads(pickle.dumps(dataset))
    later = again[7]  # without the previous steps
    for step in range(3):
        dataset[step]
    assert equal(dataset[7], later)
    assert not equal(dataset[7], dataset[8])
    halves = [patches(ball_store, 0.5, rank=rank, world_size=2)[7] for rank in range(2)]
    assert torch.equal(torch.cat([half.voxels for half in halves]), later.voxels)
    assert halves[0].scans + halves[1].scans == later.scans


def test_a_scan_smaller_than_a_patch_is_padded_with_background(ball_store: Store) -> None:
    batch = patches(ball_store, 0.5, size=(32, 16, 16))[0]
    for voxels, labels, box, scan in zip(batch.voxels, batch.labels, batch.boxes, batch.scans, strict=True):
        assert box.start[0] <= 0 and box.stop[0] >= ball_store.collection.shapes[scan][0]
        outside = (
            labels[: -box.start[0]] if box.start[0] < 0 else labels[ball_store.collection.shapes[scan][0] :]
        )
        assert outside.numel() and not outside.any()
        assert voxels.shape[1:] == labels.shape == (32, 16, 16)


def test_class_indices() -> None:
    labels = np.array([[0, 1, 2, 3, 7, 9]], dtype=np.int16)
    assert class_indices(labels, (1, 3, 7)).tolist() == [[0, 1, 0, 2, 3, 0]]


def test_classes_come_from_the_store(ball_store: Store) -> None:
    assert Segmentation().class_names(ball_store) == {1: "ball", 3: "cube"}
    assert Segmentation(classes=(3,)).class_names(ball_store) == {3: "cube"}
    with pytest.raises(ConfigError, match=r"classes = \[2\].*1 \(ball\), 3 \(cube\)"):
        Segmentation(classes=(2, 3)).class_names(ball_store)


def test_the_loss_equals_its_definition() -> None:
    """Cross-entropy of all classes, plus 1 - Dice of each foreground class over the whole batch."""
    torch.manual_seed(0)
    logits, labels = (
        torch.randn(2, 3, 4, 4, 4, dtype=torch.float32),
        torch.randint(0, 3, (2, 4, 4, 4), dtype=torch.int16),
    )
    labels[0] = 0  # a patch without structures
    p = logits.softmax(1)
    dice = [2 * (p[:, k] * (labels == k)).sum() / (p[:, k].sum() + (labels == k).sum()) for k in (1, 2)]
    entropy = -p.log().gather(1, labels[:, None].long()).mean()
    found = dice_and_cross_entropy(logits.bfloat16().float(), labels)
    expected = dice_and_cross_entropy(logits, labels)
    assert float(expected.value) == pytest.approx(float(1 - sum(dice) / 2 + entropy), rel=1e-4)
    assert float(found.value) == pytest.approx(float(expected.value), rel=1e-2)
    assert float(expected.metrics["loss"]) == pytest.approx(
        float(expected.metrics["dice_loss"] + expected.metrics["cross_entropy"])
    )
    right = torch.nn.functional.one_hot(labels.long(), 3).permute(0, 4, 1, 2, 3) * 20.0
    assert float(dice_and_cross_entropy(right, labels).value) < 1e-3


class Mirror:
    """A recipe that mirrors the first axis, to test that labels get the same transform."""

    def apply(self, voxels, parameters, spacing_mm, labels=None):  # type: ignore[no-untyped-def]
        from types import SimpleNamespace

        return SimpleNamespace(voxels=voxels.flip(2), labels=labels.flip(1))


def test_labels_get_the_transform_of_their_voxels(ball_store: Store) -> None:
    from medcl3d.downstream.tasks.segmentation import augmented

    batch = patches(ball_store, 1.0)[0]
    voxels, labels = augmented(batch, Mirror())
    assert torch.equal(voxels.flip(2), batch.voxels) and torch.equal(labels.flip(1), batch.labels)


def test_outputs_that_are_not_finite_are_refused(ball_store: Store) -> None:
    """The class of NaN would be background, as of an empty scan."""
    task = Segmentation()
    network = build_network(Choice("unet3d", {"channels": (4, 8), "strides": (1, 2)}), 1, decoder=True)
    model = task.model(network, ball_store)
    for weights in model.parameters():
        torch.nn.init.constant_(weights, 3e38)
    with pytest.raises(DataError, match="outputs are not all finite; use precision float32"):
        task.evaluate(model, ball_store, [6], (16, 16, 8), torch.device("cpu"), None, 0)


def test_it_learns_a_bright_ball(ball_store: Store) -> None:
    torch.manual_seed(0)
    task = Segmentation(foreground_fraction=0.5)
    network = build_network(Choice("unet3d", {"channels": (8, 16), "strides": (1, 2)}), 1, decoder=True)
    model = task.model(network, ball_store)
    steps, size = 40, (16, 16, 8)
    dataset = task.dataset(ball_store, Plan(TRAIN, 4, 0), size, None, steps, 0, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = (
        task.evaluate(model, ball_store, [0, 6, 7], size, torch.device("cpu"), None, 0).metrics["dice"].mean
    )
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        task.loss(model, dataset[step], None).value.backward()
        optimizer.step()
    found = task.evaluate(model, ball_store, [0, 6, 7], size, torch.device("cpu"), None, 0)
    assert before < 0.5
    assert found.metrics["dice/ball"].mean > 0.8
    assert (
        found.metrics["dice"].n == 3
        and found.metrics["dice"].low <= found.metrics["dice"].mean <= found.metrics["dice"].high
    )
    rows = {(case["scan"], case["class"]): case for case in found.cases}
    assert set(rows) == {(f"scan{i}", name) for i in (0, 6, 7) for name in ("ball", "cube")}
    # The cube is absent from scan 0: undefined, unless it is predicted.
    cube = rows["scan0", "cube"]
    assert (cube["dice"] is None and cube["hd95_mm"] is None) or cube["dice"] == 0.0
    picture = found.pictures["same_cases"]
    assert picture.dtype == np.uint8 and picture.shape[2] == 3


def test_the_prediction_is_on_the_grid_of_the_store(ball_store: Store, tmp_path: Path) -> None:
    """A network that thresholds voxels: the prediction is the threshold, independently of the windows."""

    class Threshold(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.zeros_like(x), x * 100], dim=1)

    for scan in (0, 1):
        found = Segmentation().segment(Threshold(), ball_store, scan, (16, 16, 16), torch.device("cpu"), None)
        volume = ball_store.read_volume(scan)[0]
        assert found.shape == volume.shape
        assert (found == (volume > 0))[np.abs(volume) > 1e-2].all()


def test_flips_are_read_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    text = (
        "data: {root: x, patch_size: [8, 8, 8]}\nencoder: unet3d\ntrain: {steps: 1, samples_per_step: "
        "1}\nout_dir: y\ntask: "
    )
    path.write_text(text + "{segmentation: {test_time_flips: [false, true, true]}}\n")
    assert TASKS.build(load(path, (), FinetuneConfig).task) == Segmentation(
        test_time_flips=(False, True, True)
    )
    path.write_text(text + "segmentation\n")
    config = load(path, (), FinetuneConfig)
    assert TASKS.build(config.task).test_time_flips == (False, False, False)
    assert plain(config)["task"]["segmentation"]["test_time_flips"] == [False, False, False]
    for wrong in ("[true]", "[0, 1, 1]", "true"):
        with pytest.raises(ConfigError, match="test_time_flips"):
            load(path, (f"task={{segmentation: {{test_time_flips: {wrong}}}}}",), FinetuneConfig)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_dice_equals_monai_on_one_rank(num_classes: int) -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, num_classes, (3, 5, 6, 7))
    labels[labels == num_classes - 1] = 0  # an absent class
    ours, theirs = (
        torch.randn(3, num_classes, 5, 6, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
        for _ in range(2)
    )
    peer = DiceLoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)
    found, expected = dice_loss(ours, labels), peer(theirs, labels[:, None])
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
