"""Benchmark of the contrastive loss and its gradient against the matrix of all pairs and lightly's NT-Xent.

Every measurement runs in a separate process; memory is the increase over that before the first call of the
loss.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import Bench, Table, geometric
from medcl3d.core.keys import Keys
from medcl3d.distributed.memory import peak_memory_mb
from medcl3d.losses.contrastive import contrastive_sum
from medcl3d.objectives.relating import Relating
from medcl3d.pairs.augmented_views import AugmentedViews
from medcl3d.pairs.overlapping_crops import OverlappingCrops

DIM, TEMPERATURE = 128, 0.1
SAMPLES_PER_SCAN = 4
LARGEST_MATRIX = 16384  # embeddings; for 65536, one matrix of all pairs has 17 GB
LARGEST_ALL_PAIRS = {
    "augmented_views": 16384,
    "overlapping_crops": 4096,
}  # embeddings; more take at least a minute
PLAIN, LIGHTLY = "matrix of all pairs", "lightly NTXentLoss"
OURS: dict[str, tuple[Any, bool]] = {
    "augmented_views": (AugmentedViews(), True),
    "augmented_views, all pairs related": (AugmentedViews(), False),
    "overlapping_crops": (OverlappingCrops(), True),
    "overlapping_crops, all pairs related": (OverlappingCrops(), False),
}


def losses(bench: Bench) -> Table:
    """Loss and gradient of N embeddings with two views per sample, in turns of separate processes."""
    rows = []
    for n in bench.scale.embeddings:
        names = [name for name in (*OURS, PLAIN, LIGHTLY) if _fits(name, n)]
        turns = bench.scale.loss_turns if n < LARGEST_MATRIX else 1
        found = [{name: _measured(name, n) for name in names} for _ in range(turns)]
        for name in names:
            own, plain = [one[name] for one in found], [one.get(PLAIN) for one in found]
            if own[0] is None:
                rows.append((str(n), name, "-", "-", "not installed: pip install --no-deps lightly"))
                continue
            seconds = np.array([one[0] for one in own if one])
            ratio = (
                "-"
                if plain[0] is None
                else _figure(np.array([one[0] for one in plain if one]) / seconds, ".2f")
            )
            rows.append(
                (
                    str(n),
                    name,
                    _figure(1000 * seconds, ".1f"),
                    f"{max(one[1] for one in own if one):.0f}",
                    ratio,
                )
            )
    note = (
        f"Embeddings of {DIM} numbers in float32, forward and backward, processor time of one core; memory "
        "is the increase over that before the first call. The matrix of all pairs is NT-Xent as a "
        "cross-entropy of similarities, without a relation. The relation of `augmented_views` is trivial, "
        f"that of `overlapping_crops` geometric (IoU within a scan, {SAMPLES_PER_SCAN} samples per scan). "
        "All pairs related: as for a strategy without `constant_across`; the geometry then costs more than "
        "the loss. Logged metrics (alignment, uniformity) are not included. Without brackets: one turn."
    )
    columns = ("embeddings", "loss", "ms", "peak MB", f"speed-up over the {PLAIN}")
    return Table("Contrastive losses", columns, tuple(rows), note)


def _figure(values: np.ndarray, form: str) -> str:
    return geometric(values, form) if len(values) > 1 else f"{values[0]:{form}}"


def _fits(name: str, n: int) -> bool:
    if name in (PLAIN, LIGHTLY):
        return n <= LARGEST_MATRIX
    strategy, _, all_pairs = name.partition(", ")
    return not all_pairs or n <= LARGEST_ALL_PAIRS[strategy]


def _measured(name: str, n: int) -> tuple[float, float] | None:
    """Seconds and MiB of one loss with its gradient, measured in another process.

    None if a package is missing.
    """
    root = str(Path(__file__).parents[1])
    code = (
        f"import sys; sys.path.insert(0, {root!r}); from benchmarks.losses import measure; "
        f"measure({name!r}, {n})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return found and (found[0], found[1])


def measure(name: str, n: int) -> None:
    """Print seconds (of the fastest call) and MiB as JSON; there are more calls for small batches."""
    torch.set_num_threads(1)
    loss = lightly_loss() if name == LIGHTLY else plain(n) if name == PLAIN else ours(*OURS[name], n)
    if loss is None:
        print("null")
        return
    z = F.normalize(torch.randn(n, DIM, generator=torch.Generator().manual_seed(0)), dim=1).requires_grad_()
    gc.collect()
    before, seconds = peak_memory_mb(torch.device("cpu")), []
    for _ in range(max(1, min(10, 8192 // n))):
        z.grad = None
        start = time.process_time()
        loss(z).backward()
        seconds.append(time.process_time() - start)
    print(json.dumps([min(seconds), peak_memory_mb(torch.device("cpu")) - before]))


def ours(strategy: Any, declared: bool, n: int) -> Callable[[Tensor], Tensor]:
    """The loss of `n` embeddings with the relation of a strategy; declared: its `constant_across` is used."""
    keys = keys_of(n)
    relating = Relating(
        strategy.relate, strategy, constant_across=strategy.traits.constant_across if declared else None
    )

    def loss(z: Tensor) -> Tensor:
        total = contrastive_sum(z, None, relating.tiles(keys, keys, z, z), TEMPERATURE)
        return total.loss / total.weight

    return loss


def plain(n: int) -> Callable[[Tensor], Tensor]:
    """NT-Xent of `n` embeddings as a cross-entropy of all similarities."""
    itself, partner = torch.eye(n, dtype=torch.bool), torch.arange(n) ^ 1
    return lambda z: F.cross_entropy((z @ z.T / TEMPERATURE).masked_fill(itself, -torch.inf), partner)


def lightly_loss() -> Callable[[Tensor], Tensor] | None:
    """lightly's loss, None if not installed, without its `__init__` modules, which import torchvision."""
    found = PathFinder.find_spec("lightly")  # also if the substitutes below are imported
    if found is None or not found.submodule_search_locations:
        return None
    root = Path(found.submodule_search_locations[0])
    for package in ("", "loss", "models", "models.modules", "utils"):
        name = f"lightly.{package}".rstrip(".")
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(root.joinpath(*package.split(".")))]
    utilities = ModuleType("lightly.models.utils")
    sys.modules["lightly.models.utils"] = utilities
    sys.modules["lightly.models"].__dict__["utils"] = utilities
    from lightly.loss.ntx_ent_loss import NTXentLoss

    loss = NTXentLoss(temperature=TEMPERATURE)
    return lambda z: loss(z[0::2], z[1::2])


def keys_of(n: int) -> Keys:
    """Keys of two views of 32 mm per sample, and several samples per scan, at random positions."""
    sample, view = torch.arange(n) // 2, torch.arange(n) % 2
    scan, none = sample // SAMPLES_PER_SCAN, torch.full((n,), -1)
    position = torch.rand(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 40
    axes = torch.eye(3, dtype=torch.float64).expand(n, 3, 3).contiguous()
    return Keys(
        sample=sample,
        view=view,
        scan=scan,
        frame=scan,
        patient=scan,
        modality=torch.zeros_like(scan),
        label=none,
        session_days=torch.zeros(n, dtype=torch.float64),
        center_mm=position,
        size_mm=torch.full((n, 3), 32.0, dtype=torch.float64),
        axes=axes,
        body=position,
        fraction=position / 40,
        point=none,
        position_mm=torch.full((n, 3), torch.nan, dtype=torch.float64),
    )
