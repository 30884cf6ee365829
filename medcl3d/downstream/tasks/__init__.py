"""Downstream tasks on which networks are evaluated: one task per file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from medcl3d.config.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import Dataset

    from medcl3d.core.embeddings import Loss
    from medcl3d.core.geometry import Triple
    from medcl3d.encoders.network import Network
    from medcl3d.evaluation.statistics.intervals import Interval
    from medcl3d.sampling.plan import Plan
    from medcl3d.store.store import Store


TASKS = Registry("task", __name__)
