"""`medcl3d view`: what the page contains, and what a browser makes of it."""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from medcl3d.cli import app
from medcl3d.config.loading import load
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.downstream.predict.predictor import load_run
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.parts import assemble
from medcl3d.store.splits import Split
from medcl3d.store.store import Store
from medcl3d.viewer.chosen_scans import choose_scans
from medcl3d.viewer.drawn_views import drawn_on, first_scans
from medcl3d.viewer.features import Described, coarser, overlays, principal_axes
from medcl3d.viewer.scan_grid import ShownGrid
from medcl3d.viewer.view import view

FROZEN = Path(__file__).parents[1] / "frozen" / "v0_1"
CHROMIUM = Path("/usr/bin/chromium")
ROOT = Path(__file__).parents[2]
STORE = f"data.root={FROZEN / 'store'}"


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison with a finished pretraining and fine-tuning of the arm `crops`, and an incomplete one."""
    out = tmp_path_factory.mktemp("comparison")
    shutil.copytree(FROZEN / "pretrain", out / "pretrain" / "crops" / "seed_0")
    shutil.copytree(FROZEN / "finetune", out / "finetune" / "crops" / "all" / "seed_0")
    (out / "pretrain" / "stopped" / "seed_0").mkdir(parents=True)
    path = out / "finetune" / "crops" / "all" / "seed_0" / "model.safetensors"
    weights, rng = (
        load_file(path),
        torch.Generator().manual_seed(0),
    )  # the frozen ones predict background only
    # The frozen weights predict background only.
    weights["head.weight"] = torch.randn(weights["head.weight"].shape, generator=rng)
    save_file(weights, path)
    return out


@pytest.fixture(scope="module")
def page(comparison: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return view(comparison, tmp_path_factory.mktemp("page") / "page.html", [STORE], say=lambda _: None)


def content(page: Path) -> dict[str, Any]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page.read_text(), re.S)
    assert found
    return json.loads(html.unescape(found[1]))


def unpacked(part: dict[str, Any], *shape: int) -> np.ndarray:
    values = np.frombuffer(gzip.decompress(base64.b64decode(part["data"])), f"<{part['type']}")
    return values.reshape(shape)


def test_the_page_has_the_voxels_and_labels_of_the_store(page: Path) -> None:
    store, data = Store.open(FROZEN / "store"), content(page)
    names = list(store.collection.table["scan"])
    assert len(data["scans"]) == 4 and {scan["side"] for scan in data["scans"]} == {"train", "test"}
    for scan in data["scans"]:
        row = names.index(scan["name"])
        whole, (low, high) = store.read_volume(row)[0], scan["range"]
        found = low + unpacked(scan["voxels"], *scan["shape"]) / 255 * (high - low)
        assert (low, high) == (whole.min(), whole.max())
        np.testing.assert_allclose(found, whole, atol=(high - low) / 509)
        np.testing.assert_array_equal(unpacked(scan["label"], *scan["shape"]), store.read_label(row))
        np.testing.assert_allclose(scan["toWorld"], store.collection.affines[row])


def test_the_page_has_views_features_and_predictions_of_an_arm(page: Path, comparison: Path) -> None:
    store, data = Store.open(FROZEN / "store"), content(page)
    (arm,) = data["arms"]
    assert arm["name"] == "crops"  # the other arm has no finished run
    train = [number for number, scan in enumerate(data["scans"]) if scan["side"] == "train"]
    assert {one["scan"] for one in arm["views"]} <= set(train) and arm["samples"][0] == 1
    for one in arm["views"]:
        np.testing.assert_allclose(np.subtract(one["high"], one["low"]), 8)  # data.patch_size
    predictor = load_run(comparison / "finetune" / "crops" / "all" / "seed_0")
    values = np.array([0, *predictor.classes])
    for number, scan in enumerate(data["scans"]):
        row = list(store.collection.table["scan"]).index(scan["name"])
        predicted = unpacked(arm["predictions"][number], *scan["shape"])
        where = (predictor.model, store, row, predictor.patch_size, torch.device("cpu"), None)
        np.testing.assert_array_equal(predicted, values[predictor.task.segment(*where)])
        assert len(np.unique(predicted)) > 1
        colours = unpacked(arm["colours"][number], *arm["colours"][number]["shape"], 3)
        assert colours.any() and arm["matches"][number][number] is None


def test_the_page_names_a_run_of_another_store(page: Path, tiny_store: Path, comparison: Path) -> None:
    run, out = comparison / "pretrain" / "crops" / "seed_0", page.with_name("other.html")
    view(run, out, [f"data.root={tiny_store}"], num_scans=1, say=lambda _: None)
    assert "trained on another store" in content(out)["arms"][0]["facts"][0]
    assert not any("another store" in fact for fact in content(page)["arms"][0]["facts"])


def test_the_page_loads_nothing(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"https?://|\bsrc=|<link|@import|\beval\(|new Function", text)
    assert "default-src 'none'" in text


PROBE = """
<script>
addEventListener("load", async () => {
  const frame = () => new Promise((done) => setTimeout(done, 50));
  while (!document.body.dataset.ready) await frame();
  await frame();
  const pixels = (one) => one.getContext("2d").getImageData(0, 0, one.width, one.height).data;
  const sum = (one) => pixels(one).reduce((a, b) => a + b, 0);
  const sums = () => [...document.querySelectorAll("canvas")].map(sum);
  const read = () => scans.map((one) => one.read.textContent);
  const seen = () => ({ sums: sums(), at: scans.map((one) => one.at), read: read() });
  const before = seen();
  const { plane, canvas } = scans[0].planes[0], box = canvas.getBoundingClientRect();
  const place = { clientX: box.left + 0.3 * box.width, clientY: box.top + 0.2 * box.height, bubbles: true };
  canvas.dispatchEvent(new PointerEvent("pointerdown", place));
  await frame();
  const clicked = seen();
  canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: -1, cancelable: true }));
  const wheel = scans[0].at;
  state.link = "body"; move(0, clicked.at[0]);
  const same = scans.map((one) => one.at);
  const voxels = scans.map((scan) => [...scan.voxels]);
  const overlays = {};
  for (const key of ["none", "label", "prediction", "error", "features"]) {
    state.overlay = key; redraw(); await frame(); overlays[key] = sums().join();
  }
  state.overlay = "error";
  const { colour } = overlayOf(0), all = [...scans[0].voxels.keys()];
  const errors = Object.values(ERRORS).map((one) => all.filter((n) => colour(n) === one).length);
  const message = document.getElementById("state").textContent;
  const textContent = JSON.stringify({ before, clicked, wheel, same, errors, voxels, overlays, message });
  document.body.append(Object.assign(document.createElement("pre"), { id: "result", textContent }));
});
</script>
"""
ON_ERROR = """<script>
window.requestAnimationFrame = (draw) => setTimeout(draw, 0); // --dump-dom draws a single frame
const failed = (event) => document.documentElement.dataset.error = String(event.message || event.reason);
addEventListener("error", failed); addEventListener("unhandledrejection", failed);
addEventListener("securitypolicyviolation", (event) => failed({ message: event.violatedDirective }));
console.error = (...text) => failed({ message: text.join(" ") });
</script></head>"""


def in_chromium(page: Path) -> dict[str, Any]:
    """The DOM's record of what happened on the page, run without a network."""
    if not CHROMIUM.exists():
        pytest.skip("no Chromium")
    text = page.read_text().replace("</head>", ON_ERROR, 1).replace("</body>", f"{PROBE}</body>", 1)
    probed = page.with_name("probed.html")
    probed.write_text(text)
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ]
    command += ["--window-size=1400,1000", "--virtual-time-budget=8000", "--dump-dom", f"file://{probed}"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    error = re.search(r'<html[^>]*data-error="([^"]*)"', dom)
    assert error is None, error and error[1]
    found = re.search(r'<pre id="result">(.*?)</pre>', dom, re.S)
    assert found, dom[-2000:]
    return json.loads(html.unescape(found[1]))


def test_a_browser_paints_the_planes_and_a_click_moves_the_crosshair(page: Path) -> None:
    found, data = in_chromium(page), content(page)
    assert found["message"] == ""
    sums = found["before"]["sums"]
    assert len(sums) == 3 * len(data["scans"]) and min(sums) > 0
    for scan, voxels in zip(data["scans"], found["voxels"], strict=True):
        assert voxels == unpacked(scan["voxels"], -1).tolist()
    shape = data["scans"][0]["shape"]
    expected = [round(0.3 * shape[0] - 0.5), round(0.8 * shape[1] - 0.5), shape[2] // 2]
    np.testing.assert_allclose(found["clicked"]["at"][0], expected, atol=1)  # pixels of a screen are rounded
    assert found["clicked"]["at"][0] != found["before"]["at"][0]
    assert found["clicked"]["sums"] != sums
    _check_other_scans(found, data)
    assert found["wheel"] == [*found["clicked"]["at"][0][:2], shape[2] // 2 + 1]
    mm = np.array(data["scans"][0]["toWorld"]) @ [*found["clicked"]["at"][0], 1]
    assert f"crosshair at {mm[0]:.1f}, {mm[1]:.1f}, {mm[2]:.1f} mm" in found["clicked"]["read"][0]
    assert "label:" in found["clicked"]["read"][0] and "prediction:" in found["clicked"]["read"][0]
    assert all("most similar: cosine" in text for text in found["clicked"]["read"][1:])
    assert len(set(found["overlays"].values())) == 5  # each overlay is another picture
    truth = unpacked(data["scans"][0]["label"], -1)
    predicted = unpacked(data["arms"][0]["predictions"][0], -1)
    wrong = truth != predicted
    missed, extra = wrong & (predicted == 0), wrong & (truth == 0)
    assert found["errors"] == [int(one.sum()) for one in (missed, extra, wrong & ~missed & ~extra)]
    assert min(found["errors"]) > 0


def _check_other_scans(found: dict[str, Any], data: dict[str, Any]) -> None:
    """The other scans are at the same place in body coordinates, and at the most similar point."""
    store, (arm,) = Store.open(FROZEN / "store"), data["arms"]
    rows = [list(store.collection.table["scan"]).index(scan["name"]) for scan in data["scans"]]
    points = [unpacked(part, -1, 3).astype(int) for part in arm["points"]]
    at = np.array(found["clicked"]["at"][0])
    mm = np.linalg.norm((points[0] - at) * store.collection.spacings[rows[0]], axis=1)
    for other in range(1, len(rows)):
        world = store.collection.corresponding_point(rows[0], rows[other], at)
        place = np.linalg.inv(store.collection.affines[rows[other]]) @ [*world, 1]
        inside = np.clip(place[:3], 0, store.collection.shapes[rows[other]] - 1)
        np.testing.assert_allclose(found["same"][other], inside, atol=0.51)
        index = unpacked(arm["matches"][0][other]["index"], -1)[np.flatnonzero(mm == mm.min())]
        assert found["clicked"]["at"][other] in points[other][index].tolist()


def test_points_of_a_dense_objective_are_in_the_views_of_their_sample(tiny_store: Path) -> None:
    fields = [f"data.root={tiny_store}", "data.patch_size=[16,16,16]", "pairs=voxel_correspondence"]
    fields += ["objective=dense", "train.samples_per_step=4", "encoder={unet3d: {channels: [4, 8, 8, 8]}}"]
    parts = assemble(load(ROOT / "configs/pretrain/simulated_overlap.yaml", fields, PretrainConfig))
    scans = first_scans(parts)
    found = drawn_on(parts, scans)
    first = [one for one in found["views"] if one["sample"] == 0]
    assert len(first) == 2 and found["samples"][0] == 1 and len(found["samplePoints"]) >= 4
    for one in found["samplePoints"]:
        assert len(one["at"]) > 0
        for drawn in (box for box in found["views"] if box["sample"] == one["sample"]):
            assert drawn["scan"] == one["scan"]
            assert np.all(np.array(one["at"]) >= np.array(drawn["low"]) - 0.01)
            assert np.all(np.array(one["at"]) <= np.array(drawn["high"]) + 0.01)


def described(points: np.ndarray, features: torch.Tensor) -> Described:
    grid = ShownGrid((6, 6, 6), (1, 1, 1), np.eye(4))
    return Described(grid, (1, 1, 1), points, points, features, features, (features.shape[1],))


def test_matches_are_those_of_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    points = [rng.permutation(np.argwhere(np.ones((6, 6, 6))))[:n] for n in (40, 50)]
    features = [torch.from_numpy(rng.normal(3, 2, (len(one), 5)).astype(np.float32)) for one in points]
    found = overlays([described(*both) for both in zip(points, features, strict=True)], ["a", "a"])
    both = torch.cat(features).double()
    standard = [((one.double() - both.mean(0)) / both.std(0, correction=0)).numpy() for one in features]
    index = unpacked(found["matches"][0][1]["index"], -1)
    cosine = unpacked(found["matches"][0][1]["cosine"], -1) / 127 - 1
    for number, query in enumerate(standard[0]):
        norms = np.linalg.norm(query) * np.linalg.norm(standard[1], axis=1)
        similarity = standard[1] @ query / norms
        assert index[number] == similarity.argmax()
        assert cosine[number] == pytest.approx(similarity.max(), abs=0.005)
    np.testing.assert_array_equal(unpacked(found["points"][1], -1, 3), points[1])


def test_principal_axes_are_those_of_the_largest_variance() -> None:
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(0, [5, 0.1, 3, 1, 0.2], (4000, 5)).astype(np.float32))
    axes, share = principal_axes(features)
    np.testing.assert_allclose(axes.T, np.eye(5)[[0, 2, 3]], atol=0.05)
    assert share == pytest.approx(35 / 35.05, abs=1e-3)
    narrow, share = principal_axes(features[:, :2])
    assert narrow.shape == (2, 3) and not narrow[:, 2].any() and share == pytest.approx(1)


def test_a_coarser_grid_is_about_equal_in_mm() -> None:
    grid = ShownGrid((128, 128, 9), (1, 1, 1), np.diag([1.0, 1.0, 9.0, 1.0]))
    ratio = coarser(grid, 2500)
    assert ratio[2] == 1 and np.prod(np.ceil(np.divide(grid.shape, ratio))) <= 2500


def test_large_scans_are_subsampled(
    tiny_store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("medcl3d.viewer.scan_grid.MOST_VOXELS", 12)
    page = view(tiny_store, tmp_path / "page.html", num_scans=1)
    (scan,) = content(page)["scans"]
    store = Store.open(tiny_store)
    row = list(store.collection.table["scan"]).index(scan["name"])
    assert scan["step"] == [3, 3, 3] and scan["shape"] == [11, 11, 11]
    label = store.read_label(row)[::3, ::3, ::3]
    np.testing.assert_array_equal(unpacked(scan["label"], *scan["shape"]), label)
    corner = store.collection.affines[row] @ [30, 0, 3, 1]
    np.testing.assert_allclose(np.array(scan["toWorld"]) @ [10, 0, 1, 1], corner)
    assert "at most" in page.read_text().split("</header>")[0]


def test_scans_are_of_training_and_held_out_patients(tiny_store: Path) -> None:
    store = Store.open(tiny_store)
    table = store.collection.table
    patients = sorted(set(table["patient"]))
    split = Split(tuple(patients[:4]), tuple(patients[4:]))
    chosen = table.iloc[choose_scans(store, split, 4)]
    assert chosen["patient"].isin(split.test).tolist() == [False, False, True, True]
    assert chosen.groupby("patient")["modality"].nunique().tolist() == [
        2,
        2,
    ]  # two modalities of each patient
    few = choose_scans(store, Split(tuple(patients[:5]), tuple(patients[5:])), 8)
    assert len(set(few)) == 8
    first = int(np.flatnonzero(table["patient"] == patients[3])[0])
    assert choose_scans(store, split, 3, first=[first])[0] == first
    only = choose_scans(store, split, 9, training=False, modalities=(table["modality"].iloc[0],))
    assert set(table["patient"].iloc[only]) == set(split.test)
    assert set(table["modality"].iloc[only]) == {table["modality"].iloc[0]}


def test_a_run_that_is_measured_on_validation_patients_shows_those(tmp_path: Path) -> None:
    root, run = tmp_path / "store", tmp_path / "fine"
    shutil.copytree(FROZEN / "store", root)
    shutil.copytree(FROZEN / "finetune", run)
    split = {"schema": 1, "train": ["P001", "P002"], "test": ["P003"], "validation": ["P004", "P005"]}
    (root / "split.json").write_text(json.dumps(split))
    fields = [f"data.root={root}", "measured_on=validation"]
    page = view(run, tmp_path / "page.html", fields, num_scans=3, say=lambda _: None)
    assert [scan["side"] for scan in content(page)["scans"]] == ["validation"] * 2


def test_errors_name_the_place_and_a_remedy(comparison: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.html"
    run = comparison / "pretrain" / "crops" / "seed_0"
    with pytest.raises(ConfigError, match="not a store, a run or a comparison; use a prepared store"):
        view(tmp_path, out)
    with pytest.raises(ConfigError, match="no such folder"):
        view(tmp_path / "absent", out)
    with pytest.raises(DataError, match=r"config.yaml: data.root = \S+: contains no .*give data.root=PATH"):
        view(run, out, [f"data.root={tmp_path}"])
    with pytest.raises(ConfigError, match=r"ends in \.html"):
        view(run, tmp_path / "a.png")
    with pytest.raises(ConfigError, match="but this is a store"):
        view(FROZEN / "store", out, [STORE])
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text("seed: 0\n")
    (unfinished / "status.json").write_text('{"state": "stopped", "step": 3}')
    with pytest.raises(ConfigError, match="has no weights, its run is stopped"):
        view(unfinished, out)
    (unfinished / "results.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"an evaluation.*use the pretraining"):
        view(unfinished, out)
    (tmp_path / "nothing" / "pretrain" / "crops").mkdir(parents=True)
    with pytest.raises(ConfigError, match="no run of this comparison is finished"):
        view(tmp_path / "nothing", out)
    assert not out.exists()


def test_the_command_writes_the_page_of_a_run(comparison: Path, tmp_path: Path) -> None:
    run, out = comparison / "finetune" / "crops" / "all" / "seed_0", tmp_path / "new" / "page.html"
    done = CliRunner().invoke(app, ["view", str(run), STORE, "--out", str(out), "--scans", "2"])
    assert done.exit_code == 0, done.output
    data = content(out)
    assert [scan["side"] for scan in data["scans"]] == ["test"]  # the store has one test scan
    assert "mean Dice" in data["arms"][0]["facts"][0]
    assert "views" not in data["arms"][0] and len(data["arms"][0]["predictions"]) == 1
