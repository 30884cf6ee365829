"""Each intensity augmentation compared with its definition; neutral parameters keep every bit."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from medcl3d.views.intensity import Intensity, low_resolution_matrix, named

OFF = {
    f"{name}_probability": 0.0
    for name in ("blur", "low_resolution", "noise", "contrast", "brightness", "gamma", "cutout")
}
SHAPE = (20, 24, 28)
NAMES = [name.removesuffix("_probability") for name in OFF]


def only(name: str, **fields: object) -> Intensity:
    return Intensity(**(OFF | {f"{name}_probability": 1.0} | fields))  # type: ignore[arg-type]


def change(
    intensity: Intensity, voxels: torch.Tensor, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    each = [intensity.draw(np.random.default_rng([7, i])) for i in range(len(voxels))]
    parameters = {key: torch.stack([torch.as_tensor(one[key]) for one in each]) for key in each[0]}
    changed = voxels.clone()
    intensity.apply(changed, parameters, torch.tensor([spacing] * len(voxels)))
    return changed, named(parameters)


@pytest.fixture
def crops() -> torch.Tensor:
    return torch.randn(6, 2, *SHAPE, generator=torch.Generator().manual_seed(0))


def test_neutral_parameters_keep_every_bit(crops: torch.Tensor) -> None:
    assert torch.equal(change(Intensity(**OFF), crops)[0], crops)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_samples_with_neutral_parameters_keep_every_bit(name: str, crops: torch.Tensor) -> None:
    crops = crops.repeat(4, 1, 1, 1, 1)
    changed, _ = change(only(name, **{f"{name}_probability": 0.5}), crops)
    same = [torch.equal(a, b) for a, b in zip(changed, crops, strict=True)]
    assert 4 <= sum(same) <= 20


@pytest.mark.parametrize(("unit", "spacing"), [("voxel", (1.0, 2.0, 0.5)), ("mm", (1.0, 2.0, 0.5))])
def test_blur_equals_scipys_away_from_the_border(
    unit: str, spacing: tuple[float, ...], crops: torch.Tensor
) -> None:
    changed, p = change(only("blur", blur_unit=unit, blur_sigma=(0.4, 0.8)), crops, spacing)
    for i, sigma in enumerate(p["blur_sigma"].tolist()):
        sigmas = [sigma / s if unit == "mm" else sigma for s in spacing]
        expected = gaussian_filter(crops[i, 0].numpy().astype(np.float64), sigmas, truncate=8)
        inner = (slice(8, -8),) * 3
        np.testing.assert_allclose(changed[i, 0].numpy()[inner], expected[inner], atol=1e-4)


def test_an_axis_of_two_voxels_is_blurred(crops: torch.Tensor) -> None:
    pair = crops[:, :, :2]
    changed, _ = change(only("blur", blur_sigma=(0.5, 0.5)), pair)
    weight = np.exp(-0.5 / 0.5**2)
    line = (pair + weight * pair.flip(2)) / (1 + weight)  # along the axis of two voxels only
    expected = gaussian_filter(line[0, 0].double().numpy(), (0, 0.5, 0.5), truncate=8)
    np.testing.assert_allclose(changed[0, 0].numpy()[:, 8:-8, 8:-8], expected[:, 8:-8, 8:-8], atol=1e-4)


def test_blur_keeps_a_constant_up_to_the_border() -> None:
    torch.testing.assert_close(
        change(only("blur"), torch.full((2, 1, *SHAPE), 3.0))[0], torch.full((2, 1, *SHAPE), 3.0)
    )


@pytest.mark.parametrize("length", [1, 7, 32])
def test_low_resolution_averages_cells_and_interpolates_between_them(length: int) -> None:
    torch.testing.assert_close(
        low_resolution_matrix(torch.ones(1), length)[0],
        torch.eye(length, dtype=torch.float64),
        atol=0,
        rtol=0,
    )
    matrix = low_resolution_matrix(torch.tensor([0.5, 0.63, 0.9]), length)
    torch.testing.assert_close(matrix.sum(2), torch.ones(3, length, dtype=torch.float64))
    if length == 32:
        signal = torch.randn(1, 1, length, dtype=torch.float64)
        down = signal.view(1, 1, 16, 2).mean(-1)
        expected = torch.nn.functional.interpolate(down, size=length, mode="linear", align_corners=False)
        torch.testing.assert_close(signal @ matrix[0].T, expected)


def test_the_lowest_resolution_is_the_mean_of_the_axis() -> None:
    matrix = low_resolution_matrix(torch.tensor([0.1]), 8)[0]
    torch.testing.assert_close(matrix, torch.full((8, 8), 1 / 8, dtype=torch.float64))


def test_low_resolution_removes_fine_and_keeps_coarse_detail(crops: torch.Tensor) -> None:
    changed, _ = change(only("low_resolution", low_resolution=(0.5, 0.6)), crops)
    assert (changed.std((1, 2, 3, 4)) < 0.5).all()
    ramp = torch.linspace(-1, 1, SHAPE[2]).expand(1, 1, *SHAPE).contiguous()
    torch.testing.assert_close(
        change(only("low_resolution"), ramp)[0][..., 3:-3], ramp[..., 3:-3], atol=0.05, rtol=0
    )


def test_noise_has_the_drawn_standard_deviation_and_differs_between_samples_and_channels(
    crops: torch.Tensor,
) -> None:
    changed, p = change(only("noise"), torch.zeros_like(crops))
    assert torch.equal(changed, change(only("noise"), torch.zeros_like(crops))[0])  # it depends on the seed
    torch.testing.assert_close(changed.std((1, 2, 3, 4)).double(), p["noise_std"], rtol=0.05, atol=0)
    flat = (changed / p["noise_std"].float().view(-1, 1, 1, 1, 1)).flatten(2).flatten(0, 1)
    assert torch.corrcoef(flat).fill_diagonal_(0).abs().max() < 0.06


def test_contrast_scales_about_the_mean_and_brightness_shifts(crops: torch.Tensor) -> None:
    changed, p = change(only("contrast", brightness_probability=1.0), crops + 2)
    mean = (crops + 2).mean((2, 3, 4), keepdim=True)
    factor, shift = (p[name].float().view(-1, 1, 1, 1, 1) for name in ("contrast", "brightness"))
    torch.testing.assert_close(changed, mean + (crops + 2 - mean) * factor + shift)
    assert (
        (p["contrast"] >= 0.75).all()
        and (p["contrast"] <= 1.33).all()
        and (p["brightness"].abs() <= 0.3).all()
    )


@pytest.mark.parametrize("inverted", [0.0, 1.0])
def test_gamma_is_a_power_of_the_views_own_range_and_keeps_mean_and_spread(
    inverted: float, crops: torch.Tensor
) -> None:
    changed, p = change(only("gamma", gamma_inverted=inverted), crops)
    for i in range(len(crops)):
        for before, after in zip(
            crops[i].double() * (1 - 2 * inverted), changed[i].double() * (1 - 2 * inverted), strict=True
        ):
            power = ((before - before.min()) / (before.max() - before.min())) ** p["gamma"][i]
            expected = (power - power.mean()) / power.std(correction=0) * before.std(
                correction=0
            ) + before.mean()
            torch.testing.assert_close(after, expected, atol=1e-4, rtol=1e-4)


def test_gamma_of_a_constant_view_is_the_view() -> None:
    assert torch.equal(
        change(only("gamma"), torch.full((2, 1, *SHAPE), 3.0))[0], torch.full((2, 1, *SHAPE), 3.0)
    )


def test_cutout_is_one_box_of_the_drawn_size_filled_with_the_mean(crops: torch.Tensor) -> None:
    changed, p = change(only("cutout"), crops)
    for i in range(len(crops)):
        cut = (changed[i] != crops[i]).all(0)
        sides = [
            cut.any(dim).any(0 if axis == 2 else -1).sum().item() for axis, dim in ((0, 2), (1, 0), (2, 0))
        ]
        assert cut.sum() == np.prod(sides)
        for side, length, share in zip(sides, SHAPE, p["cutout_size"][i].tolist(), strict=True):
            assert abs(side - length * share) <= 1
        for before, after in zip(crops[i], changed[i], strict=True):
            torch.testing.assert_close(after[cut], before.mean().expand(int(cut.sum())))


def test_cutout_is_at_the_drawn_position_along_each_axis(crops: torch.Tensor) -> None:
    changed, p = change(only("cutout"), crops)
    for i in range(len(crops)):
        corner, size = p["cutout_corner"][i].tolist(), p["cutout_size"][i].tolist()
        centres = np.meshgrid(*((np.arange(n) + 0.5) / n for n in SHAPE), indexing="ij")
        expected = np.all(
            [(c <= x) & (x < c + s) for x, c, s in zip(centres, corner, size, strict=True)], axis=0
        )
        np.testing.assert_array_equal((changed[i] != crops[i]).any(0).numpy(), expected)


def test_cutout_of_half_an_axis_fills_half_its_voxels_and_keeps_the_shape() -> None:
    ramp = torch.arange(6.0).view(1, 1, 6, 1, 1).expand(1, 1, 6, 6, 6).contiguous()
    intensity = only("cutout")
    drawn = intensity.draw(np.random.default_rng(0))
    parameters = {key: torch.as_tensor(value)[None] for key, value in drawn.items()}
    parameters["intensity"][:, -6:] = torch.tensor([0.25, 0, 0, 0.5, 1, 1])  # voxel centres are on both faces
    changed = ramp.clone()
    intensity.apply(changed, parameters, torch.ones(1, 3))
    assert changed.shape == ramp.shape
    assert changed[0, 0, :, 0, 0].tolist() == [0, 2.5, 2.5, 2.5, 4, 5]
