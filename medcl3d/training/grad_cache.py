"""More samples a step than fit: a batch is embedded in chunks, and every chunk again when its gradient is due.

The loss sees the rows of all chunks, so no negative is lost, as it would be if gradients of small batches were added up.

    forward    chunk -> rows, and what lies between is forgotten;  all rows -> loss
    backward   loss -> the gradient of all rows;  last chunk first: chunk -> rows once more, now with gradient

That is what Gao et al. do by hand (embed, cache the gradients of the embeddings, embed again); here a checkpoint of
autograd around each chunk does it, so that a step stays one call and one backward pass, for DistributedDataParallel too.
Source: GradCache (Gao et al., RepL4NLP 2021); checkpoints: Chen et al. 2016, Training deep nets with sublinear memory cost.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from medcl3d.data.raw_batch import RawBatch
from medcl3d.errors import ConfigError
from medcl3d.training.precision import autocast
from medcl3d.types import Embedded, Keys, Rows


def embed_in_chunks(embed: Callable[[RawBatch], Embedded], raw: RawBatch, samples: int) -> Embedded:
    """What ``embed(raw)`` gives, in its order, in the memory of `samples` samples at a time.

    `embed` runs twice on each chunk, with the same random numbers, and has to give the same twice.
    """
    device = raw.main.crops.device
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None

    def embed_chunk(chunk: RawBatch) -> Embedded:
        with autocast(device, dtype):  # the backward pass runs outside of the step's own
            return embed(chunk)

    chunks = list(raw.chunks(samples))
    if len(chunks) == 1:
        return embed(raw)
    parts: list[Embedded] = [checkpoint(embed_chunk, chunk, use_reentrant=False) for chunk in chunks]
    return {name: _in_order(Rows.cat(part[name] for part in parts), raw) for name in parts[0]}


def _in_order(rows: Rows, raw: RawBatch) -> Rows:
    """Group after group, as an objective orders the rows of a whole batch; chunks come sample after sample."""
    if len(raw.groups) == 1:
        return rows
    views = int(torch.cat([group.keys.view for group in raw.groups]).max()) + 1

    def name(keys: Keys) -> Tensor:
        return keys.sample * views + keys.view

    number = torch.zeros_like(rows.keys.sample)
    for i, group in enumerate(raw.groups):
        number[torch.isin(name(rows.keys), name(group.keys))] = i
    return rows[torch.argsort(number, stable=True)]


def refuse_batch_statistics(samples: int, encoder: str, network: nn.Module, objective_name: str, objective: nn.Module) -> None:
    """ConfigError where a chunk's embedding would depend on what else is in it: its statistics are not the batch's."""
    for field, root in ((f"encoder.{encoder}", network), (f"objective.{objective_name}", objective)):
        for module in root.modules():
            if isinstance(module, _BatchNorm) or getattr(module, "batch_statistics", False):
                instead = "group" if root is network else "layer"
                what = "norm: batch" if isinstance(module, _BatchNorm) else f"the batch statistics of {type(module).__name__}"
                raise ConfigError(
                    f"train.grad_cache = {samples} with {field} ({what}): statistics of a chunk are not those of the batch; "
                    f"set train.grad_cache to 0, or give the {field.split('.')[0]} another norm, as {instead}"
                )
