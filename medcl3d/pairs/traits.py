"""Traits of a pair strategy, and functions that read them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float, Int

from medcl3d.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from medcl3d.core.collection import Collection
    from medcl3d.core.keys import Keys
    from medcl3d.pairs import PairStrategy
    from medcl3d.pairs.batch_grouping import BatchGrouping

PROGRESS = "progress"  # the linked column with the share of the run that is done
REPELS = "repels"  # the linked column of the items that an objective lets repel, if these are not all
SUPPORT = "support"  # the linked column of positions in the embedding queue, -1 for items of the batch
FIRST_QUEUED = "first_queued"  # attribute of that column: the items from there on are in the queue
Sums: TypeAlias = "dict[str, tuple[Tensor, Tensor]]"  # metric -> numerator and denominator


@dataclass(frozen=True, kw_only=True)
class StrategyTraits:
    """What a strategy declares besides its methods.

    signal_columns    key columns that carry the signal: a placebo permutes them (none: no placebo exists)
    weak_placebo      why a placebo of this strategy changes little ("": it does not), which reports state
    signal_weights    the parts of the relation ("positive", "negative", "budget") that carry the signal. An
                      objective that uses none of them is refused
    budget_weight     weight in the loss of the pairs with a budget (0: the relation has no budget)
    constant_across   key columns: two items that share a value in none of them have P = 0 and M = 1 (None:
                      unknown). It makes relating large batches faster
    within_scan       fields that only affect pairs of samples of one scan; reported if they cannot have an
                      effect
    samples_per_scan  number of samples of one scan that share a batch
    batch_grouping    ``(collection) -> BatchGrouping | None``: the batch grouping
    crosses_patients  whether a sample may hold scans of several patients, which a TorchIO subject cannot
                      represent (None: if one of an inner strategy may)
    distinguishes_sides  whether `relate` depends on left and right, so that views must not exchange them
    relates_points    whether `relate` also accepts the keys of points. The strategy's `num_points`,
                      `tolerance_mm` and `ignore_mm` then replace those of a dense objective
    reads_regions     whether `relate` reads the regions of points
    supervoxel_mm     the regions are supervoxels with this edge, within a sample (None: of label maps)
    inner_draws_only  whether the inner strategies only draw the views, and their relations are not used
    needs_features    whether `relate` needs the columns that `link` adds (None: yes, if there is a `link`)
    queue_size        number of embeddings of earlier batches that are related as further columns
                      (`linked["support"]` is their position in the queue)
    temperature       the temperature that `link` assumes; an objective with another one is refused
    gradient_through_negatives  whether the gradient goes through M too; `relate` then gets whole rows of
                      similarities that require a gradient
    on_missing        how scans with a missing value are treated: "drop" and "error" select anchors, which
                      only the first part of a product does
    """

    signal_columns: tuple[str, ...] = ()
    weak_placebo: str = ""
    signal_weights: frozenset[str] = frozenset({"positive", "negative"})
    budget_weight: float = 0.0
    constant_across: tuple[str, ...] | None = None
    within_scan: tuple[str, ...] = ()
    samples_per_scan: int = 1
    batch_grouping: Callable[[Collection], BatchGrouping | None] | None = None
    crosses_patients: bool | None = None
    distinguishes_sides: bool = False
    relates_points: bool = False
    reads_regions: bool = False
    supervoxel_mm: float | None = None
    inner_draws_only: bool = False
    needs_features: bool | None = None
    queue_size: int = 0
    temperature: float | None = None
    gradient_through_negatives: bool = False
    on_missing: str | None = None


@runtime_checkable
class Composed(Protocol):
    """A strategy with inner strategies."""

    @property
    def strategies(self) -> tuple[PairStrategy, ...]:
        """The inner strategies."""


@runtime_checkable
class Linking(Protocol):
    """A strategy whose relation depends on features."""

    def link(self, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"]) -> tuple[Keys, Keys]:
        """Add columns that depend on similarities ``[N, M]`` to `linked`, once per step.

        It needs the memory of all similarities, which a batch otherwise avoids. In a pretraining,
        `rows.linked[PROGRESS]` is the share of the run that is done, in [0, 1).
        """


@runtime_checkable
class Measuring(Protocol):
    """A strategy with metrics of its own."""

    def sums(self, rows: Keys) -> Sums:
        """Metrics of linked rows, with the same names on all ranks: each is the ratio of two sums."""


@runtime_checkable
class HasPoints(Protocol):
    """A strategy or an objective with a number of points per sample."""

    @property
    def num_points(self) -> int:
        """The number of points per sample."""


# Old attributes, with the trait of each. Those of the second kind are also names of fields, which a strategy
# with traits may have.
_OLD = {
    "informative": "signal_columns",
    "informs": "signal_weights",
    "companions": "batch_grouping",
    "passes_link_on": "needs_features",
    "constant_across": "constant_across",
    "within_scan": "within_scan",
    "crosses_patients": "crosses_patients",
    "relates_points": "relates_points",
    "inner_draws_only": "inner_draws_only",
}
_OLD_FIELDS = {
    "detach_weights": "gradient_through_negatives",
    **{name: name for name in ("samples_per_scan", "queue_size", "temperature", "on_missing")},
}


def traits_of(strategy: PairStrategy) -> StrategyTraits:
    """The traits of a strategy. FutureWarning if it has the attributes of version 0.1 instead."""
    new_form = hasattr(type(strategy), "traits")
    names = _OLD if new_form else _OLD | _OLD_FIELDS
    old = [name for name in names if hasattr(strategy, name)]
    traits = strategy.traits if new_form else StrategyTraits()
    if not old:
        return traits
    values = {names[name]: _converted(strategy, name) for name in old}
    given = ", ".join(f"{trait}={'...' if callable(value) else value!r}" for trait, value in values.items())
    warnings.warn(
        f"pairs: {type(strategy).__name__}: {', '.join(old)}: such attributes are deprecated, and the next "
        f"release does not read them; use `traits = StrategyTraits({given})` (medcl3d.pairs.traits), as a "
        "class variable or a property",
        FutureWarning,
        stacklevel=2,
    )
    return replace(traits, **values)


def _converted(strategy: PairStrategy, name: str) -> Any:
    """The value of a trait from an old attribute."""
    value = getattr(strategy, name)
    if name == "informs":
        return frozenset(value)
    if name == "passes_link_on":
        return any(needs_features(part) for part in parts_of(strategy)) if value else None
    return value is False if name == "detach_weights" else value


def parts_of(strategy: PairStrategy) -> tuple[PairStrategy, ...]:
    """The inner strategies of a strategy."""
    return tuple(strategy.strategies) if isinstance(strategy, Composed) else ()


def all_parts(strategy: PairStrategy) -> tuple[PairStrategy, ...]:
    """A strategy and its inner strategies at all depths."""
    return strategy, *(inner for part in parts_of(strategy) for inner in all_parts(part))


def crosses_patients(strategy: PairStrategy) -> bool:
    """Whether one sample may hold scans of several patients."""
    own = traits_of(strategy).crosses_patients
    return any(crosses_patients(part) for part in parts_of(strategy)) if own is None else bool(own)


def relates_points(strategy: PairStrategy) -> bool:
    """Whether `relate` accepts the keys of points."""
    return bool(traits_of(strategy).relates_points)


def region_traits_of(strategy: PairStrategy) -> StrategyTraits | None:
    """The traits of the part of a strategy that reads the regions of points; None if none does."""
    traits = [traits_of(part) for part in all_parts(strategy)] if relates_points(strategy) else []
    return next((one for one in traits if one.reads_regions), None)


def num_points_of(points: object) -> int:
    """The number of points per sample of a strategy or an objective. AttributeError if it has none."""
    if not isinstance(points, HasPoints):
        raise AttributeError(f"{type(points).__name__} relates points and has no `num_points`")
    return points.num_points


def link(
    strategy: PairStrategy, rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"]
) -> tuple[Keys, Keys]:
    """Add the columns that a strategy derives from similarities ``[N, M]`` to the keys, without gradient."""
    return strategy.link(rows, cols, similarity) if isinstance(strategy, Linking) else (rows, cols)


def sums_of(strategy: PairStrategy, rows: Keys) -> Sums:
    """The metrics of a strategy from linked rows; of its inner strategies if it has none of its own."""
    if isinstance(strategy, Measuring):
        return strategy.sums(rows)
    return {name: value for part in parts_of(strategy) for name, value in sums_of(part, rows).items()}


def needs_features(strategy: PairStrategy) -> bool:
    """Whether a strategy, or one of its inner strategies, needs features to relate."""
    own = traits_of(strategy).needs_features
    return isinstance(strategy, Linking) and own is not False


def has_gradient_through_negatives(strategy: PairStrategy) -> bool:
    """Whether the gradient goes through the negative weights of a strategy or of an inner one."""
    return any(traits_of(part).gradient_through_negatives for part in all_parts(strategy))


def without_weighted_negatives(strategy: PairStrategy, outer: str) -> PairStrategy:
    """The strategy; ConfigError if a part weights negatives, some of which `outer` removes later."""
    if any(traits_of(part).temperature is not None for part in all_parts(strategy)):
        raise ConfigError(
            problem="hard_negatives weights negatives relative to all of an anchor's, of which some would be "
            f"removed by {outer}",
            remedy=f"put hard_negatives outside, with {outer} as its inner strategy",
        )
    return strategy


def queued_items(positions: Int[Tensor, " M"]) -> Int[Tensor, " Q"]:
    """The indices of the items in the embedding queue; read from `positions` if their number is not known."""
    import torch

    first = getattr(positions, FIRST_QUEUED, None)
    if first is None:
        return (positions >= 0).nonzero().flatten()
    return torch.arange(first, len(positions), device=positions.device)


def queue_size(strategy: PairStrategy) -> int:
    """The size of the embedding queue that a strategy needs."""
    return max(traits_of(part).queue_size for part in all_parts(strategy))
