"""Gradient cache: large batches embedded in chunks, which are recomputed in the backward pass to save memory.

The loss uses the embeddings of all chunks, so that all negatives remain. Accumulated gradients of small
batches would lose negatives.

    forward    chunk -> embeddings, activations discarded;  all embeddings -> loss
    backward   loss -> gradient of all embeddings;  last chunk first: chunk -> embeddings, with gradient

Gao et al. implement these steps by hand (embed, cache the gradients of the embeddings, embed again). Here, an
autograd checkpoint around each chunk does so, and a step remains one call and one backward pass, also under
DistributedDataParallel. Source: GradCache (Gao et al., RepL4NLP 2021); checkpoints: Chen et al. 2016,
Training deep nets with sublinear memory cost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from medcl3d.core.embeddings import Embedded, Embeddings
from medcl3d.core.errors import ConfigError
from medcl3d.core.keys import Keys
from medcl3d.distributed.precision import autocast
from medcl3d.sampling.raw_batch import RawBatch


@runtime_checkable
class HasBatchStatistics(Protocol):
    """A module whose output depends on the rest of the batch if `batch_statistics` is True."""

    batch_statistics: bool


def embed_in_chunks(embed: Callable[[RawBatch], Embedded], raw: RawBatch, samples: int) -> Embedded:
    """Compute ``embed(raw)`` in chunks of `samples` samples; the order of the result is the same.

    `embed` runs twice on each chunk, with the same random numbers, and must return the same result.
    """
    device = raw.main.crops.device
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None

    def embed_chunk(chunk: RawBatch) -> Embedded:
        with autocast(device, dtype):  # the backward pass runs outside the autocast of the step
            return embed(chunk)

    chunks = list(raw.chunks(samples))
    if len(chunks) == 1:
        return embed(raw)
    parts: list[Embedded] = [checkpoint(embed_chunk, chunk, use_reentrant=False) for chunk in chunks]
    return {name: _in_order(Embeddings.cat(part[name] for part in parts), raw) for name in parts[0]}


def _in_order(rows: Embeddings, raw: RawBatch) -> Embeddings:
    """Sort embeddings by group, as an objective does for a whole batch; chunks are ordered by sample."""
    if len(raw.groups) == 1:
        return rows
    views = int(torch.cat([group.host_keys.view for group in raw.groups]).max()) + 1

    def name(keys: Keys) -> Tensor:
        return keys.sample * views + keys.view

    number = torch.zeros_like(rows.keys.sample)
    for i, group in enumerate(raw.groups):
        number[torch.isin(name(rows.keys), name(group.keys))] = i
    return rows[torch.argsort(number, stable=True)]


def refuse_batch_statistics(
    samples: int, encoder: str, network: nn.Module, objective_name: str, objective: nn.Module
) -> None:
    """ConfigError if a module computes batch statistics: those of a chunk differ from those of the batch."""
    for field, root in ((f"encoder.{encoder}", network), (f"objective.{objective_name}", objective)):
        for module in root.modules():
            declared = isinstance(module, HasBatchStatistics) and module.batch_statistics
            if isinstance(module, _BatchNorm) or declared:
                instead = "group" if root is network else "layer"
                what = (
                    "norm: batch"
                    if isinstance(module, _BatchNorm)
                    else f"the batch statistics of {type(module).__name__}"
                )
                raise ConfigError(
                    "train.grad_cache",
                    samples,
                    f"with {field} ({what}): statistics of a chunk differ from those of the batch",
                    f"set train.grad_cache to 0, or use another norm in the {field.split('.')[0]}, "
                    f"for example {instead}",
                    colon=False,
                )
