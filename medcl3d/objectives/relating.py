"""Relations of a batch: a strategy, the columns it derives from features, and its embedding queue."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Float64, Int, Int64, Shaped
from torch import Tensor, nn

from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relate, Relation
from medcl3d.losses.contrastive import RelateBlock, Tile
from medcl3d.pairs import PairStrategy, has_gradient_through_negatives, link, needs_features
from medcl3d.pairs.traits import FIRST_QUEUED, PROGRESS, SUPPORT, Measuring, Sums, all_parts, sums_of


class EmbeddingQueue(nn.Module):
    """Embedding queue: embeddings of earlier batches with their keys, a ring buffer saved in checkpoints.

    size    number of embeddings
    dim     dimension of an embedding
    layout  keys with the columns that the queue stores
    """

    z: Float[Tensor, "Q E"]
    keys: Float64[Tensor, "Q _"]
    count: Int64[Tensor, ""]

    def __init__(self, size: int, dim: int, layout: Keys):
        super().__init__()
        self.size, self.layout = size, layout
        self.register_buffer("z", torch.zeros(size, dim))
        self.register_buffer("keys", torch.zeros(size, layout.matrix().shape[1], dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))  # of all embeddings added so far
        self._full = False  # once full, always full, so that `count` is not read any more
        self.register_load_state_dict_post_hook(EmbeddingQueue._loaded)  # type: ignore[no-untyped-call]

    @staticmethod
    def _loaded(queue: nn.Module, _: object) -> None:
        assert isinstance(queue, EmbeddingQueue)
        queue._full = False

    def content(self) -> tuple[Float[Tensor, "_ E"], Keys]:
        """Embeddings ``[n, D]`` and their keys, n at most `size`."""
        filled = self.size if self._full else min(int(self.count), self.size)
        self._full = filled == self.size
        # A copy, since the buffer changes before the backward pass.
        return self.z[:filled].clone(), self.layout.with_matrix(self.keys[:filled].clone())

    def keep(self, z: Float[Tensor, "N E"], keys: Float64[Tensor, "N _"]) -> None:
        """Add embeddings ``[n, D]`` and their keys as a matrix; they replace the oldest ones.

        Embeddings that are not finite are left out: their step is skipped, and later steps must not use them.
        """
        append(self.count, torch.isfinite(z).all(1), (self.z, z), (self.keys, keys))


def append(
    count: Int64[Tensor, ""], chosen: Bool[Tensor, " N"], *parts: tuple[Shaped[Tensor, "Q _"], Tensor]
) -> None:
    """Write the chosen rows ``[N, D]`` into ring buffers ``[Q, D]`` that hold `count` rows, which is updated.

    parts: a buffer and the rows for it. The rows replace the oldest ones; of more rows than the buffer
    holds, the last are kept. Nothing is read on the CPU.
    """
    size, number = len(parts[0][0]), len(chosen)
    if size == 0:
        return
    if number > size:
        kept = torch.argsort(chosen.to(torch.int8), stable=True)[-size:]  # the last of the chosen rows
        parts = tuple((buffer, rows[kept]) for buffer, rows in parts)
        number, chosen = size, chosen[kept]
    # The chosen rows go to the next positions; those behind them are written with what they hold.
    order = torch.argsort((~chosen).to(torch.int8), stable=True)
    positions = (count + torch.arange(number, device=count.device)) % size
    written = chosen[order][:, None]
    for buffer, rows in parts:
        buffer[positions] = torch.where(written, rows[order].to(buffer.dtype), buffer[positions])
    count += chosen.sum()


@dataclass(frozen=True)
class GlobalViews:
    """The global views of one rank's batch: `numbers` of each sample, sorted by sample, then view."""

    samples: int
    numbers: tuple[int, ...]

    @staticmethod
    def of(keys: Keys) -> GlobalViews | None:
        """From the keys of the global views, on the CPU; None if samples differ in their views."""
        samples = len(torch.unique_consecutive(keys.sample))
        if samples == 0 or len(keys) % samples:
            return None
        views = keys.view.reshape(samples, -1)
        rows = keys.sample.reshape(samples, -1)
        same = bool((views == views[0]).all()) and bool((rows == rows[:, :1]).all())
        return GlobalViews(samples, tuple(views[0].tolist())) if same else None


class Relating(nn.Module):
    """`relate` of a strategy after its `link`, with the embedding queue as further columns if there is one.

    constant_across  key columns: items that share a value in none of them have P = 0 and M = 1, and are not
                     passed to `relate` (None: all are)
    progress         share of the run that is done, which a linking strategy may use; set before each step
    budget_weight    weight of the pairs with a budget in the loss
    sums             the strategy's own metrics of the rows that were related last
    logged           whether the step's metrics are logged; if not, only the loss is computed
    global_views     the global views of the batch, if every sample has the same; set before each step
    """

    progress: float | None = None
    logged: bool = True
    global_views: GlobalViews | None = None

    def __init__(
        self,
        relate: Relate,
        strategy: PairStrategy | None = None,
        support: EmbeddingQueue | None = None,
        constant_across: tuple[str, ...] | None = None,
        budget_weight: float = 0.0,
    ):
        super().__init__()
        self.relate, self.strategy, self.support, self.constant_across = (
            relate,
            strategy,
            support,
            constant_across,
        )
        self.budget_weight = budget_weight
        self.sums: Sums = {}

    # Read once, since a look at a strategy's traits takes as long as some operations of the loss.
    @cached_property
    def _needs_features(self) -> bool:
        return self.strategy is not None and needs_features(self.strategy)

    @cached_property
    def _measures(self) -> bool:
        return self.strategy is not None and any(isinstance(p, Measuring) for p in all_parts(self.strategy))

    @cached_property
    def _gradient_of_weights(self) -> bool:
        return self.strategy is not None and has_gradient_through_negatives(self.strategy)

    def _link(self, rows: Keys, cols: Keys, similarity: Tensor) -> tuple[Keys, Keys]:
        """The keys with the strategy's linked columns."""
        if self.strategy is None:
            return rows, cols
        if self.progress is not None and self._needs_features:
            done = torch.full((len(rows),), self.progress, dtype=torch.float64, device=rows.sample.device)
            rows = replace(rows, linked={**rows.linked, PROGRESS: done})
        rows, cols = link(self.strategy, rows, cols, similarity)
        self.sums = sums_of(self.strategy, rows) if self.logged else {}
        return rows, cols

    def columns(self, z: Float[Tensor, "M E"], keys: Keys) -> tuple[Float[Tensor, "_ E"], Keys]:
        """The items of all ranks ``[M, D]``, then those of the queue; the former are then added to the queue.

        With a queue, `linked["support"]` of the keys is an item's position in it, -1 for items of the batch.
        """
        if self.support is None:
            return z, keys
        queued, queued_keys = self.support.content()
        in_batch = keys.sample.new_full((len(keys),), -1)
        positions = torch.cat([in_batch, torch.arange(len(queued), device=z.device)])
        setattr(positions, FIRST_QUEUED, len(in_batch))
        both = Keys.cat([keys, queued_keys])
        # Sorted, so that the replaced embeddings do not depend on the number of ranks.
        order = torch.argsort(keys.sample, stable=True)
        self.support.keep(z.detach()[order], keys.matrix()[order])
        return torch.cat([z, queued.to(z.dtype)]), replace(both, linked={SUPPORT: positions})

    @torch.no_grad()
    def forward(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"]) -> Relation:
        """The relation of all rows and columns, ``[N, M]``."""
        rows, cols = self._link(rows, cols, similarity)
        return self.relate(rows, cols, similarity)

    @torch.no_grad()
    def tiles(
        self, rows: Keys, cols: Keys, z: Float[Tensor, "N E"], columns: Float[Tensor, "M E"]
    ) -> RelateBlock:
        """The same relation for blocks of rows. z: ``[N, D]``, columns: ``[M, D]``.

        If the strategy needs features, the similarities of all rows are computed once, without gradient, in
        float32 or better.
        """
        if self._needs_features:
            with torch.autocast(z.device.type, enabled=False):
                rows, cols = self._link(rows, cols, z @ columns.T)
        elif self._measures and self.strategy is not None:
            self.sums = sums_of(self.strategy, rows) if self.logged else {}
        shared: _SharedKeys | None = None

        def relate_block(block: slice, similarity: Tensor) -> Tile:
            some_rows = rows if len(similarity) == len(rows) else rows[block]
            if self._gradient_of_weights:
                leaf = similarity.detach().clone().requires_grad_()
                with torch.enable_grad():
                    relation = self.relate(some_rows, cols, leaf)
                return Tile(relation, similarity=leaf if relation.negative.requires_grad else None)
            nonlocal shared
            if self.constant_across is None or some_rows is rows:
                return Tile(self.relate(some_rows, cols, similarity))
            shared = shared or _SharedKeys(rows, cols, self.constant_across)
            some = shared.columns(block)
            return Tile(self.relate(some_rows, cols[some], similarity[:, some]), some)

        return relate_block


class _SharedKeys:
    """Columns that share a value with some rows in any of the key columns `names`."""

    def __init__(self, rows: Keys, cols: Keys, names: tuple[str, ...]):
        self.codes = []
        for name in names:
            column = torch.cat([getattr(rows, name), getattr(cols, name)])
            values, codes = torch.unique(column, return_inverse=True)
            self.codes.append((codes[: len(rows)], codes[len(rows) :], len(values)))

    def columns(self, block: slice) -> Int[Tensor, " T"] | slice:
        """The columns that share a value with a row of the block: ``Int[C]``, or a slice if consecutive.

        Only on a CPU: another device would have to wait for the first and the last of them.
        """
        shared = torch.zeros(len(self.codes[0][1]), dtype=torch.bool, device=self.codes[0][1].device)
        for row_codes, column_codes, number in self.codes:
            present = torch.zeros(number, dtype=torch.bool, device=row_codes.device)
            present[row_codes[block]] = True
            shared |= present[column_codes]
        found = shared.nonzero().flatten()
        if found.device.type != "cpu" or len(found) == 0:
            return found
        first, stop = int(found[0]), int(found[-1]) + 1
        return slice(first, stop) if stop - first == len(found) else found
