"""Tables of the pages of results that are computed from committed rows: every figure is recomputed."""

from __future__ import annotations

import html
import importlib.util
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from medcl3d.comparison.compare import compare
from medcl3d.evaluation.statistics.crossed import over_replicates

DOCS = Path(__file__).parents[2] / "docs"
CONTROLS = ("place", "intensity_place", "intensity")
PROBE, RECALL, MAP = "linear/balanced_accuracy", "crop_retrieval/recall@1", "crop_retrieval/average_precision"


def cells_of(page: str, section: str, first: str) -> dict[str, list[str]]:
    """Row name -> other cells, for the table of a section whose heading row begins with `first`."""
    text = (DOCS / page).read_text(encoding="utf-8").split(f"## {section}\n")[1].split("\n## ")[0]
    lines = text[text.index(f"| {first} |") :].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows}


def by_seed(file: str, measure: str) -> pd.DataFrame:
    """One row per arm, one column per seed: the mean over the label counts."""
    return pd.read_csv(DOCS / "results" / file).groupby(["arm", "seed"])[measure].mean().unstack()


def figures(cell: str) -> list[float]:
    return [float(text) for text in re.findall(r"[+-]?\d+\.\d+", cell.replace("\N{MINUS SIGN}", "-"))]


def assert_shows(cell: str, values: pd.Series) -> None:
    interval = over_replicates(values.to_numpy()).interval()
    assert figures(cell) == pytest.approx([interval.mean, interval.low, interval.high], abs=6e-4)


def test_the_structures_of_the_brain() -> None:
    table = cells_of("results/index.md", "Brain: which structure is at the centre of a crop?", "arm")
    values = {measure: by_seed("ixi_structures.csv", measure) for measure in (PROBE, RECALL, MAP)}
    assert set(table) == set(values[PROBE].index)
    for arm, (probe, to_crops, to_views, recall, average_precision) in table.items():
        for cell, measure in ((probe, PROBE), (recall, RECALL), (average_precision, MAP)):
            assert_shows(cell, values[measure].loc[arm])
        for cell, other in ((to_crops, "overlapping_crops"), (to_views, "augmented_views")):
            assert bool(cell) is (arm != other)
            if cell:
                assert_shows(cell, values[PROBE].loc[arm] - values[PROBE].loc[other])


def test_the_budgets_of_the_brain() -> None:
    table = cells_of(
        "results/appendix.md", "Brain: does a longer pretraining of overlapping crops help?", "measure"
    )
    measures = (PROBE, "knn/balanced_accuracy", RECALL, MAP)
    arms = ("untrained", "overlapping_crops, 200 steps", "overlapping_crops, 3000 steps")
    for measure, (*means, difference) in zip(measures, table.values(), strict=True):
        values = by_seed("ixi_budget.csv", measure)
        assert [float(mean) for mean in means] == pytest.approx(
            [values.loc[arm].mean() for arm in arms], abs=6e-4
        )
        assert_shows(difference, values.loc[arms[2]] - values.loc[arms[1]])


def test_the_frozen_encoders_of_the_adrenal_glands() -> None:
    table = cells_of("results/index.md", "Adrenal glands: which positives help a frozen encoder?", "arm")
    linear, knn = (by_seed("adrenal_frozen.csv", f"{probe}/auroc") for probe in ("linear", "knn"))
    assert set(table) == set(linear.index)
    for arm, (mean, to_views, mean_knn, knn_to_views) in table.items():
        for cell, values, difference in ((mean, linear, to_views), (mean_knn, knn, knn_to_views)):
            assert_shows(cell, values.loc[arm])
            assert bool(difference) is (arm != "augmented_views")
            if difference:
                assert_shows(difference, values.loc[arm] - values.loc["augmented_views"])


def from_archive(name: str, folder: Path, rows: str | None = None) -> pd.DataFrame:
    """The rows of the study `name`, compared again from its archive; they contain the committed ones."""
    config = DOCS.parent / "configs" / "compare" / "study" / f"{name}.yaml"
    compare(config, [f"out_dir={folder}"], from_runs=[DOCS / "results" / "study" / f"{name}.jsonl.xz"])
    found = pd.read_csv(folder / "evaluate" / "results.csv")
    if rows is not None:
        committed = pd.read_csv(DOCS / "results" / rows)
        pd.testing.assert_frame_equal(found[list(committed)], committed)
    return found


def test_the_study_is_rebuilt_from_its_archive(tmp_path: Path) -> None:
    """The conclusion that the page quotes is that of the committed runs."""
    from_archive("adrenal", tmp_path, "adrenal_frozen.csv")
    conclusion = json.loads((tmp_path / "evaluate" / "conclusion.json").read_text())
    found = {arm["name"]: arm["p"] for arm in conclusion["arms"]}
    page = (DOCS / "results/index.md").read_text(encoding="utf-8")
    assert found["class_labels"] < 0.001 and "p < 0.001" in page
    for arm in ("untrained", "multi_crop"):
        assert f"p = {found[arm]:.3f}" in page
    assert_shows_scores(tmp_path / "evaluate" / "report.html", 0)


def scores_of(report: Path) -> dict[str, list[str]]:
    """Score -> its rank correlation with the endpoint, the encoder that it selects, and its rank."""
    text = html.unescape(report.read_text(encoding="utf-8")).split("Does a score select the best encoder?")[1]
    rows = re.findall(r"<tr>(.*?)</tr>", text.split("</table>")[0], flags=re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL) for row in rows[1:]]
    plain = [[re.sub(r"<[^>]+>", "", cell).strip() for cell in row] for row in cells]
    return {row[0]: row[1:] for row in plain}


def assert_shows_scores(report: Path, column: int) -> None:
    """The table of label-free scores has those of a report, from this column on."""
    table = cells_of("results/index.md", "Do label-free scores choose the encoder?", "score")
    found = scores_of(report)
    assert len(table) == 4
    for score, cells in table.items():
        figures_of, encoder, place = found[score]
        mean, low, high = figures(figures_of)
        assert cells[column] == f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]".replace("-", "\N{MINUS SIGN}")
        assert cells[column + 1] == f"{encoder}, {place}"


@dataclass(frozen=True)
class Study:
    """A study that was rebuilt from its archive: its report, mean per arm, and the section of the page."""

    report: str
    rows: pd.DataFrame
    arms: dict[str, dict[str, Any]]
    section: str

    def shown(self, arm: str, number: str) -> str:
        """The difference of an arm to the reference, as the pages quote it."""
        one = self.arms[arm]["difference"]
        quoted = f"{one['mean']:{number}} [{one['low']:{number}}, {one['high']:{number}}]"
        return quoted.replace("-", "\N{MINUS SIGN}")


def rebuilt(name: str, rows: str, section: str, folder: Path, num_shown: int = 18) -> Study:
    """The study `name`, whose rows, table and p-values are those of its archive.

    num_shown  figures of the table that the report shows
    """
    found = from_archive(name, folder, rows)
    report = (folder / "evaluate" / "results.md").read_text(encoding="utf-8")
    means = found.groupby("arm").mean(numeric_only=True)
    table = cells_of("results/index.md", section, "arm")
    assert set(table) == set(means.index)
    shown = [f"| {arm} | {cell} |" for arm, cells in table.items() for cell in cells if cell]
    assert len(shown) == num_shown and all(one in report for one in shown)
    page = (DOCS / "results/index.md").read_text(encoding="utf-8")
    conclusion = json.loads((folder / "evaluate" / "conclusion.json").read_text())
    arms = {arm["name"]: arm for arm in conclusion["arms"]}
    text = page.split(f"## {section}\n")[1].split("\n## ")[0]
    for arm in arms.values():
        assert arm["p"] is None or arm["p"] < 0.001 or f"p = {arm['p']:.3f}" in text, arm["name"]
    return Study(report, means, arms, text)


def assert_quoted(text: str, *pages: str) -> None:
    """The answers and these pages quote a figure."""
    for page in ("results/index.md", *pages):
        words = " ".join((DOCS / page).read_text(encoding="utf-8").split())
        assert text in words, page


def test_the_study_of_matching_is_rebuilt_from_its_archive(tmp_path: Path) -> None:
    section = "Sarcoma: which pairs teach an encoder to find a point of a CT in the PET?"
    study = rebuilt("sarcoma", "sarcoma_matching.csv", section, tmp_path)
    for name in ("intensity_place/error_mm", "intensity/error_mm", "chance_error_mm"):
        known = study.rows.loc["untrained", f"voxel_matching/frame/{name}"]
        assert f"{known:.1f} mm" in study.section.split("\n- ")[0]
    assert max(study.arms[arm]["p"] for arm in ("untrained", "random_contrast")) < 0.001
    assert "both p < 0.001" in study.section
    quoted = study.shown("cross_modality", "+.1f").replace(" [", " mm [")
    assert_quoted(quoted, "strategies/cross_modality.md", "../README.md")
    assert_shows_scores(tmp_path / "evaluate" / "report.html", 2)


def test_the_study_of_hearts_is_rebuilt_from_its_archive(tmp_path: Path) -> None:
    section = "Hearts: which pairs teach an encoder to outline the left ventricle?"
    study = rebuilt("sunnybrook", "sunnybrook_voxels.csv", section, tmp_path)
    controls = (study.rows.loc["untrained", f"voxel_probe/{name}/dice"] for name in CONTROLS)
    place, both, intensity = (f"{value:.3f}" for value in controls)
    without = (
        f"position alone {place} Dice, intensity and position together {both}, intensity alone {intensity}."
    )
    assert without in study.section
    choosing = (DOCS / "concepts" / "choosing.md").read_text(encoding="utf-8")
    for arm in ("adjacent_slices", "same_patient"):
        assert_quoted(study.shown(arm, "+.3f"), "../README.md", f"strategies/{arm}.md")
        assert f"{study.arms[arm]['difference']['mean']:+.3f} Dice to `augmented_views`" in choosing
    recall = study.rows["retrieval/recall@1"]
    assert f"`augmented_views` is {recall['augmented_views']:.3f}" in study.section
    assert f"an untrained encoder {recall['untrained']:.3f}" in study.section
    neighbours = study.rows["voxel_probe/knn/dice"]
    for arm in ("adjacent_slices", "same_patient (placebo)", "same_patient", "augmented_views", "untrained"):
        assert f"{neighbours[arm]:.3f}" in study.section.split("Nearest neighbours")[1]
    dice = by_seed("sunnybrook_voxels.csv", "voxel_probe/dice")
    to_placebo = re.search(r"`same_patient` to it ([^\]]*\])", study.section)
    assert to_placebo is not None
    assert_shows(to_placebo[1], dice.loc["same_patient"] - dice.loc["same_patient (placebo)"])
    assert_shows_scores(tmp_path / "evaluate" / "report.html", 4)


def test_what_features_of_hearts_add_to_the_place(tmp_path: Path) -> None:
    from_archive("sunnybrook_place", tmp_path, "sunnybrook_place.csv")
    report = (tmp_path / "evaluate" / "results.md").read_text(encoding="utf-8")
    section = "Hearts: which pairs teach an encoder to outline the left ventricle?"
    table = cells_of("results/index.md", section, "features and place")
    both = by_seed("sunnybrook_place.csv", "voxel_probe/features_place/dice")
    place = by_seed("sunnybrook_place.csv", "voxel_probe/place/dice").loc["untrained"]
    assert set(table) == set(both.index)
    for arm, (mean, to_views, to_place) in table.items():
        assert f"| {arm} | {mean} |" in report and (not to_views or f"| {arm} | {to_views} |" in report)
        assert_shows(to_place, both.loc[arm] - place)
    page = (DOCS / "results/index.md").read_text(encoding="utf-8")
    alone = re.search(r"The place alone has ([^\]]*\])", page)
    assert alone is not None
    assert_shows(alone[1], place)


def test_the_study_of_the_hippocampus_is_rebuilt_from_its_archive(tmp_path: Path) -> None:
    section = "Hippocampus: which pairs teach an encoder to outline its parts?"
    study = rebuilt("hippocampus", "hippocampus_voxels.csv", section, tmp_path, num_shown=21)
    assert_quoted(study.shown("body_position", "+.3f"), "../README.md", "strategies/body_position.md")
    for arm in ("voxel_correspondence", "voxel_correspondence, global_dense"):
        assert_quoted(study.shown(arm, "+.3f"), "concepts/choosing.md", "strategies/voxel_correspondence.md")
    untrained = study.rows.loc["untrained"]
    place, both, intensity = (f"{untrained[f'voxel_probe/{name}/dice']:.3f}" for name in CONTROLS)
    known = (
        f"position alone {place} Dice, intensity and position together {both}, intensity alone {intensity}."
    )
    assert known in study.section
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert (
        f"position without a network {place}; intensity and position together, without a network, have {both}"
        in (" ".join(readme.split()))
    )
    neighbours = study.section.split("Nearest neighbours")[1].split("\n- ")[0]
    for arm in ("body_position", "augmented_views", "untrained"):
        assert f"{study.rows.loc[arm, 'voxel_probe/knn/dice']:.3f}" in neighbours
    for name in ("place", "intensity_place"):
        assert f"{untrained[f'voxel_probe/{name}/knn/dice']:.3f}" in neighbours
    dice = by_seed("hippocampus_voxels.csv", "voxel_probe/dice")
    controls = {name: by_seed("hippocampus_voxels.csv", f"voxel_probe/{name}/dice") for name in CONTROLS}
    answer = cells_of("results/index.md", "Answers", "question")[
        "Do positives at the same place of other patients help?"
    ][1]
    to_placebo, to_place, to_both = (
        re.search(rf"to {name} ([^\]]*\])", answer)
        for name in ("its placebo", "position alone", "intensity and position")
    )
    for found, other in (
        (to_placebo, dice.loc["body_position (placebo)"]),
        (to_place, controls["place"].loc["untrained"]),
        (to_both, controls["intensity_place"].loc["untrained"]),
    ):
        assert found is not None and found[1] in study.section
        assert_shows(found[1], dice.loc["body_position"] - other)
    to_points = re.search(r"without pairs of other patients: ([^\]]*\])", study.section)
    assert to_points is not None
    assert_shows(to_points[1], dice.loc["body_position"] - dice.loc["voxel_correspondence"])
    assert_shows_scores(tmp_path / "evaluate" / "report.html", 6)


def test_the_maps_of_a_voxel(tmp_path: Path) -> None:
    rows = from_archive("hippocampus_maps", tmp_path).set_index(["arm", "seed"]).sort_index()
    section = "Hippocampus: which feature maps describe a voxel?"
    table = cells_of("results/appendix.md", section, "maps")
    assert set(table) == set(rows.index.get_level_values("arm"))
    text = (DOCS / "results/appendix.md").read_text(encoding="utf-8").split(section)[1]
    for place, measure in enumerate(("voxel_probe/dice", "voxel_probe/knn/dice")):
        values = rows[measure].unstack()
        for arm, cells in table.items():
            assert figures(cells[place]) == pytest.approx(values.loc[arm].tolist(), abs=6e-4)
    intervals = re.findall(r"([+\d.]+ \[[^]]+\]) \((?:linear|1-NN)\)", text)
    report = (tmp_path / "evaluate" / "results.md").read_text(encoding="utf-8")
    assert len(intervals) == 2 and all(f"| encoder and decoder | {one} |" in report for one in intervals)


def test_the_screening_of_the_brain_is_rebuilt_from_its_archives(tmp_path: Path) -> None:
    section = "Brain: which pairs help to label its voxels? The screening"
    probe = [f"voxel_probe/{name}dice" for name in ("", "1/", "4/", "knn/")]
    text = (DOCS / "results/index.md").read_text(encoding="utf-8").split(section)[1]
    for name, first in (("ixi40_screen", "arm"), ("ixi40_search", "searched arm")):
        rows = from_archive(name, tmp_path / name).set_index("arm")
        table = cells_of("results/index.md", section, first)
        assert set(table) == set(rows.index) and len(set(rows["seed"])) == 1
        for arm, cells in table.items():
            measured = rows.loc[arm, [*probe, "label_propagation/near/accuracy"]].tolist()
            assert figures(" ".join(cells)) == pytest.approx(measured, abs=6e-4)
    untrained = (
        pd.read_csv(tmp_path / "ixi40_screen" / "evaluate" / "results.csv").set_index("arm").loc["untrained"]
    )
    alone, both = (untrained[f"voxel_probe/{source}/dice"] for source in ("place", "intensity_place"))
    assert f"position alone has a Dice of {alone:.3f}, intensity and position together {both:.3f}" in text


def script(name: str) -> ModuleType:
    """A script of docs/results as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "results" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclass looks its module up
    spec.loader.exec_module(module)
    return module


def test_the_purity_of_pairs_and_its_correlation_with_the_endpoint() -> None:
    purity = script("purity")
    rows = pd.read_csv(purity.FILE)
    page = (DOCS / "results/index.md").read_text(encoding="utf-8")
    for comparison in purity.COMPARISONS:
        values = purity.endpoint(comparison)
        for row in rows[rows["comparison"] == comparison.name].itertuples():
            assert row.endpoint == pytest.approx(values[row.arm], rel=1e-3)
            known = f"{row.purity:.3f} [{row.low:.3f}, {row.high:.3f}] | {row.false_negatives:.3f} |"
            assert f"| {comparison.name} | {row.arm} | {known}" in page
    for measure in purity.MEASURES:
        cells = [
            f"{one.mean:+.2f} [{one.low:+.2f}, {one.high:+.2f}]"
            for one in purity.correlations(rows, measure).values()
        ]
        assert f"| {measure} | {' | '.join(cells)} |".replace("-", "\N{MINUS SIGN}") in page


def test_the_answers_have_the_numbers_of_the_figure() -> None:
    """Every difference to a network without pretraining that the answers quote."""
    figure = script("figure")
    answers = " ".join(
        row for cells in cells_of("results/index.md", "Answers", "question").values() for row in cells
    )
    brain, *others = figure.PANELS
    assert len(others) == 7 and figure.as_text(brain, figure.differences(brain)["augmented_views"]) in answers
    for panel in others:
        assert figure.as_text(panel, figure.best(panel)) in answers, panel.title
    matching = next(panel for panel in others if panel.sign < 0)
    to_untrained = figure.as_text(matching, figure.differences(matching)["random_contrast"])
    assert to_untrained.replace(" [", " mm [") in (DOCS / "results/index.md").read_text(encoding="utf-8")
    page = (DOCS / "results/index.md").read_text(encoding="utf-8")
    for panel in figure.PANELS:  # arms of an earlier relation are marked in the tables too
        assert all(f"| {arm} \N{DAGGER} |" in page for arm in panel.earlier)
