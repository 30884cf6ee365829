"""From a configuration to a report, with fake runs of known results."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from skimage.io import imsave

from medcl3d.comparison.analysis.results import contrasts
from medcl3d.comparison.compare import compare
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.comparison.plan.runs import plan
from medcl3d.comparison.report.report import case_means
from medcl3d.comparison.run.finished_runs import is_done
from medcl3d.comparison.run.signals import stopped_by_signals
from medcl3d.config.loading import load
from medcl3d.core.errors import ConfigError, DataError, Stopped, UserError


class Page(HTMLParser):
    """Images, links and visible text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs))
        self.sources += [value or "" for name, value in attrs if name in ("src", "srcset", "href")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Folder in which the first test leaves its runs for the other tests."""
    return tmp_path_factory.mktemp("finished") / "runs"


@pytest.fixture
def compared(comparison, finished) -> Path:
    """A finished comparison of two replicates in ./runs."""
    path = comparison()
    if not finished.exists():
        compare(path, ["jobs=2"])
        shutil.copytree("runs", finished)
    shutil.copytree(finished, "runs", dirs_exist_ok=True)
    return path


def test_results_have_one_row_per_fine_tuning(compared):
    table = pd.read_csv("runs/results.csv")
    assert len(table) == 2 * 2 * 3
    assert {"arm", "num_labelled", "seed", "dice", "hd95_mm", "num_cases"} <= set(table)
    one = table.query("arm == 'dense, all' and num_labelled == 8 and seed == 1")
    offset = 0.001 * ((1 * 7 + len("runs/pretrain/dense/seed_1")) % 5)
    assert one["dice"].item() == pytest.approx(0.5 + 0.08 + 0.1 + 0.02 + offset)
    assert one["num_cases"].item() == 9


def test_the_report_opens_offline_and_has_the_results(compared):
    text = Path("runs/report.html").read_text()
    page = Page(text)
    assert page.sources
    assert all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(
        r"<script\s|<link|@import|url\(|https?://(?!www\.w3\.org)",
        re.sub(r"base64,[^\"]*", "", text).replace("http-equiv", ""),
    )
    assert all(image["alt"] for image in page.images)
    assert "prefers-color-scheme" in text
    assert 'name="viewport"' in text
    for words in (
        "“dense, all” has the best mean dice",
        "No test",
        "2 of 2 replicates",
        "9 test cases",
        "medcl3d compare",
        "Seeds 0, 1",
    ):
        assert words in page.text, words
    for words in (
        "2 replicates x 9 test patients",
        "2 replicates and 5 cases, 94 to 100% of the 95% intervals covered",
        "All pairs of arms",
        "Labels that “scratch” would need",
        "MiB",
    ):
        assert words in page.text, words
    for name in ("curve", "differences", "losses_pretraining"):
        assert Path(f"runs/figures/{name}.svg").read_text().lstrip().startswith("<?xml")


def test_the_report_is_the_same_twice(compared):
    first = Path("runs/report.html").read_text()
    compare(compared, ["jobs=2"])
    assert Path("runs/report.html").read_text() == first


def test_an_arm_without_runs_is_named_and_the_others_are_compared(comparison):
    Path("views.yaml").write_text(
        "{pairs: {augmented_views: {}}, objective: {simclr: {}}, train: {steps: 5}, out_dir: x}"
    )
    compare(comparison(replicates=1))
    arms = {
        "scratch": {},
        "simclr": {"pretraining": "simclr", "set": {"gain": 0.05}},
        "views": {"pretraining": "views"},
    }
    pretrainings = {"simclr": {"config": "simclr.yaml"}, "views": {"config": "views.yaml"}}
    path = comparison(out_dir="again", pretrainings=pretrainings, arms=arms, replicates=1)
    page = Page(compare(path, from_runs=[Path("runs")]).read_text())
    assert "1 of 1 replicates complete in all 2 arms" in page.text
    assert re.search(
        r"views left out of the comparison; 0 complete replicates\s*not found: no folder of --from holds it",
        page.text,
    )
    found = json.loads(Path("again/conclusion.json").read_text())
    assert [one["name"] for one in found["arms"]] == ["scratch", "simclr"]
    assert [(one["name"], one["complete"], one["compared"]) for one in found["incomplete"]] == [
        ("views", 0, False)
    ]


def test_pictures_are_shown_and_names_are_escaped(comparison, tmp_path):
    path = comparison(arms={"scratch": {}, "<script>alert(1)</script>": {"pretraining": "dense"}})
    compare(path, ["replicates=1"])
    for folder, name in (
        ("runs/pretrain/dense/seed_0", "pairs.png"),
        ("runs/finetune/scratch/num_labelled=8/seed_0", "cases.png"),
    ):
        (Path(folder) / "pictures").mkdir()
        imsave(Path(folder) / "pictures" / name, np.zeros((4, 4, 3), np.uint8), check_contrast=False)
    compare(path, ["replicates=1"])
    text = Path("runs/report.html").read_text()
    assert text.count("data:image/png") == 2
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text


def test_failed_runs_end_with_an_error_after_the_report(comparison):
    arms = {"scratch": {}, "bad": {"set": {"fail_at_seed": 1}}}
    with pytest.raises(
        UserError, match=r"2 of 8 runs failed; runs/report.html has what is complete\. Fix the cause"
    ) as error:
        compare(comparison(arms=arms))
    assert error.value.exit_code != 0
    page = Page(Path("runs/report.html").read_text())
    assert "1 of 2 replicates complete" in page.text
    assert "2 replicates were planned; 1 is not complete" in page.text
    assert "Incomplete runs: 2 failed." in page.text
    assert page.text.count("the scan <b>17</b> is broken; mend it") == 3, "per arm, and of both runs"
    assert "finetune bad, num_labelled=8, replicate 1" in page.text


def test_from_lists_missing_measurements(compared, tmp_path):
    shutil.move("runs", tmp_path / "other")
    shutil.rmtree("other/finetune/simclr/num_labelled=2/seed_1")
    shutil.rmtree("other/pretrain")
    text = Page(compare(compared, from_runs=[Path("other")]).read_text()).text
    assert "Incomplete runs: 1 not found." in text and "finetune simclr, num_labelled=2, replicate 1" in text
    assert "the command above would run them again" in text


def test_validation_patients_are_not_called_test_patients(comparison):
    path = comparison(arms={"scratch": {}, "other": {"set": {"gain": 0.1}}}, stage="screen")
    text = Page(compare(path, ["finetune.set={measured_on: validation}"]).read_text()).text
    for words in (
        "9 validation cases",
        "2 replicates x 9 validation patients",
        "Best and worst validation cases",
        "validation scan",
    ):
        assert words in text, words
    assert not re.search(r"\d+ test (patients|cases)|test scan", text)


def test_all_commits_are_named_with_their_runs(compared):
    edit("runs/pretrain/dense/seed_1/provenance.json", commit="cafe")
    page = Page(compare(compared).read_text())
    assert re.search(r"f00\s+\(15 runs\)cafe\s+\(1 run\)", page.text)


def test_without_a_complete_replicate_the_report_has_the_reasons(comparison):
    arms = {"scratch": {"set": {"fail_at_seed": 0}}, "good": {}}
    with pytest.raises(UserError, match=r"2 of 4 runs failed; runs/report.html: nothing can be compared"):
        compare(comparison(arms=arms), ["replicates=1"])
    text = Page(Path("runs/report.html").read_text()).text
    for words in (
        "No conclusion: complete replicates exist of “good” only, and a comparison needs one of",
        "failed: the scan <b>17</b> is broken; mend it (replicate 0)",
        "finetune scratch, num_labelled=8, replicate 0",
    ):
        assert words in text, words
    assert len(pd.read_csv("runs/results.csv")) == 2
    assert json.loads(Path("runs/conclusion.json").read_text())["arms"] == []


def test_a_stopped_comparison_reports_what_is_complete(comparison, monkeypatch):
    def stopped(*_):
        raise Stopped("stopped after 0 of 16 runs; the same command resumes")

    monkeypatch.setattr("medcl3d.comparison.compare.execute", stopped)
    with pytest.raises(Stopped, match=r"the same command resumes; runs/report.html: nothing can be compared"):
        compare(comparison())
    assert "not started: the same command runs it" in Page(Path("runs/report.html").read_text()).text


def test_check_runs_nothing(comparison, capsys):
    assert compare(comparison(), check=True) == Path("runs/report.html")
    assert not Path("runs").exists()
    said = capsys.readouterr().out
    assert "pretrain: 4 runs of “dense”, “simclr”; 0 done, 4 to do with 20 steps" in said
    assert "finetune: 12 runs" in said


def test_from_reports_moved_runs(compared, tmp_path):
    shutil.move("runs", tmp_path / "other")
    for roots in (
        ["other"],
        ["other/finetune"],
        [f"other/finetune/{arm}" for arm in ("scratch", "dense_all", "simclr")],
    ):
        report = compare(compared, ["jobs=2"], from_runs=[Path(root) for root in roots])
        assert "2 of 2 replicates" in report.read_text()
        shutil.rmtree("runs")
    shutil.copytree("other", "copy")
    with pytest.raises(DataError, match="hold the same run"):
        compare(compared, from_runs=[Path("other"), Path("copy")])
    with pytest.raises(DataError, match="no run of this comparison"):
        compare(compared, from_runs=[Path("nowhere")])


def test_from_refuses_runs_of_another_arm(compared, tmp_path):
    """Also if the pretrainings, which are large, were not copied."""
    path = Path("compare.yaml")
    content = yaml.safe_load(path.read_text())
    content["arms"] = {"scratch": {}, "dense": {"pretraining": "dense"}, "simclr": {"pretraining": "simclr"}}
    path.write_text(yaml.safe_dump(content))
    shutil.rmtree("runs")
    compare(path, ["replicates=1"])
    shutil.copytree("runs/finetune", "swap/finetune")
    assert "1 of 1 replicates" in compare(path, ["replicates=1"], from_runs=[Path("swap")]).read_text()
    shutil.rmtree("swap/finetune/simclr")
    shutil.copytree("runs/finetune/dense", "swap/finetune/simclr")
    with pytest.raises(
        ConfigError,
        match=r"swap/finetune/simclr.*holds another run: init: .*pretrain/dense/seed_0' -> .*simclr/seed_0'",
    ):
        compare(path, ["replicates=1"], from_runs=[Path("swap")])


def edit(path: str, **fields) -> None:
    file = Path(path)
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_runs_on_other_patients_are_not_compared(compared):
    edit("runs/finetune/simclr/num_labelled=2/seed_0/results.json", split={"labelled": ["p9"], "test": []})
    with pytest.raises(DataError, match="other labelled or test patients in one replicate"):
        compare(compared)


def test_runs_on_other_data_are_not_compared(compared):
    edit("runs/pretrain/dense/seed_1/provenance.json", data="changed")
    with pytest.raises(DataError, match="read different data"):
        compare(compared)


def test_other_differences_of_arms_are_noted(compared):
    text = Path("runs/report.html").read_text()
    assert (
        "Besides pairs, objective and placebo, the arms&#39; runs differ in gain, transfer, which may "
        "explain differences." in text
    )
    compare(compared, ["arms={scratch: {}, dense: {pretraining: dense}}", "out_dir=plain", "replicates=1"])
    assert "may explain differences" not in Path("plain/report.html").read_text()


def test_other_versions_are_noted(compared):
    edit("runs/pretrain/dense/seed_1/provenance.json", versions={"torch": "3"})
    compare(compared)
    assert "2 different package versions" in Path("runs/report.html").read_text()


def test_a_missing_metric_is_answered_with_known_ones(compared):
    with pytest.raises(
        DataError, match=r"has no number for 'auroc', .*set `metric` to one of: dice, hd95_mm"
    ):
        compare(compared, ["metric=auroc"])


def test_the_direction_of_a_known_metric_is_optional_and_validated(compared):
    compare(compared, ["metric=hd95_mm"])
    assert "hd95_mm (lower is better)" in Path("runs/report.html").read_text()
    with pytest.raises(ConfigError, match=r"compare.yaml: better: higher values of hd95_mm are worse"):
        compare(compared, ["metric=hd95_mm", "better=higher"])
    with pytest.raises(
        ConfigError,
        match=r"better: the direction of 'smoothness' is not known; set `better: higher` or `better: lower`",
    ):
        compare(compared, ["metric=smoothness"])


def test_transfer_is_not_part_of_a_run_from_scratch(compared):
    runs = plan(load(compared, ["finetune.set={transfer: all}"], CompareConfig))
    assert all(is_done(run) for run in runs if run.name == "scratch")
    with pytest.raises(ConfigError, match=r"holds another run: transfer: 'encoder' -> 'all'"):
        is_done(next(run for run in runs if run.name == "simclr" and run.measures))


def test_case_means_and_contrasts(compared):
    runs = plan(load(compared, [], CompareConfig))
    means = case_means(runs, "dice")
    table = pd.read_csv("runs/results.csv").groupby("arm")["dice"].mean()
    assert len(means) == 9
    assert means["scan4"]["simclr"] == pytest.approx(table["simclr"] + 0.04)
    found = {row["what"]: row["differences"] for row in contrasts(runs)}
    assert any(one.within(["pairs.voxel_correspondence"]) for one in found["pretrain simclr"])
    assert {one.field for one in found["finetune dense, all"]} == {"init", "transfer", "gain"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_report_with_a_message(compared, monkeypatch, number):
    before = signal.getsignal(number)

    def interrupted(*_):
        os.kill(os.getpid(), number)

    monkeypatch.setattr("medcl3d.comparison.compare.write_report", interrupted)
    with pytest.raises(Stopped, match=f"stopped by {number.name}; the same command resumes"):
        compare(compared)
    assert signal.getsignal(number) is before


def test_a_closed_terminal_is_ignored_under_nohup():
    """`nohup` starts a command with SIGHUP ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
