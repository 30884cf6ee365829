"""Benchmark of the prediction of whole scans by sliding windows, beside MONAI's inferer alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Bench, Table, by, geometric, one_core, turns_of
from medcl3d.config.field_types import Choice
from medcl3d.distributed.memory import keep_freed_memory
from medcl3d.downstream.heads import Segmenter
from medcl3d.downstream.sliding_window import probabilities_of, sliding_window
from medcl3d.encoders.network import build_network

OURS, MONAI, ALONE = "medcl3d", "MONAI SlidingWindowInferer", "network alone, on as many windows"
TITLE = "Sliding windows beside MONAI"
COLUMNS = ("scan", "program", "ms per scan", "speed-up of medcl3d")
PATCH, CLASSES = (64, 64, 64), 4


def inference(bench: Bench) -> Table:
    """Softmax of a U-Net over whole scans, in windows that overlap by half, for two shapes."""
    from monai.inferers import SlidingWindowInferer

    keep_freed_memory()
    torch.manual_seed(0)
    unet = {"channels": [8, 16, 32], "strides": [1, 2, 2]}
    model = Segmenter(build_network(Choice("unet3d", unet), 1, decoder=True), CLASSES).eval()
    predict = probabilities_of(model, torch.device("cpu"), None)
    inferer = SlidingWindowInferer(PATCH, sw_batch_size=4, overlap=0.5, mode="gaussian")
    rows: list[tuple[str, ...]] = []
    edge = bench.scale.shape[0]
    for shape in ((edge, edge, edge), (2 * edge, edge, edge // 2)):
        volume = torch.randn(1, *shape)

        def ours(volume: Tensor = volume) -> Tensor:
            return sliding_window(predict, volume, PATCH, fill=[0.0])

        def monai(volume: Tensor = volume) -> Any:
            return inferer(volume[None], lambda patches: model(patches).softmax(1))

        def alone(batches: Sequence[Tensor] = tuple(_windows(inferer, volume))) -> None:
            for patches in batches:
                model(patches)

        with torch.no_grad(), one_core():
            if not torch.allclose(ours(), monai()[0], atol=1e-5):
                raise RuntimeError("the two predictions differ")
            works: dict[str, Callable[[], Any]] = {OURS: ours, MONAI: monai, ALONE: alone}
            seconds = bench.turns(f"sliding windows over {by(shape)}", works)
        rows += [
            (
                by(shape),
                program,
                geometric(1000 * one),
                "1" if program == OURS else geometric(one / seconds[OURS], ".2f"),
            )
            for program, one in seconds.items()
        ]
    note = (
        f"`unet3d` with 8, 16 and 32 channels and {CLASSES} classes, windows of {by(PATCH)} voxels that "
        "overlap by half, Gaussian weights, 4 at once; float32, processor time of one core, "
        f"{turns_of(bench.scale.repeats)}. The predictions agree within 1e-5. medcl3d calls MONAI's "
        "`sliding_window_inference`: the ratio shows what its padding and workarounds cost."
    )
    return Table(TITLE, COLUMNS, tuple(rows), note)


def _windows(inferer: Any, volume: Tensor) -> list[Tensor]:
    """The batches of windows that the network is called with."""
    found: list[Tensor] = []

    def keep(patches: Tensor) -> Tensor:
        found.append(patches)
        return patches

    inferer(volume[None], keep)
    return found
