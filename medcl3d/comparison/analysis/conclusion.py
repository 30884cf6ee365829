"""The conclusion of a comparison in two sentences: which arm to use, and how certain that is."""

from __future__ import annotations

from collections.abc import Sequence

from medcl3d.comparison.analysis.analysis import ALPHA, Analysis, ArmNumbers
from medcl3d.comparison.analysis.number_text import number, p_value, with_interval
from medcl3d.comparison.plan.arm_types import ArmType
from medcl3d.evaluation.statistics.intervals import MIN_REPLICATES_FOR_CLAIM, MIN_REPLICATES_FOR_TEST

CONTROL_NOTES: dict[ArmType, str] = {
    "placebo": " (a placebo: its signal columns are permuted)",
    "mae": " (which has no pairs)",
    "scratch": " (not pretrained)",
    "foreign": " (weights of another project)",
    "augmented": " (which chooses no pairs)",
}
"""Text after the name of a control in a sentence."""
MOST_NAMED = 5
"""Arms that a sentence lists with their numbers; the table has the others."""
NOT_BY_SIGNAL = "the strategy's signal columns, which a placebo permutes, are not shown to help"
NOT_BY_CHOICE = "the choice of pairs is not shown to help"
NO_EVIDENCE = "there is no evidence that {} is worth the cost"
UNTESTED = "by its interval, which is not a test"


def conclusion_sentences(analysis: Analysis) -> tuple[str, str]:
    """Two sentences: the recommendation (the observed means if nothing is tested), and its certainty.

    All tests are against the reference. If the reference is a strategy, it is compared with scratch and its
    placebo by name: better than scratch means that pretraining helps, better than the placebo that the signal
    columns help. Arms outside the family count by their interval: they can prevent a recommendation, and are
    named as untested.
    """
    others = [arm for arm in analysis.arms if arm.name != analysis.reference]
    if not others:
        mean = f"has a mean {analysis.metric} of {_number(analysis, analysis.reference)}"
        only = f"Over {_replicates(analysis)} the only arm, “{analysis.reference}”, {mean}."
        return only, "There is no other arm to compare it with."
    if not analysis.tested:
        return _seen(analysis), f"{_untested(analysis, _best(analysis, others))}."
    found = _Found(analysis, others)
    recommendation = _instead(analysis, found) if found.better else _kept(analysis, found)
    return recommendation, _certainty(analysis, found)


class _Found:
    """The other arms by result: arms of the family by their tests, others by their intervals alone."""

    def __init__(self, analysis: Analysis, others: Sequence[ArmNumbers]):
        tested = [arm for arm in others if arm.test is not None]
        self.significant = [arm for arm in tested if arm.test is not None and arm.test.holm < ALPHA]
        self.better = [arm for arm in self.significant if _gain(analysis, arm) > 0]
        self.worse = [arm for arm in self.significant if arm not in self.better]
        self.rest = [arm for arm in tested if arm not in self.significant]
        outside = [arm for arm in others if arm.test is None]
        self.outside = sorted(outside, key=lambda arm: -_gain(analysis, arm))
        self.outside_worse = [arm for arm in outside if _is_behind(analysis, arm.name, analysis.reference)]
        self.not_beaten = [*self.rest, *(arm for arm in self.outside if arm not in self.outside_worse)]


def _instead(analysis: Analysis, found: _Found) -> str:
    """If arms do better than the reference: the best of them, and those not distinguishable from it."""
    name, over = analysis.reference, f"over {_replicates(analysis)}"
    best = _best(analysis, found.better)
    if analysis.arm_types[best.name] == "placebo":
        real = [arm for arm in found.better if analysis.arm_types[arm.name] != "placebo"]
        level = [arm for arm in real if not _is_behind(analysis, arm.name, best.name)]
        if not level:
            means = f"“{best.name}” (mean {analysis.metric} {_number(analysis, best.name)}) does better than"
            helps = "it is a placebo: what helps is not the strategy's signal columns"
            return f"{means} {_reference(analysis)}, and {helps}."
        best = _best(analysis, level)
    kind = analysis.arm_types[best.name]
    rivals = [arm for arm in analysis.arms if arm.name not in (best.name, name)]
    alike = [arm for arm in rivals if not _is_behind(analysis, arm.name, best.name)]
    controls = _controls(analysis, alike)
    if kind != "scratch" and controls["scratch"]:
        mean = f"mean {analysis.metric} {_number(analysis, best.name)} {over}"
        weak = f"is not shown to do better than {_beside(controls)}: {NO_EVIDENCE.format('its pretraining')}"
        return f"“{best.name}” ({mean}) does better than “{name}”, and {weak}."
    equals = [arm for arm in found.better if arm in alike and arm not in controls["placebo"]]
    others = [arm for arm in alike if arm not in equals]
    lead = f"Use {_names([best, *equals])}{', whichever costs least,' if equals else ''} rather than “{name}”"
    means = _listed([_number(analysis, arm.name) for arm in (best, *equals)], "and")
    means = f"{means}, against {_number(analysis, name)}"
    beside = f"; “{best.name}” {_level(analysis, best.name, others)}" if others else ""
    return f"{lead}: {over} the mean {analysis.metric} is {means}{beside}{_doubt(analysis, best, controls)}."


def _controls(analysis: Analysis, arms: Sequence[ArmNumbers]) -> dict[ArmType, list[ArmNumbers]]:
    """Type of a control -> those of these arms that have it."""
    arm_types: tuple[ArmType, ...] = ("scratch", "augmented", "placebo")
    return {kind: [arm for arm in arms if analysis.arm_types[arm.name] == kind] for kind in arm_types}


def _beside(controls: dict[ArmType, list[ArmNumbers]]) -> str:
    return _names([arm for arms in controls.values() for arm in arms])


def _level(analysis: Analysis, name: str, others: Sequence[ArmNumbers]) -> str:
    """Words for an arm that is not better than others (outside the family, some may even be ahead)."""
    ahead = any(_is_behind(analysis, name, arm.name) for arm in others)
    return f"is not {'shown to do better than' if ahead else 'distinguishable from'} {_names(others)}"


def _doubt(analysis: Analysis, best: ArmNumbers, controls: dict[ArmType, list[ArmNumbers]]) -> str:
    """Caveats if the best arm chooses no pairs, or is not shown to beat a placebo or an arm that does not."""
    kind, sentences = analysis.arm_types[best.name], ""
    if kind == "pairs" and controls["placebo"]:
        sentences = f"; {NOT_BY_SIGNAL}"
    without = [best] if kind == "augmented" else controls["augmented"] if kind == "pairs" else []
    if without:
        names = _listed([f"“{arm.name}”" for arm in without], "and")
        sentences += f"; {names} {'chooses' if len(without) == 1 else 'choose'} no pairs, so {NOT_BY_CHOICE}"
    return sentences


def _kept(analysis: Analysis, found: _Found) -> str:
    """The recommendation if no arm does better than the reference."""
    name, reference, open_ = analysis.reference, _reference(analysis), found.not_beaten
    own = analysis.arm(name)
    if analysis.arm_types[name] == "scratch":
        ahead = [arm for arm in found.outside if _is_behind(analysis, name, arm.name)]
        if not ahead:
            return f"No arm is shown to do better than {reference}: {NO_EVIDENCE.format('pretraining')}."
        names = _listed([_with_type(analysis, arm) for arm in ahead], "and")
        hint = f"outside the family {names} {'does' if len(ahead) == 1 else 'do'}, {UNTESTED}"
        return f"No arm of the preregistered family is shown to do better than {reference}; {hint}."
    if not open_:
        family = "every other arm of the preregistered family does worse"
        outside = ", and so do the arms outside it, by their intervals alone" if found.outside else ""
        return f"Use {reference}: {family}{outside}{_doubt(analysis, own, _controls(analysis, ()))}."
    controls = _controls(analysis, open_)
    if controls["scratch"]:
        weak = f"{reference} is not shown to do better than {_beside(controls)}"
        return f"{weak}: {NO_EVIDENCE.format('its pretraining')}."
    alike, doubt = _level(analysis, name, open_), _doubt(analysis, own, controls)
    helps = [arm for arm in (*found.worse, *found.outside_worse) if analysis.arm_types[arm.name] == "scratch"]
    if not helps or analysis.arm_types[name] == "placebo":
        return f"{reference} {alike}{doubt}."
    choices = [arm for arm in open_ if arm not in controls["placebo"]]
    lead = f"Use {_names([own, *choices])}{', whichever costs least' if choices else ''}"
    hint = f" ({UNTESTED})" if helps[0] in found.outside_worse else ""
    return f"{lead}: {reference} does better than {_names(helps)}{hint}, and {alike}{doubt}."


def _certainty(analysis: Analysis, found: _Found) -> str:
    groups = (("better", found.better), ("worse", found.worse), ("not distinguishable from it", found.rest))
    parts = [f"{words} {_list(arms)}" for words, arms in groups if arms]
    adjusted = f"Holm-adjusted over the {len(analysis.family)} arms of the preregistered family"
    family = f"Compared with “{analysis.reference}” by paired t-tests ({adjusted})"
    if len(analysis.family) == 1:
        family = f"Compared with “{analysis.reference}” by a paired t-test"
    sentences = [f"{family}: {'; '.join(parts)}"]
    if found.outside:
        best = _best(analysis, analysis.arms) in found.outside
        outside = _list(found.outside, ", the best mean" if best else "")
        sentences.append(f"outside the family, by intervals only, which are not tests: {outside}")
    if found.significant and len(analysis.replicates) < MIN_REPLICATES_FOR_CLAIM:
        sentences.append(f"a claim needs {MIN_REPLICATES_FOR_CLAIM} replicates")
    if found.significant and analysis.num_cases is None:
        sentences.append("this holds for these test cases only")
    return "; ".join(sentences) + "." + _equivalence(analysis)


def _equivalence(analysis: Analysis) -> str:
    """One more sentence: the arms that are equivalent to the reference; "" if no margin was tested."""
    words: dict[bool, list[str]] = {True: [], False: []}
    for arm in analysis.arms:
        if arm.equivalence is not None and (p := arm.equivalence.adjusted) is not None:
            interval = with_interval(arm.equivalence.interval, sign=True)
            shown = p < ALPHA
            words[shown].append(f"“{arm.name}” ({interval}, {p_value(p)})" if shown else f"“{arm.name}”")
    num_tested = len(words[True]) + len(words[False])
    if analysis.margin is None or not num_tested:
        return ""
    equal, others = _some(words[True]), _some(words[False])
    to = f"to “{analysis.reference}” within the preregistered margin of {number(analysis.margin)}"
    first = f"Equivalent {to}: {equal}" if equal else f"No arm is shown to be equivalent {to}"
    rest = f"; not shown to be equivalent: {others}" if others else ""
    adjusted = ", Holm-adjusted" if num_tested > 1 else ""
    intervals = "90% intervals, " if equal else ""
    return f" {first}{rest} ({intervals}two one-sided tests{adjusted})."


def _seen(analysis: Analysis) -> str:
    best, reference = _best(analysis, analysis.arms), analysis.reference
    over, mean = f"Over {_replicates(analysis)}", f"mean {analysis.metric}"
    value = _number(analysis, reference)
    if len({arm.endpoint.mean.mean for arm in analysis.arms}) == 1:
        return f"{over} all arms have the same {mean} of {value}: no arm shows an effect."
    if best.name == reference:
        return f"{over} no arm does better than the reference “{reference}” ({mean} {value})."
    means = f"{_number(analysis, best.name)}, against {value} of “{reference}”"
    return f"{over} {_with_type(analysis, best)} has the best {mean}: {means}."


def _untested(analysis: Analysis, arm: ArmNumbers) -> str:
    difference = arm.endpoint.difference
    assert difference is not None, "the reference has no difference to itself"
    what = f"the difference of “{arm.name}” is {with_interval(difference, sign=True)}"
    if len(analysis.replicates) == 1:
        chance = f"One replicate cannot distinguish a difference from chance ({what}, without an interval)"
        return f"{chance}, so the arms are not ranked"
    suggested = "excludes 0, which suggests a difference but is not a test"
    weight = suggested if difference.excludes_zero else "contains 0"
    why = analysis.untested or f"there are fewer than {MIN_REPLICATES_FOR_TEST} replicates"
    if analysis.stage == "screen":
        why = "this is a screening that only selects candidates"
    return f"No test, since {why}: {what}, and its 95% interval {weight}"


def _best(analysis: Analysis, arms: Sequence[ArmNumbers]) -> ArmNumbers:
    return max(arms, key=lambda arm: (1 if analysis.higher else -1) * arm.endpoint.mean.mean)


def _gain(analysis: Analysis, arm: ArmNumbers) -> float:
    """The difference to the reference, signed so that positive is better."""
    assert arm.endpoint.difference is not None, "the reference has no difference to itself"
    return (1 if analysis.higher else -1) * arm.endpoint.difference.mean


def _is_behind(analysis: Analysis, name: str, other: str) -> bool:
    """Whether the interval of the paired difference shows the first arm to be worse than the other."""
    difference = analysis.pairs[name, other]
    return difference.excludes_zero and (difference.mean < 0) is analysis.higher


def _reference(analysis: Analysis) -> str:
    mean = f"mean {analysis.metric} {_number(analysis, analysis.reference)}"
    return f"“{analysis.reference}” ({mean} over {_replicates(analysis)})"


def _with_type(analysis: Analysis, arm: ArmNumbers) -> str:
    return f"“{arm.name}”{CONTROL_NOTES.get(analysis.arm_types[arm.name], '')}"


def _number(analysis: Analysis, name: str) -> str:
    return number(analysis.arm(name).endpoint.mean.mean)


def _replicates(analysis: Analysis) -> str:
    count = len(analysis.replicates)
    return f"{count} replicate{'s' if count > 1 else ''}"


def _names(arms: Sequence[ArmNumbers]) -> str:
    return _listed([f"“{arm.name}”" for arm in arms], "or")


def _listed(words: Sequence[str], last: str) -> str:
    """``a``, ``a or b``, ``a, b or c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def _list(arms: Sequence[ArmNumbers], of_the_first: str = "") -> str:
    """Arms with their difference and, if tested, adjusted p; `of_the_first` is added to the first."""

    def one(arm: ArmNumbers) -> str:
        assert arm.endpoint.difference is not None, "the reference has no difference to itself"
        p = "" if arm.test is None else f", {p_value(arm.test.holm)}"
        also = of_the_first if arm is arms[0] else ""
        return f"“{arm.name}” ({with_interval(arm.endpoint.difference, sign=True)}{p}{also})"

    return _some([one(arm) for arm in arms])


def _some(words: Sequence[str]) -> str:
    """The first words, and the number of the others."""
    more = f" and {len(words) - MOST_NAMED} more" if len(words) > MOST_NAMED else ""
    return ", ".join(words[:MOST_NAMED]) + more
