"""Sliding-window prediction of whole scans, and test-time flips."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from medcl3d.downstream.sliding_window import mean_of_flips, probabilities_of, sliding_window


def test_one_window_over_the_whole_volume_is_a_forward_pass() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.GroupNorm(2, 4)).eval()
    volume = torch.randn(2, 8, 10, 12)
    predict = probabilities_of(model, torch.device("cpu"), None)
    with torch.no_grad():
        found = sliding_window(predict, volume, (8, 10, 12), fill=[0, 0])
        torch.testing.assert_close(found, model(volume[None])[0].softmax(0))
    torch.testing.assert_close(found.sum(0), torch.ones(8, 10, 12))


def test_overlapping_windows_agree_for_a_voxelwise_model() -> None:
    volume = torch.randn(1, 21, 18, 33)
    found = sliding_window(lambda x: torch.cat([x, x**2], 1), volume, (8, 8, 16), fill=[0])
    torch.testing.assert_close(found, torch.cat([volume, volume**2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 20, 16), (5, 6, 7)])
def test_a_small_volume_is_padded_evenly_with_its_fill(shape: tuple[int, int, int]) -> None:
    seen: list[Tensor] = []

    def predict(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x.clone()

    volume = torch.randn(2, *shape)
    found = sliding_window(predict, volume, (8, 12, 16), fill=[-3.0, 5.0])
    torch.testing.assert_close(found, volume, rtol=1e-4, atol=1e-5)
    assert all(x.shape[2:] == (8, 12, 16) for x in seen)
    assert (seen[0][0, 0, 0] == -3.0).all() and (seen[0][0, 1, -1] == 5.0).all()


def test_the_centre_of_a_window_has_more_weight_than_its_border() -> None:
    """A predictor of window positions: near the start of a later window, the earlier window dominates."""
    ramp = torch.linspace(0, 1, 16)
    found = sliding_window(
        lambda x: ramp[None, None, :, None, None].expand_as(x).clone(),
        torch.zeros(1, 24, 4, 4),
        (16, 4, 4),
        fill=[0],
    )
    assert found[0, 9, 2, 2] > 0.9 * ramp[9]


def test_the_softmax_is_in_float32_under_bfloat16() -> None:
    model = nn.Conv3d(1, 3, 1)
    found = probabilities_of(model, torch.device("cpu"), torch.bfloat16)(torch.randn(1, 1, 4, 4, 4))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(1), torch.ones(1, 4, 4, 4))


EVERY_CHOICE = list(product([False, True], repeat=3))


@pytest.mark.parametrize("flips", EVERY_CHOICE)
def test_flips_do_not_change_a_network_that_commutes_with_mirroring(flips: tuple[bool, bool, bool]) -> None:
    """For all windows: those at the end of a volume are closer together than the others."""
    torch.manual_seed(0)
    kernel = torch.randn(3, 2, 3, 3, 3, dtype=torch.float64)
    for axis in (2, 3, 4):
        kernel = kernel + kernel.flip(axis)
    volume = torch.randn(2, 13, 11, 9, dtype=torch.float64)

    def predict(x: Tensor) -> Tensor:
        return torch.nn.functional.conv3d(x, kernel, padding=1).softmax(1)

    once, again = (
        sliding_window(p, volume, (8, 6, 4), fill=[0, 0], overlap=0.3)
        for p in (predict, mean_of_flips(predict, flips))
    )
    torch.testing.assert_close(again, once, rtol=0, atol=1e-6)


@pytest.mark.parametrize("flips", EVERY_CHOICE)
def test_the_mean_over_flips_is_of_every_combination_of_the_chosen_axes(
    flips: tuple[bool, bool, bool],
) -> None:
    torch.manual_seed(0)
    volume, kernel = torch.randn(1, 13, 11, 9), torch.randn(2, 1, 3, 3, 3)
    sizes: list[int] = []

    def predict(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return torch.nn.functional.conv3d(x, kernel, padding=1).softmax(1)

    def whole(p: object) -> Tensor:
        return sliding_window(p, volume, (8, 6, 4), fill=[0], windows=3)  # type: ignore[arg-type]

    once = whole(predict)
    batches = len(sizes)
    combinations = [
        [2 + k for k in range(3) if some[k]]
        for some in EVERY_CHOICE
        if all(b or not a for a, b in zip(some, flips, strict=True))
    ]
    expected = torch.stack(
        [whole(lambda x, axes=axes: predict(x.flip(axes)).flip(axes)) for axes in combinations]
    ).mean(0)
    sizes.clear()
    found = whole(mean_of_flips(predict, flips))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert len(sizes) == batches * 2 ** sum(flips) and max(sizes) <= 3, (
        "flips are predicted one after another"
    )
    assert any(flips) == (not torch.allclose(found, once, atol=1e-3))
    assert any(flips) or torch.equal(found, once)
