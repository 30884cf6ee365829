"""A contrastive training loop of MONAI's parts, as it is written without medcl3d, and its time per step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import PATCH, Bench, Table, by, compared, one_core
from benchmarks.peers import monai_transforms
from benchmarks.views import write_volumes
from medcl3d.config.field_types import Choice
from medcl3d.distributed.memory import keep_freed_memory
from medcl3d.encoders.network import build_network
from medcl3d.sampling.augment import make_views

TITLE = "A whole step beside a plain loop"
COLUMNS = ("encoder", "program", "ms per step", "speed-up of medcl3d")
OURS, PLAIN, ALONE = "medcl3d", "plain loop", "plain loop on one batch, without data and views"
PARTS = "the last, and crops and views of medcl3d, each alone"
TEMPERATURE = 0.1
ENCODERS: dict[str, tuple[dict[str, Any], int]] = {
    "depth 18, 8 samples": ({"depth": 18}, 8),
    "depth 10, width 0.25, 32 samples": ({"depth": 10, "width": 0.25}, 32),
}


class PlainLoop:
    """A residual network, a head of two layers, NT-Xent as a cross-entropy, and AdamW."""

    def __init__(self, **encoder: Any):
        self.network = build_network(Choice("resnet3d", encoder), 1, decoder=False)
        width = self.network.num_features
        self.head = nn.Sequential(nn.Linear(width, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 128))
        self.parameters = [*self.network.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=3e-4, weight_decay=0.05)

    def step(self, views: Tensor) -> float:
        """One step on ``[2 B, C, D, H, W]``: the first views of B samples, then their second views."""
        z = nn.functional.normalize(self.head(self.network(views).pooled), dim=1)
        similarity = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
        loss = nn.functional.cross_entropy(similarity, torch.arange(len(z)).roll(len(z) // 2))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return float(loss.detach())


def first_step() -> None:
    """Import what a plain loop needs and make one step, on 4 samples of noise."""
    from monai.data import CacheDataset, DataLoader  # noqa: F401  # what a script imports
    from monai.transforms import Compose

    transform = Compose(monai_transforms())
    crops = torch.randn(4, 1, *PATCH)
    views = [torch.as_tensor(transform(crop)) for _ in range(2) for crop in crops]
    PlainLoop(depth=18).step(torch.stack(views))


def plain_loop(bench: Bench) -> Table:
    """Whole steps of pretraining and of the plain loop with the same encoder, step by step in turns."""
    keep_freed_memory()
    rows: list[tuple[str, ...]] = []
    for name, (encoder, samples) in ENCODERS.items():
        bench.say(f"plain loop: {name}, {bench.scale.steps} steps of both programs")
        with one_core():
            seconds = _steps(bench, encoder, samples)
        rows += compared({program: 1000 * one for program, one in seconds.items()}, OURS, first=[name])
    note = (
        f"SimCLR with a residual network (`resnet3d`) on two views of {by(PATCH)} voxels per sample: "
        f"reading, views, network, loss, clipping and AdamW; processor time of one core, "
        f"{bench.scale.steps} steps. "
        "The plain loop (`benchmarks/plain_loop.py`) has the same encoder, crops of MONAI's `CacheDataset` "
        "with all volumes in memory, MONAI's transforms, and NT-Xent as a cross-entropy. On one batch, it is "
        "network, loss and optimiser alone, which limit the speed-up of any data pipeline. The last row is "
        "the sum of these and of medcl3d's crops and views: above 1, a step costs less than its parts."
    )
    return Table(TITLE, COLUMNS, tuple(rows), note)


def _views_of_volumes(bench: Bench, samples: int) -> Iterator[Tensor]:
    """Batches of two views of one crop per sample, by MONAI."""
    import monai.transforms as mt
    from monai.data import CacheDataset, DataLoader

    class Twice(mt.Transform):  # type: ignore[misc]
        """Two views of one crop."""

        def __init__(self) -> None:
            self.transform = mt.Compose(monai_transforms())

        def __call__(self, crop: Any) -> Tensor:
            return torch.stack([torch.as_tensor(self.transform(crop)) for _ in range(2)])

    crop = mt.RandSpatialCrop(PATCH, random_size=False)
    load = mt.LoadImage(image_only=True, ensure_channel_first=True)
    volumes = write_volumes(bench.folder, bench.store)
    large = np.flatnonzero((bench.store.collection.shapes >= np.array(PATCH)).all(axis=1))
    paths = [str(volumes[scan]) for scan in large]  # as `smaller_than_patch: skip`
    data = CacheDataset(paths, mt.Compose([load, crop, Twice()]), progress=False)
    count = len(paths)
    while True:
        order = [int(i) for i in torch.randint(count, (samples,))]
        for batch in DataLoader(torch.utils.data.Subset(data, order), batch_size=samples):
            yield torch.as_tensor(batch).transpose(0, 1).flatten(0, 1)


def _steps(bench: Bench, encoder: dict[str, Any], samples: int) -> dict[str, np.ndarray]:
    """Processor seconds of each step of both programs, after two steps of warm-up."""
    from medcl3d.config.loading import parse
    from medcl3d.pretraining.config import PretrainConfig
    from medcl3d.pretraining.parts import assemble
    from medcl3d.training import loop
    from tests.pretend.steps import NoRun

    steps = bench.scale.steps + 2
    config = {
        "data": {"root": str(bench.store.root), "patch_size": list(PATCH), "smaller_than_patch": "skip"},
        "pairs": "augmented_views",
        "views": "mri",
        "encoder": {"resnet3d": encoder},
        "objective": "simclr",
        "train": {"steps": steps, "samples_per_step": samples, "log_every": 1000, "warmup_steps": 1},
        "out_dir": "unused",
    }
    parts = assemble(parse(config, PretrainConfig, "benchmark"))
    dataset, learner = parts.dataset(), parts.learner
    plain, views = PlainLoop(**encoder), _views_of_volumes(bench, samples)
    one_batch = next(views)
    seconds: dict[str, list[float]] = {OURS: [], PLAIN: [], ALONE: [], PARTS: []}

    def batches(start: int) -> Iterator[Any]:
        """The batches of our loop; between its steps, two of the plain loop, and a batch of views."""
        for step in range(start, steps):
            begin = time.process_time()
            yield dataset[step]
            middle = time.process_time()
            plain.step(next(views))
            seconds[OURS].append(middle - begin)
            end = time.process_time()
            seconds[PLAIN].append(end - middle)
            plain.step(one_batch)
            seconds[ALONE].append(time.process_time() - end)
            make_views(dataset[step], dataset.recipe)
            seconds[PARTS].append(time.process_time() - end)

    with (
        mock.patch.object(loop, "save_checkpoint", lambda *_: None),
        mock.patch.object(loop, "restore", lambda *_: 0),
        mock.patch.object(loop, "autocast_dtype", lambda *_: None),  # both in float32
    ):
        loop.fit(
            learner,
            lambda model, raw: model(raw),
            batches,
            parts.config.train,
            NoRun(),  # type: ignore[arg-type]
            torch.device("cpu"),
            before_step=learner.before_step,
            announce=learner.announce,
            after_step=learner.after_step,
        )
    return {name: np.array(values[2:]) for name, values in seconds.items()}
