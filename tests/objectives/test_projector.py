"""Batch norm compared with PyTorch's, and the layers of projectors; `test_two_ranks.py` tests several
ranks.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medcl3d.core.errors import ConfigError
from medcl3d.objectives.projector import GlobalBatchNorm, HeadNorm, Projector

CHANNELS = 5


def both(momentum: float | None = None, eps: float | None = None) -> tuple[GlobalBatchNorm, nn.BatchNorm1d]:
    """Ours and PyTorch's with the same random scale and shift; without arguments, with defaults."""
    chosen = {name: value for name, value in (("momentum", momentum), ("eps", eps)) if value is not None}
    ours, theirs = GlobalBatchNorm(CHANNELS, **chosen), nn.BatchNorm1d(CHANNELS, **chosen)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in ("weight", "bias"):
            values = torch.randn(CHANNELS, generator=rng)
            getattr(ours, name).copy_(values)
            getattr(theirs, name).copy_(values)
    return ours, theirs


def rows(num: int, seed: int, spread: float = 2.0) -> torch.Tensor:
    return torch.randn(num, CHANNELS, generator=torch.Generator().manual_seed(seed)) * spread + 3


@pytest.mark.parametrize(("momentum", "eps", "num"), [(None, None, 7), (0.4, 0.3, 7), (0.01, 1e-3, 2)])
def test_batch_norm_equals_pytorchs_in_output_gradient_and_running_statistics(
    momentum: float | None, eps: float | None, num: int
) -> None:
    ours, theirs = both(momentum, eps)
    for step in range(3):
        x = rows(num, step, spread=0.05 if step else 2.0)
        one, other = (x.clone().requires_grad_() for _ in range(2))
        made, expected = ours(one), theirs(other)
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
        for out, source in ((made, one), (expected, other)):
            out.pow(3).sum().backward()
            assert source.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(ours.mean, theirs.running_mean)
        torch.testing.assert_close(ours.var, theirs.running_var)
    ours.eval(), theirs.eval()
    before = ours.mean.clone(), ours.var.clone()
    torch.testing.assert_close(ours(rows(3, 9)), theirs(rows(3, 9)))
    assert torch.equal(ours.mean, before[0]) and torch.equal(ours.var, before[1])


def test_batch_norm_starts_as_the_identity() -> None:
    norm = GlobalBatchNorm(CHANNELS).eval()
    torch.testing.assert_close(norm(rows(4, 0)), nn.BatchNorm1d(CHANNELS).eval()(rows(4, 0)))
    assert {name for name, _ in norm.named_parameters()} == {"weight", "bias"}
    assert set(norm.state_dict()) == {"weight", "bias", "mean", "var"}


def test_a_single_row_keeps_finite_running_statistics() -> None:
    norm = GlobalBatchNorm(CHANNELS)
    assert torch.equal(norm(rows(1, 0)), torch.zeros(1, CHANNELS))
    torch.testing.assert_close(norm.mean, 0.1 * rows(1, 0)[0])
    torch.testing.assert_close(norm.var, torch.full((CHANNELS,), 0.9))


def test_running_statistics_stay_float32_if_rows_are_not() -> None:
    norm = GlobalBatchNorm(CHANNELS)
    norm(rows(6, 0).double())
    assert norm.mean.dtype == norm.var.dtype == torch.float32
    torch.testing.assert_close(norm.mean, 0.1 * rows(6, 0).mean(0))


def projector(norm: HeadNorm = "none", num_layers: int = 3, hidden: int = 16, unit: bool = True) -> Projector:
    torch.manual_seed(0)
    return Projector(6, hidden, 4, num_layers, norm, unit)


def features(num: int = 9) -> torch.Tensor:
    return torch.randn(num, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("norm", ["layer", "group", "batch", "none"])
def test_a_projector_is_linear_norm_and_relu_and_ends_linear_without_bias(
    norm: HeadNorm, num_layers: int
) -> None:
    made = projector(norm, num_layers, unit=False)
    linear = [layer for layer in made.modules() if isinstance(layer, nn.Linear)]
    widths = [6, *[16] * (num_layers - 1), 4]
    assert [(layer.in_features, layer.out_features) for layer in linear] == list(pairwise(widths))
    assert [layer.bias is None for layer in linear] == [False] * (num_layers - 1) + [True]
    x = features()
    for layer in linear[:-1]:
        x = layer(x)
        x = {
            "layer": lambda x: F.layer_norm(x, (16,)),
            "group": lambda x: F.group_norm(x, 8),
            "batch": lambda x: F.batch_norm(x, None, None, training=True),
            "none": lambda x: x,
        }[norm](x)
        x = x.relu()
    torch.testing.assert_close(made(features()), linear[-1](x), rtol=1e-4, atol=1e-5)


def test_channels_that_eight_does_not_divide_are_one_group() -> None:
    made = projector("group", 2, hidden=12, unit=False)
    first, last = (layer for layer in made.modules() if isinstance(layer, nn.Linear))
    torch.testing.assert_close(made(features()), last(F.group_norm(first(features()), 1).relu()))


def test_a_projection_has_length_1_if_unit() -> None:
    unit, free = projector()(features()), projector(unit=False)(features())
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(9))
    torch.testing.assert_close(unit, free / free.norm(dim=1, keepdim=True))
    torch.manual_seed(0)
    assert torch.equal(Projector(6, 16, 4, 3, "none")(features()), unit)


def test_a_projection_is_float32_for_any_autocast_and_features() -> None:
    made = projector()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(made(features()), projector()(features()))
    half = features().bfloat16()
    assert torch.equal(made(half), made(half.float())) and made(half).dtype == torch.float32
    assert made.double()(features().double()).dtype == torch.float64


def test_an_unknown_norm_is_refused_by_the_name_of_its_field_even_with_a_single_layer() -> None:
    with pytest.raises(ConfigError, match=r"^norm = 'grup'.*layer, group, batch"):
        projector("grup", num_layers=1)  # type: ignore[arg-type]
