"""Dense probes: segmentation, label propagation and matching by features of voxels."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from scipy.spatial import cKDTree
from torch import Tensor

from medcl3d.comparison.analysis.case_values import by_patient
from medcl3d.config.loading import parse
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.core.geometry import Triple, triple
from medcl3d.downstream.dense.context import DenseContext, DenseProbe, FittedProbe, measure_dense
from medcl3d.downstream.dense.controls import intensity_of, place_mm, place_of
from medcl3d.downstream.dense.label_propagation import LabelPropagation, _Measuring, _Support
from medcl3d.downstream.dense.voxel_features import DenseEncoder
from medcl3d.downstream.dense.voxel_grid import Structures
from medcl3d.downstream.dense.voxel_matching import VoxelMatching
from medcl3d.downstream.dense.voxel_probe import VoxelProbe
from medcl3d.downstream.evaluate import EvaluateConfig, assemble, evaluate
from medcl3d.downstream.finetune import finetune
from medcl3d.pretraining.pretrain import pretrain
from medcl3d.store.scan_selection import DataConfig, split_of
from medcl3d.store.store import Store

SMALL = {"voxels_per_scan": 800, "queries": 1000, "candidates": 1500, "structures": 5}
TEST = [0, 6, 7]


class Described:
    """Features given by a function of a scan's voxels."""

    def __init__(self, store: Store, scan: int, values: Callable[[Store, int, np.ndarray], np.ndarray]):
        self.store, self.scan, self.values = store, scan, values

    @property
    def shape(self) -> Triple:
        return triple(self.store.collection.shapes[self.scan])

    @property
    def parts(self) -> tuple[int, ...]:
        return (self.at(np.zeros((1, 3), dtype=int)).shape[1],)

    def at(self, voxels: np.ndarray) -> Tensor:
        return torch.from_numpy(self.values(self.store, self.scan, voxels).astype(np.float32))


def truth(store: Store, scan: int, voxels: np.ndarray) -> np.ndarray:
    """The label itself, as one column per class."""
    return np.eye(4)[store.read_label(scan)[tuple(voxels.T)]] + 0.01 * noise(store, scan, voxels)[:, :4]


def noise(store: Store, scan: int, voxels: np.ndarray) -> np.ndarray:
    return np.random.default_rng(scan).normal(size=(len(voxels), 6))


def waves(mm: np.ndarray) -> np.ndarray:
    """Unique features of positions in mm."""
    return np.concatenate([f(mm / scale) for f in (np.sin, np.cos) for scale in (3, 11, 40)], axis=1)


def of_world(store: Store, scan: int, voxels: np.ndarray) -> np.ndarray:
    return waves(store.collection.world(np.full(len(voxels), scan), voxels))


def of_place(store: Store, scan: int, voxels: np.ndarray) -> np.ndarray:
    return waves(place_mm(store, scan, voxels))


def context(
    store: Store, values: Any = truth, num_labelled: int | None = None, seed: int = 0
) -> DenseContext:
    data = DataConfig(root=store.root, patch_size=(8, 8, 8))
    return DenseContext(
        store, data, split_of(store, data), lambda scan: Described(store, scan, values), num_labelled, seed
    )


def metrics(probe: Any, given: DenseContext) -> dict[str, float]:
    probe.check(given)
    return {
        name.removeprefix("p/"): one.mean for name, one in measure_dense({"p": probe}, given).metrics.items()
    }


def test_features_that_are_the_labels_are_segmented_without_error(ball_store: Store) -> None:
    probe = VoxelProbe(**SMALL, heads=("linear", "nonlinear"))  # type: ignore[arg-type]
    found = metrics(probe, context(ball_store))
    for name in ("dice", "nsd_2mm", "nonlinear/dice", "knn/dice"):
        assert found[name] == pytest.approx(1, abs=1e-3), name
    assert {f"{name}/dice" for name in ("place", "intensity", "intensity_place/knn")} < set(found)


def test_the_first_head_is_also_measured_on_the_voxels_of_the_controls(ball_store: Store) -> None:
    found = metrics(VoxelProbe(**SMALL), context(ball_store, of_place))  # type: ignore[arg-type]
    assert found["grid/dice"] == pytest.approx(found["place/dice"], abs=0.1)
    alone = metrics(VoxelProbe(**SMALL, controls=False), context(ball_store, of_place))  # type: ignore[arg-type]
    assert alone["grid/dice"] == found["grid/dice"]


def test_features_and_place_together_are_as_good_as_the_better_one(ball_store: Store) -> None:
    def found(values: Any, **fields: Any) -> dict[str, float]:
        return metrics(VoxelProbe(**SMALL, features_place=True, **fields), context(ball_store, values))

    useless = found(noise)
    assert useless["features_place/dice"] == pytest.approx(useless["place/dice"], abs=0.1)
    assert useless["features_place/dice"] > useless["grid/dice"] + 0.1
    perfect = found(truth, controls=False)
    assert perfect["features_place/dice"] == pytest.approx(1, abs=0.02)
    assert perfect["features_place/knn/dice"] > 0.9 and "place/dice" not in perfect


def test_scans_of_a_patient_are_in_one_fold_if_there_are_others(
    ball_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the penalty would be chosen on patients that a head was fitted on."""
    given = context(ball_store)
    scans = given.training()[:4]
    owner = dict(zip(scans, ["a", "a", "b", "b"], strict=True))
    monkeypatch.setattr(DenseContext, "ids", lambda _, scan: {"scan": str(scan), "patient": owner[scan]})
    probe = VoxelProbe(**SMALL, controls=False)  # type: ignore[arg-type]
    structures = Structures.largest(ball_store, scans, 5)
    known = [probe._known(given, structures, scan) for scan in scans]
    seen: list[np.ndarray] = []
    monkeypatch.setattr(
        "medcl3d.downstream.dense.voxel_probe.fit_linear", lambda voxels, *_: seen.append(voxels.folds)
    )
    probe._fitted(2, known, structures, 0)
    probe._fitted(1, known[:2], structures, 0)
    probe._fitted(1, known[:1], structures, 0)
    sizes = [len(one.sample.classes) for one in known]
    assert seen[0].tolist() == [0] * (sizes[0] + sizes[1]) + [1] * (sizes[2] + sizes[3])
    assert seen[1].tolist() == [0] * sizes[0] + [1] * sizes[1]
    assert seen[2].tolist() == known[0].blocks.tolist()


def test_features_without_information_give_chance(ball_store: Store) -> None:
    """A structure that fills a share p of the scan has Dice p at most, if voxels are labelled at random."""
    found = metrics(VoxelProbe(**SMALL, controls=False), context(ball_store, noise))  # type: ignore[arg-type]
    share = np.mean([(ball_store.read_label(scan) > 0).mean() for scan in TEST])
    assert found["dice"] < 0.03 and found["knn/dice"] < 2 * share


def test_other_probes_do_not_change_the_pairs_of_a_matching(ball_store: Store) -> None:
    """A matching needs the scans of a frame one after the other, also if another probe takes only some."""
    given = context(ball_store, of_world)
    alone = measure_dense({"m": VoxelMatching(queries=50, candidates=100)}, given)
    order = [row["scan"] for row in alone.rows]
    labelled, frame = given.all_tested(), ball_store.collection.columns["frame"]
    before = {scan: sum(frame[one] == frame[scan] for one in labelled if one < scan) for scan in labelled}
    labelled.sort(key=lambda scan: (before[scan], -scan))  # scans of other frames are between those of one
    matching = VoxelMatching(queries=50, candidates=100)

    class Some:
        def check(self, context: DenseContext) -> None:
            pass

        def fit(self, context: DenseContext) -> FittedProbe:
            return FittedProbe(labelled, (), lambda scan, _: [{**context.ids(scan), "n": 1.0}])

    probes: dict[str, DenseProbe] = {"some": Some(), "m": matching}
    both = measure_dense(probes, given)
    assert [row["scan"] for row in both.rows if row["probe"] == "m"] == order and len(order) > 2


def test_the_error_of_a_propagation_is_of_the_same_voxels_whatever_they_match() -> None:
    """One support lacks structure 2: a match in it has no error, and would else leave the mean."""

    def support(classes: list[int]) -> _Support:
        world, known = np.array([[0.0, 0, 0], [30, 0, 0]]), np.array(classes)
        trees = {value: cKDTree(world[known == value]) for value in set(classes)}
        return _Support({}, {}, known, world, world, trees)

    structures = Structures({1: "one", 2: "two"})
    measuring = _Measuring(LabelPropagation(), None, structures, [support([1, 2]), support([1, 1])], {}, [])  # type: ignore[arg-type]
    truth, index = np.array([1, 2]), np.zeros((2, 2), dtype=int)
    first, second = np.array([[1.0, 1.0], [0, 0]]), np.array([[1.0, 0.0], [0, 1.0]])
    errors = [measuring._measures("", truth, best, index)["error_mm"] for best in (first, second)]
    assert errors == [0.0, 0.0]  # of the voxel in structure 1


def test_shuffled_labels_give_chance(ball_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = VoxelProbe(**SMALL)  # type: ignore[arg-type]
    right = metrics(probe, context(ball_store))
    original = Structures.of

    def shuffled(self: Structures, store: Store, scan: int) -> np.ndarray:
        found = original(self, store, scan)
        return (
            found
            if scan in TEST
            else np.random.default_rng(scan).permutation(found.ravel()).reshape(found.shape)
        )

    monkeypatch.setattr(Structures, "of", shuffled)
    found = metrics(probe, context(ball_store))
    propagated = metrics(LabelPropagation(queries=1000, candidates=1500), context(ball_store))
    share = np.mean([(ball_store.read_label(scan) > 0).mean() for scan in TEST])
    assert right["knn/dice"] > 0.99
    for name in ("dice", "knn/dice", "place/dice", "intensity/knn/dice"):
        assert found[name] < 2 * share, name
    assert propagated["accuracy"] < 2 * share


def test_several_numbers_of_labels_equal_evaluations_with_one_each(ball_store: Store) -> None:
    both = metrics(VoxelProbe(**SMALL, labelled=(1, 3)), context(ball_store, of_place))  # type: ignore[arg-type]
    one, three = (
        metrics(VoxelProbe(**SMALL), context(ball_store, of_place, count))  # type: ignore[arg-type]
        for count in (1, 3)
    )
    for name, value in one.items():
        assert both[f"1/{name}"] == pytest.approx(value, abs=2e-6), name
        assert both[f"3/{name}"] == pytest.approx(three[name], abs=2e-6), name
    for name in ("dice", "nsd_2mm", "knn/dice"):
        assert both[name] == pytest.approx((one[name] + three[name]) / 2, abs=1e-5)


def test_rows_repeat_with_the_seed_and_give_the_metrics_of_a_comparison(ball_store: Store) -> None:
    probes: dict[str, DenseProbe] = {
        "voxel_probe": VoxelProbe(**SMALL, heads=("nonlinear",), labelled=(1, 2)),  # type: ignore[arg-type]
        "label_propagation": LabelPropagation(queries=500, candidates=500),
        "voxel_matching": VoxelMatching(queries=50, candidates=500),
    }
    first, second = (measure_dense(probes, context(ball_store, of_place)) for _ in range(2))
    assert first.rows == second.rows and first.test == ("p0", "p6", "p7") and len(first.labelled) == 2
    results = {"cases": first.rows}
    for name in ("voxel_probe/dice", "voxel_probe/2/nsd_2mm", "label_propagation/near/error_mm"):
        values = by_patient(results, name)
        assert np.mean(list(values.values())) == pytest.approx(first.metrics[name].mean, abs=1e-6)
    assert {row["class"] for row in first.rows if row["probe"] == "voxel_probe"} == {"ball", "cube"}


def test_features_of_the_place_propagate_as_the_control_does(ball_store: Store) -> None:
    found = metrics(LabelPropagation(queries=800, candidates=3000), context(ball_store, of_place))
    for name in ("accuracy", "dice", "error_mm"):
        assert found[name] == pytest.approx(found[f"place/{name}"], abs=0.1), name
    assert found["near/accuracy"] == pytest.approx(found["accuracy"], abs=0.05)


def test_a_right_label_has_no_error_in_mm(ball_store: Store) -> None:
    found = metrics(LabelPropagation(queries=800, candidates=3000, supports=2), context(ball_store))
    assert found["accuracy"] == 1 and found["error_mm"] == 0 and found["dice"] == 1


def in_one_frame(store: Store) -> Store:
    """Test scans 6 and 7 in one frame, with other grids."""
    columns = {**store.collection.columns, "frame": np.array([0, 1, 2, 3, 4, 5, 6, 6])}
    affines = store.collection.affines.copy()
    affines[6] = np.diag([1.0, 1.0, 1.0, 1.0])
    affines[7] = np.diag([1.0, 1.0, 2.0, 1.0])
    affines[7, :3, 3] = [2, -3, 0]
    return replace(store, collection=replace(store.collection, columns=columns, affines=affines))


def test_features_of_coordinates_match_without_error(ball_store: Store) -> None:
    """Every voxel of the other scan's grid is at a voxel of the first, so the partner is found exactly."""
    store = in_one_frame(ball_store)
    probe = VoxelMatching(queries=100_000, candidates=2000, controls=False, partners=0)
    rows = measure_dense({"p": probe}, context(store, of_world)).rows
    assert [(row["scan"], row["in"]) for row in rows] == [("scan6", "scan7")]
    assert rows[0]["frame/error_mm"] <= 1 and rows[0]["frame/within_5mm"] == 1
    finer = VoxelMatching(queries=100_000, candidates=100_000, controls=False, partners=0)
    aligned = replace(store, collection=replace(store.collection, affines=np.array([np.eye(4)] * 8)))
    rows = measure_dense({"p": finer}, context(aligned, of_world)).rows
    assert rows[0]["frame/error_mm"] == 0 and rows[0]["frame/within_5mm"] == 1
    assert rows[0]["frame/chance_error_mm"] > 5


def test_noise_matches_no_better_than_chance(ball_store: Store) -> None:
    store = in_one_frame(ball_store)
    probe = VoxelMatching(queries=200, candidates=2000, structures=2)
    found = metrics(probe, context(store, noise))
    assert found["frame/error_mm"] > 0.6 * found["frame/chance_error_mm"]
    assert found["people/place/error_mm"] < found["people/chance_error_mm"]


def test_the_first_scan_of_each_patient_is_matched_between_patients(ball_store: Store) -> None:
    collection, given = ball_store.collection, context(ball_store, of_world)
    table = collection.table.assign(patient=["p0", "p1", "p2", "p3", "p4", "p5", "p6", "p6"])
    store = replace(ball_store, collection=replace(collection, table=table))
    given = replace(given, store=store, split=replace(given.split, test=("p0", "p6")))
    probe = VoxelMatching(queries=50, candidates=500, partners=1, controls=False)
    rows = measure_dense({"p": probe}, given).rows
    assert {(row["scan"], row["in"]) for row in rows if "class" in row} == {("scan0", "scan6")}


def test_test_scans_without_partners_are_refused(ball_store: Store) -> None:
    with pytest.raises(DataError, match=r"no two test scans .* share a frame or have label maps"):
        VoxelMatching(partners=0).check(context(ball_store))


def test_controls_describe_the_place_and_the_intensities(ball_store: Store) -> None:
    voxels = np.array([[0, 0, 0], [5, 6, 7]])
    patches = intensity_of(ball_store, 1).at(voxels).numpy().reshape(2, 5, 5, 5)
    volume = ball_store.read_volume(1)[0]
    np.testing.assert_array_equal(patches[1], volume[3:8, 4:9, 5:10])
    assert patches[0, 0, 0, 0] == volume[0, 0, 0] and patches[0, 3, 4, 2] == volume[1, 2, 0]
    place = place_of(ball_store, 1).at(voxels)
    assert place.shape == (2, 30) and (place.abs() <= 1).all()


def config(root: Path, out: Path, **fields: Any) -> dict[str, Any]:
    return {
        "data": {"root": str(root), "patch_size": [8, 8, 8]},
        "encoder": {"unet3d": {"channels": [4, 8], "strides": [1, 2]}},
        "out_dir": str(out),
        "precision": "float32",
        **fields,
    }


def run(path: Path, given: dict[str, Any], **options: Any) -> dict[str, Any]:
    (path / "c.yaml").write_text(yaml.safe_dump(given))
    folder = evaluate(path / "c.yaml", **options)
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def test_an_evaluation_has_dense_probes(ball_root: Path, tmp_path: Path) -> None:
    probes = {
        "voxel_probe": {**SMALL, "controls": False},
        "label_propagation": {"queries": 300, "candidates": 300, "controls": False},
        "num_labelled": 2,
    }
    found = run(tmp_path, config(ball_root, tmp_path / "run", **probes))
    assert {"voxel_probe/dice", "voxel_probe/knn/dice", "label_propagation/near/accuracy"} <= set(
        found["metrics"]
    )
    assert len(found["split"]["labelled"]) == 2 and found["split"]["test"] == ["p0", "p6", "p7"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"voxel_probe": {"labelled": [9]}}, "num_labelled = 9"),
        ({"voxel_probe": {"labelled": [1]}, "num_labelled": 1}, "remove one of them"),
        ({"voxel_probe": {"labelled": [1, 1]}}, "a value is repeated"),
        ({"label_propagation": {"supports": 9}}, "num_labelled = 9"),
        ({"voxel_probe": {}, "voxel_features": {"maps": "decoded"}}, "has no decoder"),
        ({"voxel_matching": {"partners": 0}}, "no two test scans"),
    ],
)
def test_wrong_probes_are_refused_before_anything_runs(
    ball_root: Path, tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        run(tmp_path, config(ball_root, tmp_path / "run", **fields))
    assert words in str(caught.value) and not (tmp_path / "run").exists()


def pretrained(root: Path, tmp_path: Path, **train: Any) -> Path:
    given = {
        **config(root, tmp_path / "pre"),
        "pairs": "overlapping_crops",
        "views": "mri",
        "objective": "dense",
        "train": {"steps": 4, "samples_per_step": 2, "precision": "float32", **train},
    }
    del given["precision"]
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(given))
    return pretrain(tmp_path / "p.yaml")


def test_checkpoints_along_a_run_are_evaluated(ball_root: Path, tmp_path: Path) -> None:
    run_folder = pretrained(ball_root, tmp_path, keep_steps=[2])
    names = {"encoder.safetensors", "encoder_2.safetensors", "encoder.json", "encoder_2.json"}
    assert {file.name for file in run_folder.glob("encoder*")} == names
    first, last = (load_file(run_folder / f"{name}.safetensors") for name in ("encoder_2", "encoder"))
    assert first.keys() == last.keys() and any(not torch.equal(first[key], last[key]) for key in first)
    probe = {"label_propagation": {"queries": 200, "candidates": 300, "controls": False}}

    def measured(init: str, name: str, **fields: int) -> list[dict[str, Any]]:
        return run(tmp_path, config(ball_root, tmp_path / name, init=init, **probe, **fields))["cases"]

    assert measured(f"{run_folder}@4", "a") == measured(str(run_folder), "b")
    assert measured(f"{run_folder}@2", "c") == measured(f"{run_folder}/encoder_2.safetensors", "d")
    assert measured(str(run_folder), "f", step=2) == measured(f"{run_folder}@2", "c")
    assert measured("scratch", "g", step=2) == measured("scratch", "h")
    with pytest.raises(ConfigError, match=r"has no weights after step 3, it has steps 2; pretrain with"):
        measured(f"{run_folder}@3", "e")
    with pytest.raises(ConfigError, match="training ends at step 4"):
        pretrained(ball_root, tmp_path, keep_steps=[5])


def test_the_decoder_of_a_dense_pretraining_is_among_the_features(ball_root: Path, tmp_path: Path) -> None:
    run_folder = pretrained(ball_root, tmp_path)
    store = Store.open(ball_root)
    widths = {}
    for maps in ("all", "encoder", "decoded"):
        given = config(
            ball_root, tmp_path / "x", init=str(run_folder), voxel_probe={}, voxel_features={"maps": maps}
        )
        parsed = parse(given, EvaluateConfig, "test")
        network = assemble(parsed).network
        encoder = DenseEncoder(network, store, parsed.voxel_features, (8, 8, 8), torch.device("cpu"), None)
        widths[maps] = encoder.scan(1).parts
    assert widths == {"all": (4, 8, 4), "encoder": (4, 8), "decoded": (4,)}


def test_a_frozen_encoder_is_not_fine_tuned(ball_root: Path, tmp_path: Path) -> None:
    run_folder = pretrained(ball_root, tmp_path)
    given = {
        **config(ball_root, tmp_path / "fine", init=str(run_folder), freeze="encoder"),
        "task": {"segmentation": {}},
        "train": {"steps": 2, "samples_per_step": 2, "precision": "float32"},
    }
    del given["precision"]
    (tmp_path / "f.yaml").write_text(yaml.safe_dump(given))
    folder = finetune(tmp_path / "f.yaml")
    before, after = load_file(run_folder / "encoder.safetensors"), load_file(folder / "model.safetensors")
    kept = {
        key: torch.equal(before[key], after[f"network.{key}"]) for key in before if key.startswith("encoder.")
    }
    assert kept and all(kept.values())
    given["train"]["keep_steps"] = [1]
    (tmp_path / "f.yaml").write_text(yaml.safe_dump(given))
    with pytest.raises(ConfigError, match="only a pretraining keeps encoders"):
        finetune(tmp_path / "f.yaml", [f"out_dir={tmp_path / 'other'}"])
