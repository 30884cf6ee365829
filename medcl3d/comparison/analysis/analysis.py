"""Analysis of a comparison, as a value: means, paired differences, tests."""

from __future__ import annotations

from dataclasses import dataclass, field

from medcl3d.comparison.plan.arm_types import ArmType
from medcl3d.comparison.plan.cells import Cell, cell_words
from medcl3d.evaluation.statistics.crossed import Components
from medcl3d.evaluation.statistics.intervals import Interval
from medcl3d.evaluation.statistics.rank_stability import RankStability

ALPHA = 0.05


@dataclass(frozen=True)
class Numbers:
    """Means of one arm, in one cell or at the endpoint; the reference has no difference."""

    mean: Interval
    difference: Interval | None


@dataclass(frozen=True)
class PairedTest:
    """Two-sided p-values of one arm of the preregistered family against the reference.

    t          paired t-test with the variance of replicates and cases; holm: adjusted over the family, and
        over the endpoints that follow, if some were declared (Holm's procedure is the case of one endpoint)
    wilcoxon   exact, over replicates only and not adjusted: a check
    """

    t: float
    holm: float
    wilcoxon: float


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests of one difference.

    interval  confidence 1 - 2 alpha: 90% for tests at 5%; inside the margin if and only if the unadjusted p
              is below alpha
    adjusted  p adjusted over the preregistered family; None if there is no test
    """

    interval: Interval
    adjusted: float | None


@dataclass(frozen=True)
class ArmNumbers:
    """One arm against the reference; `test` is None for too few replicates or outside the family.

    effect    the endpoint's difference in standard deviations over replicates
    smallest  the difference that a comparison of this size detects with a power of 80%, at the level that the
              family leaves
    labels    cell -> number of labels that the baseline would need, as text
    components  variances of the endpoint's difference
    equivalence  whether the difference is smaller than the margin, if one was declared; tested for arms of
                 the family only
    """

    name: str
    cells: dict[Cell, Numbers]
    endpoint: Numbers
    test: PairedTest | None = None
    effect: Interval | None = None
    smallest: float | None = None
    labels: dict[Cell, str] = field(default_factory=dict)
    components: Components | None = None
    equivalence: Equivalence | None = None


@dataclass(frozen=True)
class FarReplicate:
    """A replicate far from its arm's others; away: distance in scaled median absolute deviations."""

    arm: str
    seed: int
    value: float
    median: float
    away: float


@dataclass(frozen=True)
class LaterEndpoint:
    """An endpoint that is tested after the primary one.

    differences  arm of the family -> its paired difference to the reference
    adjusted     arm -> p, adjusted over all arms and endpoints; only for arms that were rejected at the
                 previous endpoint
    why_not      reason for which nothing is tested here although the primary endpoint is, "" otherwise
    """

    metric: str
    higher: bool
    cells: tuple[Cell, ...]
    differences: dict[str, Interval]
    adjusted: dict[str, float]
    why_not: str

    @property
    def words(self) -> str:
        """Metric, direction and cells."""
        cells = "; ".join(map(cell_words, self.cells))
        return f"{self.metric} ({'higher' if self.higher else 'lower'} is better): {cells}"


@dataclass(frozen=True)
class Analysis:
    """All arms, with the replicates and cases on which they are compared.

    num_cases  test patients in the variance, None if only replicates vary in it; why_not: the reason in that
               case
    values     arm -> the endpoint, one number per replicate
    pairs      (arm, other) -> paired difference of the two at the endpoint, for all pairs of arms:
               exploratory
    arm_types  arm -> its type: a pair strategy or a control
    untested   reason for which nothing is tested although enough replicates were planned, "" otherwise
    margin     the smallest difference that matters, None if none was declared
    margin_untested  reason for which no arm is called equivalent, "" otherwise
    order      stability of the arms' order, None for fewer than three replicates
    far        replicates far from their arm's others; without: the same analysis without these replicates, in
               all arms
    later      the endpoints that follow the primary one, in their preregistered order
    """

    metric: str
    higher: bool
    reference: str
    planned: int
    replicates: tuple[int, ...]
    cells: tuple[Cell, ...]
    arms: tuple[ArmNumbers, ...]
    family: tuple[str, ...]
    num_cases: int | None
    why_not: str
    pairs: dict[tuple[str, str], Interval]
    values: dict[str, tuple[float, ...]]
    arm_types: dict[str, ArmType]
    stage: str = "confirm"
    untested: str = ""
    margin: float | None = None
    margin_untested: str = ""
    order: RankStability | None = None
    far: tuple[FarReplicate, ...] = ()
    without: Analysis | None = None
    later: tuple[LaterEndpoint, ...] = ()

    def arm(self, name: str) -> ArmNumbers:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def baseline(self) -> str:
        """The arm whose labels are counted: the one without pretraining, otherwise the reference."""
        return next((name for name, kind in self.arm_types.items() if kind == "scratch"), self.reference)

    @property
    def tested(self) -> bool:
        """Whether an arm has a test."""
        return any(arm.test is not None for arm in self.arms)
