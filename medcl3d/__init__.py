"""Contrastive pretraining on 3-D medical volumes that compares ways to define pairs.

The public Python API. Each name is imported on first use, so that ``import medcl3d`` takes milliseconds and
no torch.

    store = medcl3d.prepare("bids", "ds001", out="data/mine")
    dataset = medcl3d.PairDataset(store, medcl3d.pairs.OverlappingCrops(min_iou=0.3), patch_size=64)
    run = medcl3d.pretrain("pretrain/mine", out_dir="runs/pre")
    vector = medcl3d.extract_features(medcl3d.load_encoder("runs/pre"), "scan.nii.gz")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medcl3d import encoders, objectives, pairs, views
    from medcl3d.api.features import extract_features
    from medcl3d.api.pair_dataset import PairDataset
    from medcl3d.api.runs import compare, evaluate, finetune, pretrain
    from medcl3d.api.scans import open_store, prepare
    from medcl3d.downstream.pretrained_encoder import load_encoder
    from medcl3d.encoders.module import as_encoder
    from medcl3d.exports.export import export
    from medcl3d.losses.contrastive_loss import ContrastiveLoss

from medcl3d.core.version import __version__ as __version__

__all__ = [
    "ContrastiveLoss",
    "PairDataset",
    "as_encoder",
    "compare",
    "encoders",
    "evaluate",
    "export",
    "extract_features",
    "finetune",
    "load_encoder",
    "objectives",
    "open_store",
    "pairs",
    "prepare",
    "pretrain",
    "views",
]

_PACKAGES = ("encoders", "objectives", "pairs", "views")
_MODULE_OF = {
    "ContrastiveLoss": "medcl3d.losses.contrastive_loss",
    "PairDataset": "medcl3d.api.pair_dataset",
    "as_encoder": "medcl3d.encoders.module",
    "compare": "medcl3d.api.runs",
    "evaluate": "medcl3d.api.runs",
    "export": "medcl3d.exports.export",
    "extract_features": "medcl3d.api.features",
    "finetune": "medcl3d.api.runs",
    "load_encoder": "medcl3d.downstream.pretrained_encoder",
    "open_store": "medcl3d.api.scans",
    "prepare": "medcl3d.api.scans",
    "pretrain": "medcl3d.api.runs",
}

if not TYPE_CHECKING:  # a type checker would otherwise accept any name

    def __getattr__(name: str) -> Any:
        """Import a public name on first use (PEP 562)."""
        if name in _PACKAGES:
            return importlib.import_module(f"medcl3d.{name}")
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'medcl3d' has no attribute {name!r}")
        value = getattr(importlib.import_module(_MODULE_OF[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
