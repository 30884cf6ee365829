"""Benchmarks run on simulated data, compare equal work, and write their tables."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import BENCHMARKS, benchmark
from benchmarks.check import slower, slower_twice
from benchmarks.chunks import grad_cache
from benchmarks.collection import STAGES, collection
from benchmarks.finished import Finished
from benchmarks.goals import Goal, goals, goals_of
from benchmarks.inference import inference
from benchmarks.loss_peers import LEAST, loss_peers
from benchmarks.losses import LIGHTLY, OURS, PLAIN, losses
from benchmarks.measure import Bench, Scale, Table, geometric, take_turns
from benchmarks.memory import LEAST as NETWORK
from benchmarks.memory import OURS as PRETRAIN
from benchmarks.memory import memory
from benchmarks.page import update
from benchmarks.pairs import pairs
from benchmarks.peers import batchgenerators_transform, monai_transforms
from benchmarks.pipeline import cached_pages, drop_from_cache, pipeline
from benchmarks.plain_loop import ALONE, PARTS, plain_loop
from benchmarks.prepare import UNCHANGED, prepare
from benchmarks.startup import startup
from benchmarks.stores import stores
from benchmarks.views import torchio_transform, views
from medcl3d.core.errors import ConfigError
from medcl3d.pairs import PAIRS

SMALL = Scale(
    num_patients=3,
    shape=(36, 36, 36),
    large=64,
    repeats=2,
    crops=32,
    steps=6,
    samples_per_step=4,
    depth=10,
    embeddings=(2048,),
    few_embeddings=(64, 128),
    loss_turns=2,
    starts=2,
    prepared=2,
    collections=(80, 320),
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), SMALL)


def test_every_strategy_has_a_row_with_a_rate_or_a_reason(bench: Bench) -> None:
    table = pairs(bench)
    assert [row[0] for row in table.rows] == PAIRS.names()
    assert all(len(row) == len(table.columns) for row in table.rows)
    rates = {row[0]: row[3] for row in table.rows}
    assert float(rates["augmented_views"].split()[0]) > 10


def test_both_file_formats_have_a_size_and_a_rate(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("blosc2")
    rows = {row[0]: row[1:] for row in stores(bench).rows}
    assert set(rows) == {"MB on disk", "crops of 32 x 32 x 32 per second"}
    on_disk = (
        sum(path.stat().st_size for path in (bench.folder / "compressed" / "store").glob("*.b2nd")) / 1e6
    )
    assert rows["MB on disk"][1] == f"{on_disk:.1f}" and float(rows["MB on disk"][2]) < 0.9
    npy, blosc2, ratio = (float(cell.split()[0]) for cell in rows["crops of 32 x 32 x 32 per second"])
    assert ratio == pytest.approx(blosc2 / npy, rel=0.05)
    monkeypatch.setitem(sys.modules, "blosc2", None)
    assert "pip install 'medcl3d[blosc2]'" in stores(bench).note


def test_views_are_faster_than_torchio_for_each_crop(bench: Bench) -> None:
    table = views(bench)
    assert [row[0] for row in table.rows] == [
        "medcl3d",
        "TorchIO, each crop transformed",
        "TorchIO, each volume transformed",
    ]
    assert float(table.rows[1][2].split()[0]) > 1.5


def test_torchio_has_the_probabilities_of_the_recipe() -> None:
    from medcl3d.config.field_types import Choice
    from medcl3d.views import VIEWS

    recipe = VIEWS.build(Choice("mri"))
    probabilities = {
        type(transform).__name__: transform.probability for transform in torchio_transform().transforms
    }
    assert probabilities["RandomAffine"] == recipe.spatial.affine_probability
    assert probabilities["RandomGamma"] == recipe.intensity.gamma_probability
    assert probabilities["RandomNoise"] == recipe.intensity.noise_probability


def test_peers_have_the_probabilities_and_ranges_of_the_recipe() -> None:
    from medcl3d.config.field_types import Choice
    from medcl3d.views import VIEWS

    recipe = VIEWS.build(Choice("mri"))
    space, grey = recipe.spatial, recipe.intensity
    expected = {
        "affine": space.affine_probability,
        "blur": grey.blur_probability,
        "low": grey.low_resolution_probability,
        "noise": grey.noise_probability,
        "gamma": grey.gamma_probability,
    }
    monai = monai_transforms()
    assert [t.prob for t in monai] == [*space.flip_probability, *expected.values()]
    low, high = monai[3].rand_affine_grid.scale_range[0]
    assert (low + 1, high + 1) == space.scale and monai[5].zoom_range == grey.low_resolution
    assert monai[4].sigma_x == grey.blur_sigma and monai[7].gamma == grey.gamma
    pytest.importorskip("batchgeneratorsv2")
    mirror, *others = batchgenerators_transform((8, 8, 8)).transforms
    assert space.flip_probability == (0.5,) * 3 and mirror.allowed_axes == (0, 1, 2)  # it flips half of all
    assert [t.apply_probability for t in others] == list(expected.values())
    assert others[0].transform.scaling == space.scale and others[4].transform.gamma == grey.gamma


def test_losses_are_compared_with_each_library_that_is_installed(bench: Bench) -> None:
    rows = loss_peers(bench).rows
    assert {row[0] for row in rows} == {"64", "128"}
    assert {row[1] for row in rows} >= {"augmented_views", "overlapping_crops", PLAIN, LIGHTLY, LEAST}
    assert all(row[3] == "1" or float(row[3].split()[0]) > 0 for row in rows)


@pytest.mark.slow
def test_every_pipeline_has_a_rate_for_two_sizes_of_crops(bench: Bench) -> None:
    for table, monai in zip(pipeline(bench), ("CacheDataset", "PersistentDataset"), strict=True):
        rows = table.rows
        assert len({row[0] for row in rows}) == 1  # both are half of a volume of 64 voxels
        assert {row[1] for row in rows} >= {"medcl3d", "TorchIO Queue", f"MONAI {monai}"}
        assert all(float(row[2].split()[0]) > 0 for row in rows if row[2] != "-")


def test_files_are_dropped_from_the_cache_unless_a_process_keeps_them_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "volume.npy"
    np.save(path, np.arange(1 << 20))
    try:
        drop_from_cache([path])
    except RuntimeError:
        pytest.skip("temporary files are in memory")
    assert cached_pages(path) < 0.05
    volume = np.load(path, mmap_mode="r")
    assert volume.sum() > 0 and cached_pages(path) > 0.99
    with pytest.raises(RuntimeError, match=r"volume\.npy.*still in memory"):
        drop_from_cache([path])
    del volume
    drop_from_cache([path])


@pytest.mark.slow
def test_a_whole_step_is_compared_with_a_plain_loop(bench: Bench) -> None:
    rows = plain_loop(bench).rows
    assert [row[1] for row in rows] == ["medcl3d", "plain loop", ALONE, PARTS] * 2
    assert all(float(row[2].split()[0]) > 1 for row in rows)


@pytest.mark.slow
def test_a_run_takes_little_more_memory_than_its_network_and_batch(bench: Bench) -> None:
    rows = memory(bench).rows
    assert [row[1] for row in rows] == [PRETRAIN, NETWORK] * 2
    assert all(0.8 < float(row[3].split()[0]) < 1.3 for row in rows[::2])


@pytest.mark.slow
def test_preparation_is_compared_on_real_scans(bench: Bench, shared_data: Path) -> None:
    rows = prepare(bench).rows
    assert [row[1] for row in rows] == ["medcl3d prepare", UNCHANGED, "nibabel and MONAI", "TorchIO"] * 2
    assert all(float(row[2].split()[0]) > 1 for row in rows)


def test_without_real_scans_preparation_is_not_measured(tmp_path: Path) -> None:
    rows = prepare(Bench(tmp_path, Scale(scans=tmp_path / "nothing"))).rows
    assert len(rows) == 1 and "not measured" in rows[0][3]


@pytest.mark.slow
def test_sliding_windows_are_compared_with_those_of_monai(bench: Bench) -> None:
    for table in inference(bench):
        assert [row[0] for row in table.rows] == ["36 x 36 x 36"] * 3 + ["72 x 36 x 18"] * 3
        assert all(row[3] == "1" or 0.2 < float(row[3].split()[0]) < 2 for row in table.rows)


@pytest.mark.slow
def test_the_first_step_of_a_command_is_compared_with_a_script(bench: Bench) -> None:
    rows = startup(bench).rows
    assert len(rows) == 3 and all(float(row[1].split()[0]) > 0.5 for row in rows)


def table_of(ratio: str) -> dict[str, object]:
    columns = ("crop", "pipeline", "crops per second", "speed-up of medcl3d")
    rows = [
        ["32", "medcl3d", "900 (800 to 1000)", "1"],
        ["32", "peer", "5 (4 to 6)", ratio],
        ["32", "x", "-", "-"],
    ]
    return {"title": "Crops", "columns": columns, "rows": rows}


@pytest.mark.parametrize(
    ("now", "is_slower"),
    [
        ("3.00 (2.90 to 3.10)", True),
        ("3.00 (1.00 to 4.50)", False),  # its interval reaches the earlier one
        ("3.80 (3.70 to 3.85)", False),  # less than a tenth lower
        ("9.00 (8.90 to 9.10)", False),
        ("-", False),
    ],
)
def test_a_ratio_is_slower_if_interval_and_mean_are_lower(now: str, is_slower: bool) -> None:
    found = slower(table_of("4.00 (3.90 to 4.10)"), table_of(now))
    assert found == ({"Crops: 32, peer": "3 (2.9 to 3.1), before 4 (3.9 to 4.1)"} if is_slower else {})


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        ([{}], []),
        ([{"a": "1", "b": "2"}, {"b": "3", "c": "4"}], ["b: 2, and 3"]),
        ([{"a": "1"}, {}], []),
    ],
)
def test_only_what_is_slower_twice_counts(found: list[dict[str, str]], lines: list[str]) -> None:
    runs = iter(found)
    assert slower_twice(lambda: next(runs)) == lines
    assert next(runs, None) is None, "measured again only if something was slower"


def test_functions_are_measured_in_turns_after_a_warm_up_call() -> None:
    calls: list[str] = []
    seconds = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert "".join(calls) == "ab" * 4 and seconds["a"].shape == (3,)
    assert geometric(np.array([2.0, 8.0]), ".1f").startswith("4.0 (")


def test_after_its_seconds_a_measurement_has_three_turns() -> None:
    calls: list[int] = []
    seconds = take_turns({"a": lambda: calls.append(len(calls))}, 7, limit_s=0.0)
    assert len(calls) == 4 and seconds["a"].shape == (3,)


def test_a_stopped_command_resumes_after_its_finished_benchmarks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def measured(name: str) -> Table:
        begun.append(name)
        if name == "views" and len(begun) == 2:
            raise KeyboardInterrupt
        return Table(name, ("a",), (("1",),), "A note.")

    for name in ("pairs", "views"):
        monkeypatch.setitem(BENCHMARKS, name, lambda bench, name=name: measured(name))
    out = tmp_path / "figures.json"
    with pytest.raises(KeyboardInterrupt):
        benchmark(["pairs", "views"], out, SMALL)
    assert [one["title"] for one in json.loads(out.read_text())["tables"]] == ["pairs"]
    assert [table.title for table in benchmark(["pairs", "views"], out, SMALL)] == ["views"]
    assert begun == ["pairs", "views", "views"] and [path.name for path in tmp_path.iterdir()] == [out.name]
    assert len(benchmark(["pairs", "views"], out, SMALL)) == 2


def test_finished_benchmarks_of_another_command_or_commit_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "figures.md"
    Finished(out, ["pairs", "views"]).add("pairs")
    assert Finished(out, ["pairs", "views"]).names == ["pairs"]
    assert not Finished(out, ["pairs", "losses"]).names
    monkeypatch.setattr("benchmarks.finished.checkout", lambda: {"commit": "another"})
    assert not Finished(out, ["pairs", "views"]).names


@pytest.mark.slow
def test_a_step_is_measured_and_written(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    (table,) = benchmark(["step"], out, SMALL)
    assert [row[0] for row in table.rows] == ["0", "1"] and all(row[2].endswith("%") for row in table.rows)
    written = json.loads(out.read_text())
    assert (
        written["tables"][0]["rows"] == [list(row) for row in table.rows]
        and "cores" in written["tables"][0]["machine"]
    )


@pytest.mark.slow
def test_the_loss_needs_less_memory_than_the_matrix_of_all_pairs(bench: Bench) -> None:
    rows = {row[1]: row for row in losses(bench).rows}
    assert set(rows) == {*OURS, PLAIN, LIGHTLY}
    assert float(rows["augmented_views"][3]) < 0.5 * float(rows[PLAIN][3])
    assert float(rows[PLAIN][4].split()[0]) == 1


@pytest.mark.slow
def test_chunks_need_less_memory_than_the_batch(bench: Bench) -> None:
    rows = grad_cache(bench).rows
    assert rows[0][0] == "all at once" and float(rows[-1][3]) < float(rows[0][3])


@pytest.mark.slow
def test_a_collection_is_measured_from_index_to_plan(bench: Bench) -> None:
    table = collection(bench)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [(row["scans"], row["stage"]) for row in rows] == [
        (str(num), stage) for num in (80, 320) for stage in STAGES
    ]
    assert all(float(row["seconds"]) >= 0 and float(row["peak MB"]) > 50 for row in rows)
    workers = {row["stage"] for row in rows if row["peak MB of a worker"] != "-"}
    assert workers <= {"check", "prepare", "prepare again"}, "no other stage has workers"


@pytest.mark.parametrize("kind", ["md", "json"])
def test_only_sections_of_measured_benchmarks_are_replaced(tmp_path: Path, kind: str) -> None:
    out = tmp_path / f"figures.{kind}"
    first, second = (Table(title, ("a", "b"), (("1", "2"),), "A note.") for title in ("First", "Second"))
    update(out, [first, second], "4 cores")
    update(out, [Table("First", ("a", "b"), (("3", "4"),), "Another note.")], "8 cores")
    found = out.read_text()
    if kind == "md":
        new = "## First\n\n| a | b |\n| --- | --- |\n| 3 | 4 |\n\nAnother note.\n\nEnvironment: 8 cores.\n"
        old = "## Second\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\nA note.\n\nEnvironment: 4 cores.\n"
        assert found.startswith("# Performance\n") and found.endswith(f"\n\n{new}\n{old}")
    else:
        tables = json.loads(found)["tables"]
        assert [(t["title"], t["rows"], t["machine"]) for t in tables] == [
            ("First", [["3", "4"]], "8 cores"),
            ("Second", [["1", "2"]], "4 cores"),
        ]


@pytest.mark.parametrize(
    ("names", "out", "message"),
    [
        (
            ["vews"],
            None,
            "stores, pairs, views, pipeline, losses, loss_peers, grad_cache, step, plain_loop, startup",
        ),
        ([], Path("figures.txt"), r"\.md"),
    ],
)
def test_a_wrong_name_or_file_is_refused_before_anything_runs(
    names: list[str], out: Path | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        benchmark(names, out)


def test_goals_are_compared_with_the_committed_figures() -> None:
    """The page has one line per goal, and the section of goals is that of the file of numbers."""
    page = Path(__file__).parents[1] / "docs" / "results" / "performance.md"
    table = goals_of(page.with_suffix(".json"))
    assert len(table.rows) == len(list(goals())) > 30
    text = page.read_text().split("\n## ")[1]
    assert text.startswith(table.title) and all(f"| {' | '.join(row)} |" in text for row in table.rows)


@pytest.mark.parametrize(
    ("cell", "most", "result"),
    [
        ("2.1 (1.9 to 2.3)", False, "met"),
        ("1.9 (1.7 to 2.1)", False, "not distinguishable"),
        ("1.7 (1.5 to 1.9)", False, "missed"),
        ("2.1 (1.9 to 2.3)", True, "not distinguishable"),
        ("2.3 (2.1 to 2.5)", True, "missed"),
        ("1.9 (1.7 to 2.1)", True, "met"),
    ],
)
def test_a_goal_is_met_missed_or_not_distinguishable(cell: str, most: bool, result: str) -> None:
    goal = Goal("work", "figure", "table", ("a", "b"), 2, most, ((("a", "least"), "least"),))
    line = goal.line([("a", "least", "0.5 (0.4 to 0.6)"), ("a", "b", cell)])
    assert line is not None and line[4] == result
    assert line[5] == f"{float(cell.split()[0]) / 0.5:.2g}: least"
    assert goal.line([("a", "other", cell)]) is None
    assert goal.line([("a", "b", "not installed")]) is None
