"""Attraction by position and metadata together, reduced within a site, so that the scanner is unlearned."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from medcl3d.config.choices import choice_of
from medcl3d.config.field_types import Choice, Fraction, NonNegative, Positive, PositiveInt
from medcl3d.core.body_coordinates import BODY
from medcl3d.core.collection import Collection
from medcl3d.core.errors import ConfigError, DataError, inside
from medcl3d.core.geometry import ViewSpec
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relation, related
from medcl3d.pairs import PAIRS, PairStrategy, StrategyTraits
from medcl3d.pairs.anchors import Anchors
from medcl3d.pairs.metadata_kernel import MetadataKernel, require_patients
from medcl3d.pairs.metadata_similarity import Kernels, require_columns, similarity_of, without_missing
from medcl3d.pairs.traits import Sums


@PAIRS.register("composed_kernels")
@dataclass(frozen=True, kw_only=True)
class ComposedKernels:
    """P = K_pos [mix K_num + (1 - mix) K_cat] K_site; dissimilar items of one site repel more.

    K_pos = exp(-d^2 / 2 sigma^2), d mm apart in the body. K_num is the product of the columns' RBF kernels,
    K_cat that of the columns compared by `equal`. K_site = rho for two items of one site, else 1.
    M = (1 - P) (1 + beta (1 - K)) for two items of one site, with K = P / K_site, else 1 - P. P = 1 within a
    sample.

    columns     column -> bandwidth of its RBF kernel exp(-d^2 / 2 b^2) in the column's unit, or `equal`
    mix         weight of K_num against K_cat
    sigma_mm    width of K_pos
    site        column of the scanner, site or protocol; an item without a value has a site of its own
    rho         attraction within a site, relative to that across sites; 1: the site has no effect on P
    beta        additional repulsion of dissimilar items of one site; 0: the site has no effect on M
    inner       the strategy that draws the views
    group_size  number of patients with similar metadata that share a batch (1: no grouping)

    With columns of one kind only, the mixture is their kernel. A missing column drops out of a pair, and
    K_num or K_cat without a known column out of the mixture; P = 0 across samples if nothing is left.
    Logged: `kernel_disagreement`, the mean over pairs of two patients of |K_pos - mixture|.
    `rho: 1, beta: 0` is the control that keeps the site.
    Source: our own; kernels on metadata as in y-Aware (Dufumier et al., MICCAI 2021).
    """

    columns: Kernels
    site: str = "site"
    mix: Fraction = 0.5
    sigma_mm: Positive = 20.0
    rho: Fraction = 0.5
    beta: NonNegative = 1.0
    inner: choice_of(PAIRS) = Choice("augmented_views")  # type: ignore[valid-type]  # of the registry
    group_size: PositiveInt = 1

    def __post_init__(self) -> None:
        if self.site in self.columns:
            raise ConfigError(
                "site",
                self.site,
                "is one of the columns that attract, and cannot be unlearned too",
                "remove it from columns, or choose another column",
                colon=False,
            )

    @cached_property
    def strategies(self) -> tuple[PairStrategy, ...]:
        """The strategy that draws the views."""
        with inside("composed_kernels", "inner"):
            return (PAIRS.build(self.inner),)

    @property
    def traits(self) -> StrategyTraits:
        """The traits: columns, site and position are the signal; batches are grouped by the columns."""
        metadata = MetadataKernel(columns=self.columns, group_size=self.group_size)
        return StrategyTraits(
            signal_columns=(*self.columns, self.site, BODY),
            batch_grouping=metadata.traits.batch_grouping,
            inner_draws_only=True,
        )

    def anchors(self, collection: Collection) -> Anchors:
        """The inner strategy's anchors. DataError for unusable columns, or a site that all scans share."""
        if self.site not in collection.columns:
            raise DataError(
                f"composed_kernels: site = {self.site}: the manifest has no such column; "
                f"choose from {', '.join(collection.columns)}"
            )
        values = collection.column(self.site)
        if len(np.unique(values[~np.isnan(values)])) < 2:
            raise DataError(
                f"composed_kernels: site = {self.site}: the column distinguishes no two scans; choose "
                "another column, or metadata_kernel"
            )
        require_columns("composed_kernels", collection, self.columns)
        require_patients("composed_kernels", collection, self.group_size)
        with inside("composed_kernels", "inner"):
            anchors = self.strategies[0].anchors(collection)
        return without_missing("composed_kernels", collection, self.columns, "ignore", anchors)

    def sample(self, collection: Collection, anchor: int, rng: np.random.Generator) -> tuple[ViewSpec, ...]:
        """The views of the inner strategy."""
        return self.strategies[0].sample(collection, anchor, rng)

    def relate(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
        """P = the product of the kernels, 1 within the sample; M rises for dissimilar items of one site."""
        kernel = self._position(rows, cols) * self._mixture(rows, cols)
        same_site = rows.column(self.site)[:, None] == cols.column(self.site)  # NaN equals nothing
        positive = torch.where(same_site, self.rho * kernel, kernel)
        same_sample = rows.sample[:, None] == cols.sample
        positive = torch.where(same_sample, 1.0, positive)
        more = torch.where(same_site, 1 + self.beta * (1 - kernel), 1.0)
        return related(rows, cols, positive, (1 - positive) * more)

    def sums(self, rows: Keys) -> Sums:
        """The disagreement of position and metadata, over pairs of two patients."""
        others = rows.patient[:, None] != rows.patient
        apart = (self._position(rows, rows) - self._mixture(rows, rows)).abs()
        return {"kernel_disagreement": ((apart * others).sum(), others.sum())}

    def _position(self, rows: Keys, cols: Keys) -> Float64[Tensor, "N M"]:
        apart = torch.cdist(rows.body, cols.body, compute_mode="donot_use_mm_for_euclid_dist")
        return torch.exp(-(apart**2) / (2 * self.sigma_mm**2))

    def _mixture(self, rows: Keys, cols: Keys) -> Float64[Tensor, "N M"]:
        """mix K_num + (1 - mix) K_cat, renormalised without a kernel that has no known column."""
        numbers = {name: kernel for name, kernel in self.columns.items() if not isinstance(kernel, str)}
        categories = {name: kernel for name, kernel in self.columns.items() if isinstance(kernel, str)}
        if not numbers or not categories:
            return similarity_of(rows, cols, self.columns, "product", "ignore")
        of_numbers = self.mix * _known(rows, cols, numbers).double()
        of_categories = (1 - self.mix) * _known(rows, cols, categories).double()
        total = of_numbers * similarity_of(rows, cols, numbers, "product", "ignore")
        total += of_categories * similarity_of(rows, cols, categories, "product", "ignore")
        weight = of_numbers + of_categories
        return torch.where(weight > 0, total / weight.clamp(min=1e-12), 0.0)


def _known(rows: Keys, cols: Keys, kernels: Iterable[str]) -> Bool[Tensor, "N M"]:
    """``[N, M]``: pairs for which at least one of the columns is known for both."""
    known = [~torch.isnan(rows.column(name)[:, None] - cols.column(name)) for name in kernels]
    return torch.stack(known).any(0)
