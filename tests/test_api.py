"""The public Python API: every line of the design runs, and gives what the commands give."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from pytorch_metric_learning.losses import NTXentLoss
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from typer.testing import CliRunner

import medcl3d
from medcl3d.api.pair_dataset import PairDataset
from medcl3d.api.runs import PretrainResult
from medcl3d.cli import app
from medcl3d.config.loading import parse
from medcl3d.config.registry import Registry
from medcl3d.core.embeddings import Features
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.downstream.pretrained_encoder import PretrainedEncoder
from medcl3d.downstream.scan_features import scan_features
from medcl3d.encoders import ENCODERS
from medcl3d.encoders.network import Network
from medcl3d.objectives import OBJECTIVES
from medcl3d.pairs import PAIRS
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.parts import assemble
from medcl3d.sampling.augment import make_views
from medcl3d.store.store import Store
from medcl3d.views import VIEWS

ROOT = Path(__file__).parents[1]
VECTORS = ROOT.parent / "shared" / "vectors" / "contrastive_loss.json"
UNET = {"unet3d": {"channels": [4, 8], "strides": [1, 2]}}


def config(root: Path, **fields: Any) -> dict[str, Any]:
    return {
        "data": {"root": str(root), "patch_size": [16, 16, 16]},
        "pairs": "overlapping_crops",
        "views": "mri",
        "encoder": UNET,
        "objective": "simclr",
        "train": {"steps": 2, "samples_per_step": 4, "log_every": 1},
        **fields,
    }


@pytest.fixture(scope="module")
def store(tiny_store: Path) -> Store:
    return medcl3d.open_store(tiny_store)


@pytest.fixture(scope="module")
def run(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> PretrainResult:
    return medcl3d.pretrain(config(tiny_store), out_dir=tmp_path_factory.mktemp("api") / "pre")


@pytest.fixture(scope="module")
def scan(tiny_store: Path) -> Path:
    return sorted((tiny_store / "raw" / "images").glob("*.nii.gz"))[0]


# What is exported


def test_importing_it_takes_no_torch_and_no_time() -> None:
    code = "import sys, time; t = time.time(); import medcl3d; print(time.time() - t, *sys.modules)"
    best = float("inf")
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        seconds, *modules = done.stdout.split()
        best = min(best, float(seconds))
    assert best < 0.5
    assert not {"torch", "numpy", "pydantic"} & set(modules)


def test_every_public_name_is_there_and_documented() -> None:
    assert sorted(medcl3d.__all__) == medcl3d.__all__
    assert set(medcl3d.__all__) <= set(dir(medcl3d))
    for name in medcl3d.__all__:
        assert getattr(medcl3d, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        medcl3d.pretrian  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    "registry", [PAIRS, VIEWS, ENCODERS, OBJECTIVES], ids=lambda registry: registry.package
)
def test_every_registered_class_is_an_attribute_of_its_package_for_people_and_type_checkers(
    registry: Registry,
) -> None:
    package = sys.modules[registry.package]
    constructors = map(registry.get, registry.names())
    names = {
        constructor.__name__: constructor
        for constructor in constructors
        if constructor.__module__.startswith("medcl3d.")
    }
    for name, constructor in names.items():
        assert getattr(package, name) is constructor
    assert set(names) <= set(dir(package))
    tree = ast.parse(Path(str(package.__file__)).read_text())
    (checking,) = [node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name)]
    imported = {
        a.asname for node in checking.body if isinstance(node, ast.ImportFrom) for a in node.names if a.asname
    }
    assert imported == set(names), (
        f"the imports under TYPE_CHECKING in {package.__file__} name these classes for type checkers"
    )


def test_a_package_has_no_other_attribute() -> None:
    for name in ("OverlappingCorps", "__wrapped__", "boxes_"):
        assert not hasattr(medcl3d.pairs, name)


# The loss


@pytest.mark.skipif(
    not VECTORS.is_file(), reason="the worked cases lie beside the project, in shared/vectors"
)
def test_loss_agrees_with_the_worked_cases() -> None:
    for case in json.loads(VECTORS.read_text()):
        z, positive, negative = (
            torch.tensor(case[name], dtype=torch.float64) for name in ("z", "positive", "negative")
        )
        value = medcl3d.ContrastiveLoss(case["temperature"], case["denominator"])(
            z.requires_grad_(), positive, negative
        )
        value.backward()
        assert value.item() == pytest.approx(case["loss"], abs=1e-9), case["name"]
        torch.testing.assert_close(
            z.grad, torch.tensor(case["gradient"], dtype=torch.float64), atol=1e-6, rtol=1e-6
        )


def test_two_views_are_nt_xent_and_bool_pairs_are_weights_of_one() -> None:
    z = torch.randn(12, 5, dtype=torch.float64)
    loss = medcl3d.ContrastiveLoss(temperature=0.2)
    expected = NTXentLoss(temperature=0.2)(z, torch.arange(12) % 6)
    torch.testing.assert_close(loss.two_views(z[:6], z[6:]), expected, atol=1e-9, rtol=0)
    positive = torch.eye(12, dtype=torch.bool).roll(6, 1)
    torch.testing.assert_close(
        loss(z, positive | torch.eye(12, dtype=torch.bool)), expected, atol=1e-9, rtol=0
    )
    torch.testing.assert_close(loss(z, positive.float(), ~positive), expected, atol=1e-9, rtol=0)


def test_loss_in_half_precision_is_computed_in_float32() -> None:
    z = torch.randn(8, 4).bfloat16()
    value = medcl3d.ContrastiveLoss()(z, torch.eye(8).roll(4, 1))
    assert value.dtype is torch.float32
    torch.testing.assert_close(value, medcl3d.ContrastiveLoss()(z.float(), torch.eye(8).roll(4, 1)))


@pytest.mark.parametrize(
    "fields", [{"temperature": 0}, {"denominator": "mine"}, {"denominator": "own", "decoupled": True}]
)
def test_loss_refuses_fields(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="|".join(fields)):
        medcl3d.ContrastiveLoss(**fields)


def test_loss_refuses_weights() -> None:
    loss, z, pairs = medcl3d.ContrastiveLoss(), torch.randn(4, 3), torch.eye(4).roll(2, 1)
    with pytest.raises(ValueError, match=r"positive has shape \(3, 4\)"):
        loss(z, pairs[:3])
    with pytest.raises(ValueError, match="within"):
        loss(z, 2 * pairs)
    with pytest.raises(ValueError, match="not below 0"):
        loss(z, pairs, -pairs)
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        loss(z[0], pairs)
    with pytest.raises(DataError, match="no item has a positive"):
        loss(z, torch.eye(4))


# Scans


def test_prepare_opens_its_store_and_refuses_options(tmp_path: Path) -> None:
    message: list[str] = []
    options: dict[str, Any] = {"num_patients": 2, "shape": [16, 16, 16], "workers": 1}
    store = medcl3d.prepare("simulated", out=tmp_path / "out", report=message.append, **options)
    assert len(store) == len(medcl3d.open_store(str(tmp_path / "out"))) > 0 and message
    with pytest.raises(ConfigError, match="spacing"):
        medcl3d.prepare("simulated", out=tmp_path / "other", spacing=[1, 1, 1])
    with pytest.raises(DataError, match="no finished store"):
        medcl3d.open_store(tmp_path / "other")


# The dataset


def test_dataset_gives_the_batches_of_a_pretraining(store: Store, tiny_store: Path) -> None:
    dataset = medcl3d.PairDataset(store, medcl3d.pairs.OverlappingCrops(), "mri", 16, 4, seed=3, steps=3)
    parts = assemble(parse(config(tiny_store, out_dir="x", seed=3), PretrainConfig, "test"))
    assert len(dataset) == 3 and len(list(dataset)) == 3
    expected, found = make_views(parts.dataset()[1], parts.learner.recipe), dataset[1]
    assert torch.equal(found.main.voxels, expected.main.voxels) and torch.equal(
        found.main.affine, expected.main.affine
    )
    relation = dataset.relation(found.main.keys)
    assert torch.equal(
        relation.positive, dataset.strategy.relate(found.main.keys, found.main.keys, None).positive
    )
    assert relation.positive.shape == (8, 8)


def test_batches_are_the_same_in_workers_on_ranks_and_from_any_step(store: Store) -> None:
    def dataset(steps: int = 2, **fields: Any) -> PairDataset:
        views = {"mri": {"blur_probability": 0}}
        return medcl3d.PairDataset(store, "overlapping_crops", views, (16, 16, 16), 4, steps=steps, **fields)

    alone = [batch.main.voxels for batch in dataset()]
    for batch, voxels in zip(DataLoader(dataset(), batch_size=None, num_workers=1), alone, strict=True):
        assert torch.equal(batch.main.voxels, voxels)
    (last,) = dataset().batches(start=1)
    assert torch.equal(last.main.voxels, alone[1])
    second, longer = dataset(), dataset(steps=4)
    second.set_epoch(1)
    for found, step in zip((*second, second[1]), (2, 3, 3), strict=True):
        assert torch.equal(found.main.voxels, longer[step].main.voxels)
    parts = [dataset(rank=rank, world_size=2)[0].to("cpu").main.voxels for rank in range(2)]
    assert torch.equal(torch.cat(parts), alone[0])


def test_points_and_features_reach_the_strategies_that_need_them(store: Store) -> None:
    dense = medcl3d.PairDataset(store, medcl3d.pairs.VoxelCorrespondence(), "none", 16, 2, num_points=5)
    points = dense[0].to("cpu").points
    assert points is not None and points.position_mm.shape == (2, 5, 3)
    hard = medcl3d.PairDataset(store, medcl3d.pairs.HardNegatives(), "none", 16, 2)
    keys = hard[0].main.keys
    with pytest.raises(ConfigError, match="depends on features"):
        hard.relation(keys)
    assert hard.relation(keys, torch.randn(4, 3)).negative.shape == (4, 4)
    queue = medcl3d.PairDataset(store, medcl3d.pairs.NearestNeighbours(), "none", 16, 2)
    with pytest.raises(ConfigError, match="embedding queue"):
        queue.relation(keys, torch.randn(4, 3))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strategy": "overlaping_crops"}, "did you mean 'overlapping_crops'"),
        ({"strategy": medcl3d.pairs.OverlappingCrops}, r"write OverlappingCrops\(\)"),
        ({"views": medcl3d.views.mri}, r"write mri\(\)"),
        ({"views": {"mri": {}, "ct": {}}}, "one view recipe"),
        ({"patch_size": 0}, "patch_size"),
        ({"samples_per_step": 3, "world_size": 2}, "samples_per_step = 3"),
        ({"strategy": {"overlapping_crops": {"samples_per_scan": 2}}, "samples_per_step": 3}, "multiple"),
        ({"patch_size": 64}, "smaller_than_patch"),
    ],
)
def test_dataset_refuses(store: Store, fields: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        medcl3d.PairDataset(**{"store": store, "strategy": "overlapping_crops", "patch_size": 16, **fields})


# Runs


def test_a_run_from_a_dict_is_the_run_from_a_file(
    run: PretrainResult, tiny_store: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text(
        yaml.safe_dump(config(tiny_store, pairs={"overlapping_crops": {"min_iou": 0.1}}))
    )
    overrides = {"pairs.overlapping_crops.min_iou": 0.3}
    other = medcl3d.pretrain(tmp_path / "a.yaml", out_dir=tmp_path / "run", overrides=overrides)
    ours, theirs = load_file(run.weights), load_file(other.weights)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert run.metrics["step"] == 2 and [row["step"] for row in run.history] == [1, 2]
    again = medcl3d.pretrain(
        {**config(tiny_store), "pairs": medcl3d.pairs.OverlappingCrops()}, out_dir=run.path
    )
    assert again.history == run.history, "a strategy object is its name and fields"


def test_a_wrong_field_is_named(tiny_store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^overrides: train\.steps = 'many'"):
        medcl3d.pretrain(config(tiny_store), out_dir=tmp_path, overrides={"train.steps": "many"})
    with pytest.raises(ConfigError, match=r"^configuration: seed = -1"):
        medcl3d.pretrain(config(tiny_store, seed=-1), out_dir=tmp_path)
    with pytest.raises(ConfigError, match="out_dir"):
        medcl3d.pretrain(config(tiny_store))
    with pytest.raises(ConfigError, match="out_dir is missing"):
        medcl3d.compare({"arms": {}})


def test_finetune_and_evaluate_return_their_results(
    run: PretrainResult, tiny_store: Path, tmp_path: Path
) -> None:
    shared = {
        "data": {"root": str(tiny_store), "patch_size": [16, 16, 16]},
        "encoder": UNET,
        "init": str(run.path),
    }
    train = {"steps": 1, "samples_per_step": 2}
    tuned = medcl3d.finetune({**shared, "task": "segmentation", "train": train}, out_dir=tmp_path / "fine")
    written = json.loads((tuned.path / "results.json").read_text())
    assert tuned.metrics["dice"].mean == written["metrics"]["dice"]["mean"]
    assert (
        tuned.metrics["dice"].n == written["metrics"]["dice"]["n"] and list(tuned.cases) == written["cases"]
    )
    frozen = medcl3d.evaluate({**shared, "retrieval": {"same": "patient"}}, out_dir=tmp_path / "frozen")
    assert any(name.startswith("retrieval/") for name in frozen.metrics) and frozen.split["test"]


# The encoder and its features


def test_a_scan_becomes_features_in_three_lines(run: PretrainResult, scan: Path) -> None:
    encoder = medcl3d.load_encoder(run.path)
    vector = medcl3d.extract_features(encoder, scan)
    volume = medcl3d.extract_features(encoder, scan, dense=True)
    assert isinstance(vector, Tensor) and vector.shape == (8,)
    assert isinstance(volume, Tensor) and volume.shape == (4, 32, 32, 32)


def test_encoder_declares_how_scans_are_prepared_for_it(run: PretrainResult, store: Store) -> None:
    encoder = medcl3d.load_encoder(run.weights)
    assert not encoder.training and encoder.patch_size == (16, 16, 16) and encoder.in_channels == 1
    assert (
        encoder.channels == (4, 8) and encoder.strides == ((1, 1, 1), (2, 2, 2)) and encoder.num_features == 8
    )
    assert encoder.intensity == store.intensity() and encoder.spacing_mm == (4.0, 4.0, 4.0)
    assert encoder(torch.zeros(2, 1, 16, 16, 16)).pooled.shape == (2, 8)


def test_folders_without_an_encoder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{tmp_path}: holds no encoder.safetensors"):
        medcl3d.load_encoder(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ConfigError, match="holds a fine-tuned model"):
        medcl3d.load_encoder(tmp_path)
    with pytest.raises(ConfigError, match=r"^nowhere: file not found"):
        medcl3d.load_encoder("nowhere")


class Pools(nn.Module):
    """Maps that are the crop itself, averaged over cubes of `stride` voxels, or their first voxels."""

    def __init__(self, stride: int, averages: bool = True):
        super().__init__()
        self.embeds_patches = averages
        self.channels, self.strides, self.num_features = (1,), ((stride,) * 3,), 1
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Features:
        stride = self.strides[0][0]
        found = F.avg_pool3d(x, stride) if self.embeds_patches else x[..., ::stride, ::stride, ::stride]
        return Features(found.mean((2, 3, 4)), (found,))


def pools(stride: int, patch: int = 8, averages: bool = True, **options: Any) -> PretrainedEncoder:
    intensity = {
        "kind": "none", "classes": [], "assume_spacing_mm": None, "spacing_mm": None, "nonfinite": "error",
        "channels": "error", "percentiles": [0.5, 99.5], "window_hu": [-1000.0, 1000.0], "crop": "none",
        "label_interpolation": "nearest", "store_as": "int16", **options,
    }  # fmt: skip
    sidecar = {"in_channels": 1, "spacing_mm": [1, 1, 1], "patch_size": [patch] * 3, "intensity": intensity}
    return PretrainedEncoder(Network(Pools(stride, averages)), sidecar, Path("encoder.safetensors")).eval()


def ramp(path: Path, shape: tuple[int, int, int], spacing: float = 1.0) -> np.ndarray:
    """A file whose values grow along the axes of an oblique, permuted, flipped grid."""
    angle = 0.3
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[0, 0, 1.0], [-1, 0, 0], [0, 1, 0]]) * spacing
    affine[:3, 3] = (5, -7, 11)
    voxels = np.einsum("i,ixyz->xyz", (0.4, -0.3, 0.2), np.indices(shape)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return voxels


@pytest.mark.filterwarnings("ignore:.*voxels of")
@pytest.mark.parametrize(
    ("stride", "shape", "spacing"), [(1, (9, 12, 7), 1), (2, (13, 20, 11), 1), (4, (24, 21, 26), 2.5)]
)
@pytest.mark.parametrize("averages", [True, False])
def test_a_map_is_where_the_voxels_are(
    tmp_path: Path, averages: bool, stride: int, shape: tuple[int, int, int], spacing: float
) -> None:
    """The average of a ramp is its value in the middle, so any shift of the map would show."""
    voxels = ramp(tmp_path / "a.nii.gz", shape, spacing)
    found = medcl3d.extract_features(
        pools(stride, averages=averages), tmp_path / "a.nii.gz", dense=True, layer=0
    )
    assert isinstance(found, Tensor) and found.shape == (1, *shape)
    # Voxels of the map that reach over the border average empty space too.
    inside = (slice(2 * stride, -2 * stride),) * 3 if stride > 1 else ()
    np.testing.assert_allclose(found[0].numpy()[inside], voxels[inside], atol=2e-3)


@pytest.mark.filterwarnings("ignore:.*voxels of")
def test_a_map_of_resampled_scans_is_on_the_files_grid(tmp_path: Path) -> None:
    voxels = ramp(tmp_path / "a.nii.gz", (14, 20, 18), 2.0)
    found = medcl3d.extract_features(pools(1, spacing_mm=[1.0, 1.0, 1.0]), tmp_path / "a.nii.gz", dense=True)
    assert isinstance(found, Tensor) and found.shape == (1, 14, 20, 18)
    np.testing.assert_allclose(found[0, 2:-2, 2:-2, 2:-2].numpy(), voxels[2:-2, 2:-2, 2:-2], atol=2e-2)


@pytest.mark.filterwarnings("ignore:.*voxels of")
@pytest.mark.parametrize(("crop", "border"), [("none", 1), ("body", 0)])
def test_a_map_continues_to_the_border_unless_the_scan_was_cropped(
    tmp_path: Path, crop: str, border: int
) -> None:
    """The prepared grid of coarser voxels ends before the outer voxels of the file."""
    voxels = np.random.default_rng(0).uniform(20, 60, (32, 32, 32)).astype(np.float32)
    if crop == "body":
        voxels[:6] = -1000.0
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 1.1, 1.0])), tmp_path / "a.nii.gz")
    encoder = pools(1, spacing_mm=[3.0, 3.0, 3.0], crop=crop, kind="ct" if crop == "body" else "none")
    found = medcl3d.extract_features(encoder, tmp_path / "a.nii.gz", dense=True)
    assert isinstance(found, Tensor) and found.shape == (1, 32, 32, 32)
    assert bool((found[0, 0] != 0).all()) == bool(border) and bool((found[0, 16, 16, 16] != 0).all())


def test_a_vector_is_the_mean_over_windows(tmp_path: Path) -> None:
    voxels = ramp(tmp_path / "a.nii.gz", (8, 12, 8))
    windows = [voxels[:, start : start + 8].mean() for start in (0, 4)]
    found = medcl3d.extract_features(pools(2), tmp_path / "a.nii.gz", overlap=0.5, windows=1)
    assert isinstance(found, Tensor) and found.item() == pytest.approx(np.mean(windows), abs=1e-3)


@pytest.mark.filterwarnings("ignore:.*voxels of")
def test_lists_and_folders_give_a_dict(run: PretrainResult, scan: Path) -> None:
    listed = medcl3d.extract_features(run.path, [scan])
    folder = medcl3d.extract_features(run.path, scan.parent)
    assert isinstance(folder, dict) and len(folder) == len(list(scan.parent.glob("*.nii.gz")))
    assert torch.equal(listed[str(scan)], folder[scan.name])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"overlap": 1.0}, "overlap"),
        ({"layer": 1}, "set dense"),
        ({"layer": 7, "dense": True}, "maps 0 to 1"),
        ({"intensity": "ct"}, "was trained on mri"),
        ({"windows": 0}, "windows"),
    ],
)
def test_features_refuse_fields(
    run: PretrainResult, scan: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        medcl3d.extract_features(run.path, scan, **fields)


def test_features_refuse_scans(run: PretrainResult, tmp_path: Path) -> None:
    (tmp_path / "text.nii.gz").write_text("not a scan")
    with pytest.raises(DataError, match=r"text\.nii\.gz"):
        medcl3d.extract_features(run.path, tmp_path / "text.nii.gz")
    voxels = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
    voxels[3, 3, 3] = np.nan
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "nan.nii.gz")
    with pytest.raises(DataError, match="trained on scans prepared with nonfinite = error"):
        medcl3d.extract_features(run.path, tmp_path / "nan.nii.gz")


@pytest.mark.filterwarnings("ignore:.*voxels of")
def test_a_decoder_that_was_trained_makes_the_map(tiny_store: Path, scan: Path, tmp_path: Path) -> None:
    fields = config(tiny_store, pairs={"voxel_correspondence": {"num_points": 4}}, objective="dense")
    run = medcl3d.pretrain(fields, out_dir=tmp_path / "dense", overrides={"train.steps": 1})
    encoder = run.encoder()
    assert encoder.network.decoder is not None
    decoded, finest = (medcl3d.extract_features(encoder, scan, dense=True, layer=i) for i in (None, 0))
    assert isinstance(decoded, Tensor) and isinstance(finest, Tensor)
    assert decoded.shape == (encoder.network.decoder.out_channels, 32, 32, 32)
    assert not torch.equal(decoded, finest)
    one = pools(1, patch=32)  # one window, and nothing to interpolate: what the decoder makes of the scan
    one.network.decoder = Negative()  # type: ignore[assignment]
    whole = medcl3d.extract_features(one, scan, dense=True, precision="float32")
    voxels = nib.load(scan).get_fdata()  # type: ignore[attr-defined]
    assert isinstance(whole, Tensor)
    np.testing.assert_allclose(whole[0].numpy(), -voxels, atol=1e-3 * np.abs(voxels).max())


class Negative(nn.Module):
    """A decoder that returns the crop, negated."""

    def forward(self, x: Tensor, maps: tuple[Tensor, ...]) -> Tensor:
        return -x


# The command


def features(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["features", *map(str, arguments)])
    return done.exit_code, done.output


@pytest.fixture
def scans(scan: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.nii.gz", "sub/b.nii.gz"):
        (folder / name).write_bytes(scan.read_bytes())
    return folder


def test_command_writes_the_features_of_python_and_resumes(
    run: PretrainResult, scans: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, message = features(run.path, scans, "--out", out, "--check")
    assert code == 0 and "a.safetensors" in message and not out.exists()
    assert features(run.path, scans, "--out", out)[0] == 0
    expected = medcl3d.extract_features(run.path, scans)
    assert isinstance(expected, dict)
    for name in ("a", "sub/b"):
        torch.testing.assert_close(
            load_file(out / f"{name}.safetensors")["features"], expected[f"{name}.nii.gz"]
        )
    before = (out / "a.safetensors").stat().st_mtime_ns
    (out / "sub" / "b.safetensors").unlink()
    code, message = features(run.path, scans, "--out", out)
    assert code == 0 and "1 of 2 scans were encoded by this run before" in message
    assert (out / "a.safetensors").stat().st_mtime_ns == before and (out / "sub" / "b.safetensors").is_file()
    code, message = features(run.path, scans, "--out", out, "--dense")
    assert code == 2 and "--force" in message, "vectors are not maps"
    assert features(run.path, scans, "--out", out, "--dense", "--force")[0] == 0
    dense = load_file(out / "a.safetensors")
    assert dense["features"].shape == (4, 32, 32, 32)
    np.testing.assert_allclose(dense["affine"].numpy(), nib.load(scans / "a.nii.gz").affine, atol=1e-5)


def test_a_table_has_one_row_per_scan_and_resumes(run: PretrainResult, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (scans / "bad.nii.gz").write_text("not a scan")
    code, message = features(run.path, scans, "--out", out, "--format", "csv")
    assert code == 3 and "bad.nii.gz" in message and "1 scans were not encoded, 2 were" in message
    first = (out / "features.csv").read_text()
    header, *rows = first.splitlines()
    assert header == "scan,origin," + ",".join(f"f{i}" for i in range(8))
    assert [row.split(",")[0] for row in rows] == ["a.nii.gz", "sub/b.nii.gz"]
    (scans / "bad.nii.gz").unlink()
    code, message = features(run.path, scans, "--out", out, "--format", "csv")
    assert code == 0 and "2 of 2 scans were encoded by this run before" in message
    assert (out / "features.csv").read_text() == first
    (scans / "a.nii.gz").unlink()
    code, message = features(run.path, scans, "--out", out, "--format", "csv")
    assert code == 2 and "a.nii.gz" in message, "a row of another scan"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("of a library")])
def test_features_computed_before_a_fault_are_kept(
    run: PretrainResult, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def faulty(encoder: PretrainedEncoder, path: Path, *rest: Any, **named: Any) -> Any:
        if path.name == "b.nii.gz":
            raise error
        return scan_features(encoder, path, *rest, **named)

    monkeypatch.setattr("medcl3d.downstream.features.scan_features", faulty)
    code, message = features(run.path, scans, "--out", tmp_path / "out", "--format", "csv")
    assert code == (3 if isinstance(error, RuntimeError) else 130)
    assert ("b.nii.gz: cannot be used" in message) is isinstance(error, RuntimeError)
    monkeypatch.undo()
    code, message = features(run.path, scans, "--out", tmp_path / "out", "--format", "csv")
    assert code == 0 and "1 of 2 scans were encoded by this run before" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "json"], "safetensors or csv"),
        (["--format", "csv", "--dense"], "one vector per scan"),
        (["--intensity", "ct"], "--intensity = ct"),
    ],
)
def test_command_refuses_options(
    run: PretrainResult, scans: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    code, output = features(run.path, scans, "--out", tmp_path / "out", *options)
    assert code == 2 and message in output
    code, output = features(run.path, scans, "--out", tmp_path / "out.nii.gz")
    assert code == 2 and "folder" in output
