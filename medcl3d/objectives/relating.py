"""What an objective asks how things relate: a strategy, what it links to features, and the support set it wants."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from medcl3d.losses.contrastive import Ask, Tile
from medcl3d.pairs import PairStrategy, learns_through_weights, link, looks_at_features
from medcl3d.types import Keys, Relate, Relation


class Support(nn.Module):
    """The last embeddings of earlier batches with their keys: a ring that a checkpoint keeps.

    size    so many are kept
    dim     numbers of an embedding
    layout  keys of the form that they will have
    """

    z: Tensor
    keys: Tensor
    count: Tensor

    def __init__(self, size: int, dim: int, layout: Keys):
        super().__init__()
        self.size, self.layout = size, layout
        self.register_buffer("z", torch.zeros(size, dim))
        self.register_buffer("keys", torch.zeros(size, layout.matrix().shape[1], dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))  # of all that were ever kept

    def content(self) -> tuple[Tensor, Keys]:
        """``[n, D]`` with their keys, n as many as were kept so far, at most `size`."""
        filled = min(int(self.count), self.size)
        # A copy, since what is kept changes before the gradient is taken.
        return self.z[:filled].clone(), self.layout.with_matrix(self.keys[:filled].clone())

    def keep(self, z: Tensor, keys: Tensor) -> None:
        """Add embeddings ``[n, D]`` and their keys as a matrix; the oldest make room.

        What is not finite stays out: the step that made it is skipped, and the next ones must not meet it again.
        """
        finite = torch.isfinite(z).all(1)
        z, keys = z[finite][-self.size :], keys[finite][-self.size :]
        places = (self.count + torch.arange(len(z), device=self.count.device)) % self.size
        self.z[places], self.keys[places] = z.to(self.z.dtype), keys
        self.count += len(z)


class Relating(nn.Module):
    """`relate` of a strategy after its `link`, and further columns where it wants a support set.

    constant_across  key columns: things that share a value of none of them have P = 0 and M = 1, and need not be asked for
                     (None: ask for all)
    """

    def __init__(
        self,
        relate: Relate,
        strategy: PairStrategy | None = None,
        support: Support | None = None,
        constant_across: tuple[str, ...] | None = None,
    ):
        super().__init__()
        self.relate, self.strategy, self.support, self.constant_across = relate, strategy, support, constant_across

    def columns(self, z: Tensor, keys: Keys) -> tuple[Tensor, Keys]:
        """The things of all ranks ``[M, D]``, and below them those of the support set, which then takes the former in.

        Where there is a support set, `linked["support"]` of the keys is a thing's place in it, -1 for those of the batch.
        """
        if self.support is None:
            return z, keys
        kept, kept_keys = self.support.content()
        places = torch.cat([keys.sample.new_full((len(keys),), -1), torch.arange(len(kept), device=z.device)])
        both = Keys.cat([keys, kept_keys])
        order = torch.argsort(keys.sample, stable=True)  # so that what makes room does not depend on the ranks' borders
        self.support.keep(z.detach()[order], keys.matrix()[order])
        return torch.cat([z, kept.to(z.dtype)]), replace(both, linked={"support": places})

    @torch.no_grad()
    def forward(self, rows: Keys, cols: Keys, similarity: Tensor) -> Relation:
        """The relation of all rows and columns, ``[N, M]``."""
        if self.strategy is not None:
            rows, cols = link(self.strategy, rows, cols, similarity)
        return self.relate(rows, cols, similarity)

    @torch.no_grad()
    def tiles(self, rows: Keys, cols: Keys, z: Tensor, columns: Tensor) -> Ask:
        """The same relation, block of rows by block. z: ``[N, D]``, columns: ``[M, D]``.

        Where the strategy looks at features first, their similarities are made once, whole and without gradient, in
        float32 at least.
        """
        if self.strategy is not None and looks_at_features(self.strategy):
            with torch.autocast(z.device.type, enabled=False):
                rows, cols = link(self.strategy, rows, cols, z @ columns.T)
        shared = None if self.constant_across is None else _Shared(rows, cols, self.constant_across)

        through = self.strategy is not None and learns_through_weights(self.strategy)

        def ask(block: slice, similarity: Tensor) -> Tile:
            if through:
                leaf = similarity.detach().clone().requires_grad_()
                with torch.enable_grad():
                    relation = self.relate(rows[block], cols, leaf)
                return Tile(relation, similarity=leaf if relation.negative.requires_grad else None)
            if shared is None or len(similarity) == len(rows):
                return Tile(self.relate(rows[block], cols, similarity))
            some = shared.columns(block)
            return Tile(self.relate(rows[block], cols[some], similarity[:, some]), some)

        return ask


class _Shared:
    """Which columns have a value in common with some rows, in any of the key columns named."""

    def __init__(self, rows: Keys, cols: Keys, names: tuple[str, ...]):
        self.codes = []
        for name in names:
            values, codes = torch.unique(torch.cat([getattr(rows, name), getattr(cols, name)]), return_inverse=True)
            self.codes.append((codes[: len(rows)], codes[len(rows) :], len(values)))

    def columns(self, block: slice) -> Tensor:
        """``Int[C]``: the columns that share a value with a row of the block."""
        shared = torch.zeros(len(self.codes[0][1]), dtype=torch.bool, device=self.codes[0][1].device)
        for of_rows, of_cols, number in self.codes:
            present = torch.zeros(number, dtype=torch.bool, device=of_rows.device)
            present[of_rows[block]] = True
            shared |= present[of_cols]
        return shared.nonzero().flatten()
