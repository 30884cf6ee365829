"""The parts of an exported MONAI bundle, which its `configs/inference.json` names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medcl3d.distributed.precision import autocast_dtype
from medcl3d.downstream.predict.predict import labels_of, smallest, write_nifti
from medcl3d.downstream.predict.predictor import Predictor, load_run
from medcl3d.downstream.sliding_window import mean_of_flips, padded, probabilities_of
from medcl3d.downstream.trained_scan import prepared
from medcl3d.io.walk import VOLUMES

__all__ = ["Prepare", "Probabilities", "WriteLabels", "load_run", "scans", "segment"]


def scans(folder: str) -> list[dict[str, Path]]:
    """The NIfTI files in a folder, sorted, as items of a MONAI data set."""
    return [{"image": path} for path in sorted(Path(folder).iterdir()) if path.name.endswith(VOLUMES)]


class Prepare:
    """Transform: the voxels of ``item["image"]``, a path, as the training scans were prepared.

    Scans smaller than a patch are padded evenly with the value of empty space. `ready` describes the scan.
    """

    def __init__(self, predictor: Predictor):
        self.predictor = predictor

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """``image``: Float32[C, D, H, W]."""
        predictor, path = self.predictor, Path(item["image"])
        ready = prepared(path, predictor.options, predictor.num_channels, "network")
        volume = torch.from_numpy(ready.voxels)
        shape, patch = volume.shape[1:], predictor.patch_size
        before = [max(0, p - n) // 2 for p, n in zip(patch, shape, strict=True)]
        size = [max(p, n) for p, n in zip(patch, shape, strict=True)]
        window = (slice(None), *(slice(b, b + n) for b, n in zip(before, shape, strict=True)))
        image = padded(volume, before, size, ready.normalisation.fill)
        return {"image": image, "path": path, "ready": ready, "window": window}


class Probabilities(nn.Module):
    """Class probabilities of patches, averaged over the test-time flips of the run."""

    def __init__(self, predictor: Predictor):
        super().__init__()
        self.model, self.predictor = predictor.model.eval(), predictor

    @torch.no_grad()
    def forward(self, patches: Tensor) -> Tensor:
        """``[B, C, D, H, W]`` -> ``[B, K, D, H, W]``."""
        dtype = autocast_dtype(self.predictor.precision, patches.device)
        predict = probabilities_of(self.model, patches.device, dtype)
        return mean_of_flips(predict, self.predictor.task.test_time_flips)(patches)


class WriteLabels:
    """Write the label map of a scan to a folder, on the grid of its file."""

    def __init__(self, predictor: Predictor, folder: str):
        self.predictor, self.folder = predictor, Path(folder)

    def __call__(self, item: Mapping[str, Any], found: Tensor) -> Path:
        """`found`: probabilities ``[1, K, D, H, W]`` of the prepared, padded scan."""
        labels, _ = labels_of(self.predictor, found[0][item["window"]].cpu(), item["ready"])
        path = item["path"]
        file = self.folder / f"{path.name.removesuffix('.gz').removesuffix('.nii')}.nii.gz"
        write_nifti(file, smallest(labels), path, "")
        return file


def segment(
    dataset: Iterable[Mapping[str, Any]],
    inferer: Callable[[Tensor, nn.Module], Tensor],
    network: nn.Module,
    postprocessing: WriteLabels,
    device: torch.device,
) -> list[Path]:
    """Segment every scan of a data set; returns the written files."""
    network.to(device)
    return [postprocessing(item, inferer(item["image"][None].to(device), network)) for item in dataset]
