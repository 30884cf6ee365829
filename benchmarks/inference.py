"""Benchmark of whole scans in sliding windows, beside MONAI's inferer: predictions and features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import Bench, Table, by, compared, one_core, turns_of
from medcl3d.config.field_types import Choice
from medcl3d.core.embeddings import Features
from medcl3d.distributed.memory import keep_freed_memory
from medcl3d.downstream.heads import Segmenter
from medcl3d.downstream.sliding_window import probabilities_of, sliding_window
from medcl3d.downstream.windows import WHOLE_VOXELS, covering_windows, features_of_windows, mean_maps
from medcl3d.encoders.network import build_network

OURS, MONAI, ALONE = "medcl3d", "MONAI SlidingWindowInferer", "network alone, on as many windows"
TITLE, FEATURES = "Sliding windows beside MONAI", "Features of whole scans beside MONAI"
COLUMNS = ("scan", "program", "ms per scan", "speed-up of medcl3d")
PATCH, CLASSES, AT_ONCE = (64, 64, 64), 4, 4


@dataclass(frozen=True)
class Programs:
    """What is done with a volume ``[C, D, H, W]``.

    ours     the result of medcl3d
    network  called with windows ``[B, C, *PATCH]``
    of       what a window's result takes from the output of the network
    """

    ours: Callable[[Tensor], Tensor]
    network: nn.Module
    of: Callable[[Any], Tensor]

    def works(self, inferer: Any, volume: Tensor) -> dict[str, Callable[[], Any]]:
        """The programs for one volume."""
        windows = _windows(inferer, volume)

        def monai() -> Any:
            return inferer(volume[None], lambda crops: self.of(self.network(crops)))[0]

        def alone() -> None:
            for crops in windows:
                self.network(crops)

        return {OURS: lambda: self.ours(volume), MONAI: monai, ALONE: alone}


def inference(bench: Bench) -> list[Table]:
    """Whole scans of two shapes in windows that overlap by half: softmax of a U-Net, and its features."""
    from monai.inferers import SlidingWindowInferer

    keep_freed_memory()
    torch.manual_seed(0)
    unet = build_network(Choice("unet3d", {"channels": [8, 16, 32], "strides": [1, 2, 2]}), 1, decoder=True)
    model = Segmenter(unet, CLASSES).eval()
    predict = probabilities_of(model, torch.device("cpu"), None)
    inferer = SlidingWindowInferer(PATCH, sw_batch_size=AT_ONCE, overlap=0.5, mode="gaussian")
    softmax = Programs(partial(sliding_window, predict, patch_size=PATCH, fill=[0.0]), model, _softmax)
    maps = Programs(partial(mean_features, unet.encoder), unet.encoder, _finest)
    edge = bench.scale.shape[0]
    rows: dict[str, list[tuple[str, ...]]] = {TITLE: [], FEATURES: []}
    for shape in ((edge, edge, edge), (2 * edge, edge, edge // 2)):
        volume = torch.randn(1, *shape)
        works = {title: one.works(inferer, volume) for title, one in ((TITLE, softmax), (FEATURES, maps))}
        with torch.no_grad(), one_core():
            for title, programs in works.items():
                if not torch.allclose(programs[OURS](), programs[MONAI](), atol=1e-4):
                    raise RuntimeError(f"{title}: the results of the two programs differ")
                seconds = bench.turns(f"{title}, {by(shape)}", programs)
                ms = {name: 1000 * one for name, one in seconds.items()}
                rows[title] += compared(ms, OURS, first=[by(shape)])
    conditions = (
        f"Windows of {by(PATCH)} voxels that overlap by half, Gaussian weights, {AT_ONCE} at once; float32, "
        f"processor time of one core, {turns_of(bench.scale.repeats)}."
    )
    of_classes = (
        f"`unet3d` with 8, 16 and 32 channels and {CLASSES} classes. {conditions} The predictions agree "
        "within 1e-4. medcl3d calls MONAI's `sliding_window_inference`: the ratio shows what its padding and "
        "workarounds cost."
    )
    of_features = (
        f"The finest map of the encoder of a `unet3d` with 8, 16 and 32 channels, as the dense evaluations "
        f"describe voxels. {conditions} The maps agree within 1e-4."
    )
    notes = {TITLE: of_classes, FEATURES: of_features}
    return [Table(title, COLUMNS, tuple(found), notes[title]) for title, found in rows.items()]


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(1)


def _finest(features: Features) -> Tensor:
    return features.maps[0]


def mean_features(encoder: nn.Module, volume: Tensor) -> Tensor:
    """``Float32[C, D, H, W]``: the finest map over a volume, as `medcl3d.downstream.dense` computes it."""
    windows = covering_windows(volume.shape[1:], PATCH, 0.5, WHOLE_VOXELS)
    found = features_of_windows(encoder, volume, [0.0], windows, PATCH, AT_ONCE, torch.device("cpu"), None)
    [mean] = mean_maps(found, lambda features: [(_finest(features), WHOLE_VOXELS)], windows, PATCH)
    before, shape = windows.before, volume.shape[1:]
    inside = tuple(slice(a, a + n) for a, n in zip(before, shape, strict=True))
    return mean.mean()[inside].movedim(-1, 0)


def _windows(inferer: Any, volume: Tensor) -> list[Tensor]:
    """The batches of windows that the network is called with."""
    found: list[Tensor] = []

    def keep(patches: Tensor) -> Tensor:
        found.append(patches)
        return patches

    inferer(volume[None], keep)
    return found
