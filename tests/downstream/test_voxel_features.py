"""Features at single voxels: sliding window, accumulation on each map's grid, interpolation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medcl3d.config.field_types import Choice
from medcl3d.core.embeddings import Features
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.core.geometry import Box, Triple
from medcl3d.downstream.dense.voxel_features import DenseEncoder, FeatureMap, ScanFeatures, VoxelFeatures
from medcl3d.encoders.network import Network, build_network
from medcl3d.store.store import Store

SIZE = (8, 8, 8)
CPU = torch.device("cpu")


def unet(decoder: bool = False) -> Network:
    torch.manual_seed(0)
    choice = Choice("unet3d", {"channels": (4, 6), "strides": (1, (2, 2, 1))})
    return build_network(choice, 1, decoder=decoder).eval()


def described(store: Store, network: Network, scan: int, **fields: object) -> ScanFeatures:
    options = VoxelFeatures(**fields)  # type: ignore[arg-type]
    return DenseEncoder(network, store, options, SIZE, CPU, None).scan(scan)


def slow_reference(
    store: Store, network: Network, scan: int, overlap: float, voxels: np.ndarray
) -> np.ndarray:
    """One window after the other, one voxel after the other."""
    shape = np.array(store.collection.shapes[scan])
    multiple = np.array(network.minimum_multiple)
    starts = []
    before = []
    for n, p, m in zip(shape, SIZE, multiple, strict=True):
        last = int(np.ceil(max(0, n - p) / m) * m)
        number = 1 + int(np.ceil(last / (p * (1 - overlap))))
        before.append((p + last - n) // 2)
        starts.append([round(x) * m - before[-1] for x in np.linspace(0, last // m, number)])
    strides = [np.array(s) for s in network.encoder.strides]  # type: ignore[union-attr]
    if network.decoder is not None:
        strides.append(np.ones(3, dtype=int))
    total: list[dict[tuple[int, ...], np.ndarray]] = [{} for _ in strides]
    weight: list[dict[tuple[int, ...], float]] = [{} for _ in strides]
    for start in product(*starts):
        crop = torch.from_numpy(store.read_crop(scan, Box(tuple(map(int, start)), SIZE)))[None]  # type: ignore[arg-type]
        with torch.no_grad():
            found = network(crop)
        maps = [*found.maps, *([found.decoded] if found.decoded is not None else [])]
        for k, (stride, values) in enumerate(zip(strides, maps, strict=True)):
            cells = np.array(values.shape[2:])
            for cell in product(*(range(n) for n in cells)):
                offset = (np.array(cell) - (cells - 1) / 2) / (0.125 * cells)
                importance = max(float(np.exp(-0.5 * (offset**2).sum())), 1e-3)
                place = tuple(((np.array(start) + np.array(before)) // stride + cell).tolist())
                value = values[(0, slice(None), *cell)].numpy().astype(np.float64)
                total[k][place] = total[k].get(place, 0) + importance * value
                weight[k][place] = weight[k].get(place, 0.0) + importance
    rows = []
    for voxel in voxels:
        row = []
        for k, stride in enumerate(strides):
            size = np.array(list(total[k])).max(0)
            at = np.clip((voxel + np.array(before)) / stride, 0, size)  # convolutions
            low = np.floor(at).astype(int)
            value = np.zeros_like(next(iter(total[k].values())))
            for corner in product((0, 1), repeat=3):
                share = np.prod(np.where(corner, at - low, 1 - (at - low)))
                if share:
                    place = tuple((low + corner).tolist())
                    value = value + share * total[k][place] / weight[k][place]
            row.append(value)
        rows.append(np.concatenate(row))
    return np.array(rows)


@pytest.mark.parametrize(("decoder", "overlap", "scan"), [(False, 0.25, 1), (True, 0.0, 6), (False, 0.5, 0)])
def test_features_equal_a_slow_reference(ball_store: Store, decoder: bool, overlap: float, scan: int) -> None:
    network = unet(decoder)
    voxels = np.random.default_rng(0).integers(0, ball_store.collection.shapes[scan], (40, 3))
    found = described(ball_store, network, scan, overlap=overlap, windows=3).at(voxels).numpy()
    wanted = slow_reference(ball_store, network, scan, overlap, voxels)
    assert found.shape == wanted.shape == (40, 10 + 4 * decoder)
    # The importance of MONAI has a minimum of its own, so weights differ in the corners of a window.
    np.testing.assert_allclose(found, wanted, atol=2e-3 * np.abs(wanted).max())


class Coordinates(nn.Module):
    """An encoder whose features are its input, averaged over each cell of two maps."""

    channels = (3, 3)
    strides: tuple[Triple, ...] = ((2, 2, 1), (4, 4, 2))
    num_features = 3
    embeds_patches = True

    def forward(self, x: Tensor) -> Features:
        maps = tuple(F.avg_pool3d(x, stride, stride) for stride in self.strides)
        return Features(x.mean((2, 3, 4)), maps)


class CoordinateStore:
    """A store of one scan whose voxels hold their own coordinates."""

    def __init__(self, shape: Triple):
        self.collection = type("Geometry", (), {"shapes": np.array([shape])})()
        self.scans = [{"scan": "one", "normalisation": {"fill": [0.0, 0.0, 0.0]}}]
        self.root = "nowhere"

    def read_volume(self, scan: int) -> np.ndarray:
        return np.indices(self.collection.shapes[scan]).astype(np.float32)  # type: ignore[attr-defined]


@pytest.mark.parametrize("shape", [(21, 30, 17), (16, 19, 25)])
def test_features_that_are_coordinates_are_exact_inside_the_scan(shape: Triple) -> None:
    found = described(CoordinateStore(shape), Network(Coordinates()), 0)  # type: ignore[arg-type]
    every = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1).reshape(-1, 3)
    # Nearer to the border, cells of the coarse map contain voxels outside the scan.
    inside = every[((every >= 7) & (every < np.array(shape) - 7)).all(1)]
    rng = np.random.default_rng(0)
    for voxels in (inside, inside + rng.uniform(-0.4, 0.4, inside.shape)):
        np.testing.assert_allclose(found.at(voxels).numpy(), np.tile(voxels, 2), atol=1e-4)


def test_beyond_the_outermost_voxels_a_map_is_constant() -> None:
    one = FeatureMap(torch.arange(4.0).reshape(4, 1, 1, 1), (2, 1, 1), (0, 0, 0), (0.5, 0, 0))
    positions = np.array([[-3, 0, 0], [0, 0, 0], [0.5, 0, 0], [1.5, 0, 0], [6.5, 0, 0], [9, 0, 0]])
    assert one.at(positions)[:, 0].tolist() == [0, 0, 0, 0.5, 3, 3]


@pytest.mark.parametrize("decoder", [False, True])
def test_a_linear_model_may_be_applied_before_the_interpolation(
    ball_store: Store, decoder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medcl3d.downstream.dense.voxel_features.VALUES_AT_ONCE", 5000)  # several slabs
    features = described(ball_store, unet(decoder), 1)
    shape = tuple(ball_store.collection.shapes[1])
    every = np.stack(np.unravel_index(np.arange(np.prod(shape)), shape), 1)
    weight, bias = torch.randn(sum(features.parts), 5), torch.randn(5)
    scores = features.at(every) @ weight + bias
    found = torch.from_numpy(features.classify(weight, bias).ravel()).long()
    best, second = scores.topk(2, dim=1).values.T
    clear = best - second > 1e-4
    assert clear.float().mean() > 0.99 and (found == scores.argmax(1))[clear].all()


def test_the_batch_of_windows_has_no_effect(ball_store: Store) -> None:
    one, many = (described(ball_store, unet(), 1, windows=n) for n in (1, 7))
    for a, b in zip(one.maps, many.maps, strict=True):
        torch.testing.assert_close(a.values, b.values, rtol=1e-4, atol=1e-5)


def test_maps_are_chosen(ball_store: Store) -> None:
    network = unet(decoder=True)
    widths = {
        maps: sum(described(ball_store, network, 0, maps=maps).parts)
        for maps in ("all", "encoder", "decoded")
    }
    assert widths == {"all": 14, "encoder": 10, "decoded": 4}
    with pytest.raises(ConfigError, match=r"voxel_features.maps = decoded: the encoder has no decoder"):
        described(ball_store, unet(), 0, maps="decoded")


def test_non_finite_features_are_refused(ball_store: Store) -> None:
    network = unet()
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    with pytest.raises(DataError, match="features of scan 'scan2' are not finite"):
        described(ball_store, network, 2)
