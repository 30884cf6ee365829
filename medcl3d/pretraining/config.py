"""The configuration of a pretraining."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass as config_dataclass

from medcl3d.config.choices import choice_of
from medcl3d.config.field_types import STRICT, PositiveInt, Seed
from medcl3d.encoders import ENCODERS
from medcl3d.objectives import OBJECTIVES
from medcl3d.pairs import PAIRS
from medcl3d.pretraining.online_probe import OnlineProbe
from medcl3d.store.scan_selection import DataConfig
from medcl3d.training.options import FitOptions
from medcl3d.views import VIEWS


@config_dataclass(frozen=True, kw_only=True, config=STRICT)
class PretrainConfig:
    """Configuration of a pretraining: scans, pairs, views, network, objective, training.

    data          the scans and the patch size
    pairs         the pair strategy: which views are drawn together, attract, repel or are ignored
    views         the view recipe: augmentations that turn a crop into a view
    encoder       the network
    objective     the loss, and the heads and momentum encoders that it needs
    train         steps, samples per step, optimiser
    out_dir       the run folder
    seed          seed of weights, anchors, crops and augmentations. Masks of `mae`, and partners that are
                  drawn from several positives, depend on a sample's number alone
    loader        `store` reads crops from memory maps, `torchio` uses a `tio.Queue`; the samples are equal,
                  but `torchio` is slower, since it reads whole scans
    placebo       control: permute the signal columns of the strategy among scans, and positions in the body
                  among samples of a scan
    num_patients  pretrain on the scans of this many training patients, drawn by `seed`; a smaller selection
                  is part of a larger one (default: all)
    probe         linear probe on labels of training patients, evaluated and logged periodically; does not
                  affect training
    """

    data: DataConfig
    pairs: choice_of(PAIRS)  # type: ignore[valid-type]
    views: choice_of(VIEWS)  # type: ignore[valid-type]
    encoder: choice_of(ENCODERS)  # type: ignore[valid-type]
    objective: choice_of(OBJECTIVES)  # type: ignore[valid-type]
    train: FitOptions
    out_dir: Path
    seed: Seed = 0
    loader: Literal["store", "torchio"] = "store"
    placebo: bool = False
    num_patients: PositiveInt | None = None
    probe: OnlineProbe | None = None
