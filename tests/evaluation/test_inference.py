"""Whole scans from patches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medcl3d.evaluation.inference import probabilities_of, sliding_window


def test_one_window_that_covers_the_volume_is_a_plain_forward_pass() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.GroupNorm(2, 4)).eval()
    volume = torch.randn(2, 8, 10, 12)
    predict = probabilities_of(model, torch.device("cpu"), None)
    with torch.no_grad():
        found = sliding_window(predict, volume, (8, 10, 12), fill=[0, 0])
        torch.testing.assert_close(found, model(volume[None])[0].softmax(0))
    torch.testing.assert_close(found.sum(0), torch.ones(8, 10, 12))


def test_overlapping_windows_agree_where_the_model_sees_one_voxel() -> None:
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


def test_the_middle_of_a_window_weighs_more_than_its_border() -> None:
    """A predictor that says where in its window a voxel lies: next to the start of a later window the earlier one rules."""
    ramp = torch.linspace(0, 1, 16)
    found = sliding_window(lambda x: ramp[None, None, :, None, None].expand_as(x).clone(), torch.zeros(1, 24, 4, 4), (16, 4, 4), fill=[0])
    assert found[0, 9, 2, 2] > 0.9 * ramp[9]


def test_bfloat16_is_undone_before_the_softmax() -> None:
    model = nn.Conv3d(1, 3, 1)
    found = probabilities_of(model, torch.device("cpu"), torch.bfloat16)(torch.randn(1, 1, 4, 4, 4))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(1), torch.ones(1, 4, 4, 4))
