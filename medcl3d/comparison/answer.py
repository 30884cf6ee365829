"""What a comparison says, in two sentences: which arm to use, and how certain that is."""

from __future__ import annotations

from collections.abc import Sequence

from medcl3d.comparison.analysis import ALPHA, Analysis, ArmNumbers
from medcl3d.comparison.kinds import Kind
from medcl3d.evaluation.statistics import MIN_REPLICATES_FOR_CLAIM, MIN_REPLICATES_FOR_TEST, Interval

SAID: dict[Kind, str] = {
    "placebo": " (which knows nothing true of scans)",
    "mae": " (which has no pairs)",
    "scratch": " (not pretrained)",
}
"""What a sentence adds to the name of a control."""
MOST_NAMED = 5
"""Arms that a sentence names with their numbers; the table has the others."""


def number(value: float, sign: bool = False) -> str:
    """A value with three decimals (fewer where it is large), with a true minus."""
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def with_interval(interval: Interval, sign: bool = False) -> str:
    """``0.712 [0.690, 0.734]``, or the mean alone where there is no interval."""
    mean = number(interval.mean, sign)
    return f"{mean} [{number(interval.low, sign)}, {number(interval.high, sign)}]" if interval.known else mean


def p_value(p: float) -> str:
    """``p = 0.012`` or ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def answer(analysis: Analysis) -> tuple[str, str]:
    """Two sentences: what to use, or what was seen where nothing is tested; and how certain that is.

    What is tested is tested against the reference. Where that is a strategy, it is held against scratch and its placebo by name: to be
    ahead of scratch says that pretraining helps, to be ahead of the placebo that what the strategy knows of the scans does.
    """
    others = [arm for arm in analysis.arms if arm.name != analysis.reference]
    if not others:
        only = f"“{analysis.reference}”, has a mean {analysis.metric} of {_number(analysis, analysis.reference)}"
        return f"Over {_replicates(analysis)} the only arm, {only}.", "There is nothing to compare it with."
    if not analysis.tested:
        return _seen(analysis), f"{_untested(analysis, _best(analysis, others))}."
    told = [arm for arm in others if arm.test is not None and arm.test.holm < ALPHA]
    better, worse = ([arm for arm in told if (_gain(analysis, arm) > 0) is is_better] for is_better in (True, False))
    rest = [arm for arm in others if arm.test is not None and arm not in told]
    return _advice(analysis, better, worse, rest), _certainty(analysis, better, worse, rest)


def _advice(analysis: Analysis, better: Sequence[ArmNumbers], worse: Sequence[ArmNumbers], rest: Sequence[ArmNumbers]) -> str:
    name, over = analysis.reference, f"over {_replicates(analysis)}"
    reference = f"“{name}” (mean {analysis.metric} {_number(analysis, name)} {over})"
    if better:
        best = _best(analysis, better).name
        if analysis.kinds[best] == "placebo":
            means = f"“{best}” (mean {analysis.metric} {_number(analysis, best)}) does better than {reference}"
            return f"{means}, and it is a placebo: what helps is not what its strategy knows of the scans."
        means = f"{_number(analysis, best)}, against {_number(analysis, name)}"
        return f"Use “{best}” rather than “{name}”: {over} the mean {analysis.metric} is {means}."
    if analysis.kinds[name] == "scratch":
        return f"No arm is shown to do better than {reference}: nothing here says that pretraining is worth its cost."
    if not rest:
        return f"Use {reference}: every other arm of the declared family does worse."
    controls = {kind: [arm for arm in rest if analysis.kinds[arm.name] == kind] for kind in ("scratch", "placebo")}
    if controls["scratch"]:
        beside = _names([*controls["scratch"], *controls["placebo"]])
        return f"{reference} is not shown to do better than {beside}: nothing here says that its pretraining is worth the cost."
    alike = f"is not told from {_names(rest)}"
    doubt = "; what its strategy knows of the scans is not shown to help, since the placebo lacks it" if controls["placebo"] else ""
    helps = [arm for arm in worse if analysis.kinds[arm.name] == "scratch"]
    if not helps:
        return f"{reference} {alike}{doubt}."
    choices = [arm for arm in rest if arm not in controls["placebo"]]
    lead = f"Use “{name}” or {_names(choices)}, whichever costs least" if choices else f"Use “{name}”"
    return f"{lead}: {reference} does better than {_names(helps)}, and {alike}{doubt}."


def _certainty(analysis: Analysis, better: Sequence[ArmNumbers], worse: Sequence[ArmNumbers], rest: Sequence[ArmNumbers]) -> str:
    parts = [f"{words} {_list(arms)}" for words, arms in (("better", better), ("worse", worse), ("not told from it", rest)) if arms]
    family = f"Beside “{analysis.reference}”, by paired t-tests (Holm-adjusted over the {len(analysis.family)} arms of the declared family)"
    if len(analysis.family) == 1:
        family = f"Beside “{analysis.reference}”, by a paired t-test"
    said = [f"{family}: {'; '.join(parts)}"]
    best = _best(analysis, analysis.arms)
    if best.test is None and best.name != analysis.reference and best.endpoint.difference is not None:
        outside = f"“{best.name}” has the best mean and is outside the declared family"
        said.append(f"{outside}, so that its difference of {with_interval(best.endpoint.difference, sign=True)} is a hint at most")
    if (better or worse) and len(analysis.replicates) < MIN_REPLICATES_FOR_CLAIM:
        said.append(f"a claim would need {MIN_REPLICATES_FOR_CLAIM} replicates")
    if (better or worse) and analysis.num_cases is None:
        said.append("this speaks of these test cases only")
    if missing := analysis.planned - len(analysis.replicates):
        said.append(f"{missing} of {analysis.planned} planned replicates are missing, so that this is a look before the end")
    return "; ".join(said) + "."


def _seen(analysis: Analysis) -> str:
    best, reference, over = _best(analysis, analysis.arms), analysis.reference, f"Over {_replicates(analysis)}"
    if len({arm.endpoint.mean.mean for arm in analysis.arms}) == 1:
        return f"{over} all arms have a mean {analysis.metric} of {_number(analysis, reference)}: nothing tells that any of them learnt."
    if best.name == reference:
        return f"{over} no arm does better than the reference “{reference}” (mean {analysis.metric} {_number(analysis, reference)})."
    means = f"{_number(analysis, best.name)}, against {_number(analysis, reference)} of “{reference}”"
    return f"{over} “{best.name}”{SAID.get(analysis.kinds[best.name], '')} has the best mean {analysis.metric}: {means}."


def _untested(analysis: Analysis, arm: ArmNumbers) -> str:
    difference = arm.endpoint.difference
    assert difference is not None, "the reference has no difference to itself"
    what = f"the difference of “{arm.name}” is {with_interval(difference, sign=True)}"
    if len(analysis.replicates) == 1:
        return f"One replicate cannot tell a difference from chance ({what}, without an interval): it ranks nothing"
    weight = "does not hold 0, which is a hint at most" if difference.excludes_zero else "holds 0"
    hint = f"{what}, and its 95% interval {weight}"
    if analysis.stage == "screen":
        return f"No test, since this is a screening that only picks candidates: {hint}"
    if analysis.untested:
        return f"No test, since what is tested was changed when results were there: {hint}"
    return f"No test, since there are fewer than {MIN_REPLICATES_FOR_TEST} replicates: {hint}"


def _best(analysis: Analysis, arms: Sequence[ArmNumbers]) -> ArmNumbers:
    return max(arms, key=lambda arm: (1 if analysis.higher else -1) * arm.endpoint.mean.mean)


def _gain(analysis: Analysis, arm: ArmNumbers) -> float:
    """How much better than the reference, whichever direction is better."""
    assert arm.endpoint.difference is not None, "the reference has no difference to itself"
    return (1 if analysis.higher else -1) * arm.endpoint.difference.mean


def _number(analysis: Analysis, name: str) -> str:
    return number(analysis.arm(name).endpoint.mean.mean)


def _replicates(analysis: Analysis) -> str:
    count = len(analysis.replicates)
    return f"{count} replicate{'s' if count > 1 else ''}"


def _names(arms: Sequence[ArmNumbers]) -> str:
    names = [f"“{arm.name}”" for arm in arms]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _list(arms: Sequence[ArmNumbers]) -> str:
    """Arms with their difference and adjusted p."""

    def one(arm: ArmNumbers) -> str:
        assert arm.test is not None and arm.endpoint.difference is not None, "only tested arms are listed"
        return f"“{arm.name}” ({with_interval(arm.endpoint.difference, sign=True)}, {p_value(arm.test.holm)})"

    more = f" and {len(arms) - MOST_NAMED} more" if len(arms) > MOST_NAMED else ""
    return ", ".join(map(one, arms[:MOST_NAMED])) + more
