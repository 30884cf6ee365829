"""Learning rate schedule, layer decay, weight decay, LARS against a loop, and resumed runs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medcl3d.config.field_types import Choice
from medcl3d.config.loading import parse
from medcl3d.core.embeddings import Loss
from medcl3d.core.errors import ConfigError
from medcl3d.encoders.decoder import Decoder
from medcl3d.encoders.network import Network, build_network
from medcl3d.training.lars import LARS
from medcl3d.training.loop import fit
from medcl3d.training.optim import build_optimizer, lr_factor, parameter_groups, set_rate
from medcl3d.training.options import FitOptions
from medcl3d.training.run_folder import run_folder

VIT = Choice("vit3d", {"patch": (4, 4, 4), "hidden_size": 12, "num_layers": 3, "num_registers": 2})
SWIN = Choice("swin3d", {"feature_size": 6, "num_heads": (1, 2, 2, 3), "window_size": (2, 2, 2)})
UNET = Choice("unet3d", {"channels": (4, 8), "strides": (1, 2)})


def test_rate_rises_linearly_and_falls_by_half_a_cosine() -> None:
    rates = [lr_factor(step, 110, 10) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1 and rates[60] == pytest.approx(0.5) and rates[110] == pytest.approx(0)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_norms_and_biases_are_not_decayed() -> None:
    model = nn.Sequential(nn.Conv3d(1, 4, 3), nn.GroupNorm(2, 4))
    decayed, free = parameter_groups(model, 0.05)
    assert [p.ndim for p in decayed["params"]] == [5] and decayed["weight_decay"] == 0.05
    assert len(free["params"]) == 3 and free["weight_decay"] == 0


@pytest.mark.parametrize(("choice", "name"), [(VIT, "registers"), (SWIN, "relative_position_bias_table")])
def test_tokens_and_learned_positions_are_not_decayed(choice: Choice, name: str) -> None:
    network = build_network(choice, 1, decoder=False)
    _, free = parameter_groups(network, 0.05)
    wanted = [p for n, p in network.named_parameters() if n.endswith(name)]
    assert wanted and all(p.ndim > 1 and any(p is q for q in free["params"]) for p in wanted)


def test_adamw_resumes_from_a_checkpoint_with_the_older_groups() -> None:
    """The former groups, written out: same positions, hence the same moments and bitwise the same weights."""
    torch.manual_seed(0)
    network, x = build_network(UNET, 1, decoder=True), torch.randn(2, 1, 8, 8, 8)
    trained = list(network.parameters())
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    old = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.999))

    def step(optimizer: torch.optim.Optimizer) -> list[Tensor]:
        optimizer.zero_grad()
        network(x).decoded.square().mean().backward()
        optimizer.step()
        return [p.detach().clone() for p in network.parameters()]

    step(old)
    weights, moments = {k: v.clone() for k, v in network.state_dict().items()}, old.state_dict()
    moments = {
        **moments,
        "state": {k: {n: t.clone() for n, t in v.items()} for k, v in moments["state"].items()},
    }
    expected = step(old)
    network.load_state_dict(weights)
    new = build_optimizer(network, "adamw", lr=1e-2, weight_decay=0.05)
    new.load_state_dict(moments)
    set_rate(new, 1e-2)
    assert all(torch.equal(a, b) for a, b in zip(step(new), expected, strict=True))


def test_adamw_is_fused_and_equals_one_operation_after_the_other() -> None:
    def trained(fused: bool | None) -> list[Tensor]:
        torch.manual_seed(0)
        network, x = build_network(UNET, 1, decoder=False), torch.randn(2, 1, 8, 8, 8)
        optimizer = build_optimizer(network, "adamw", lr=1e-2, weight_decay=0.05)
        assert optimizer.defaults["fused"]
        for group in optimizer.param_groups:
            group["fused"] = fused
        for _ in range(5):
            optimizer.zero_grad()
            network(x).pooled.square().mean().backward()
            optimizer.step()
        return list(network.parameters())

    for fast, slow in zip(trained(True), trained(None), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-6)


def lars_by_loops(
    weights: list[np.ndarray], gradients: list[list[np.ndarray]], rates: list[float], decay: float
) -> list[np.ndarray]:
    """Algorithm 1 of You et al. 2017, one number at a time; one-dimensional weights use plain momentum."""
    weights, velocities = [w.copy() for w in weights], [np.zeros_like(w) for w in weights]
    for step, rate in zip(gradients, rates, strict=True):
        for w, v, g in zip(weights, velocities, step, strict=True):
            size, slope = sum(float(a) ** 2 for a in w.flat) ** 0.5, sum(float(a) ** 2 for a in g.flat) ** 0.5
            excluded = w.ndim <= 1
            beta = 0.0 if excluded else decay
            local = 1.0 if excluded or size == 0 or slope == 0 else 1e-3 * size / (slope + beta * size)
            for i in np.ndindex(*w.shape):
                v[i] = 0.9 * v[i] + rate * local * (g[i] + beta * w[i])
                w[i] = w[i] - v[i]
    return weights


def test_lars_equals_a_loop_and_excludes_norms_and_biases() -> None:
    rng = np.random.default_rng(0)
    shapes, rates = [(3, 2, 2), (4,), (2, 3), (2, 2)], [0.5, 0.3, 2.0]
    start = [rng.normal(size=shape) for shape in shapes]
    start[2][:] = 0  # a weight with norm 0 still changes
    gradients = [[rng.normal(size=shape) for shape in shapes] for _ in rates]
    gradients[1][3][:] = 0
    model = nn.Module()
    for i, values in enumerate(start):
        model.register_parameter(f"w{i}", nn.Parameter(torch.from_numpy(values.copy())))
    optimizer = build_optimizer(model, "lars", lr=1.0, weight_decay=0.1)
    assert isinstance(optimizer, LARS)
    for rate, step in zip(rates, gradients, strict=True):
        set_rate(optimizer, rate)
        for parameter, gradient in zip(model.parameters(), step, strict=True):
            parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
    for parameter, expected in zip(
        model.parameters(), lars_by_loops(start, gradients, rates, 0.1), strict=True
    ):
        torch.testing.assert_close(parameter.detach(), torch.from_numpy(expected), rtol=1e-12, atol=1e-14)


def rates_of(model: nn.Module, decay: float) -> dict[str, float]:
    optimizer = build_optimizer(model, "adamw", lr=1.0, weight_decay=0.05, layer_decay=decay)
    set_rate(optimizer, 2.0)
    of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return {name: of[id(p)] for name, p in model.named_parameters()}


def test_layers_of_a_vit_have_the_rates_of_beit() -> None:
    model = nn.ModuleDict({"network": build_network(VIT, 1, decoder=True), "head": nn.Linear(12, 2)})
    rates = rates_of(model, 0.5)
    for name, rate in rates.items():
        inside = name.removeprefix("network.encoder.")
        depth = 4  # last norm, decoder, head
        if inside.startswith(("patch_embedding.", "registers")):
            depth = 0
        elif inside.startswith("blocks."):
            depth = 1 + int(inside.split(".")[1])
        assert rate == 2 * 0.5 ** (4 - depth), name
    assert (
        rates["network.encoder.norm.weight"]
        == rates["head.weight"]
        == rates["network.decoder.input_skip.0.conv1.conv.weight"]
        == 2
    )
    assert rates["network.encoder.registers"] == rates["network.encoder.patch_embedding.bias"] == 0.125


@pytest.mark.parametrize(
    ("choice", "first", "last", "num_layers"),
    [
        (UNET, "encoder.stages.0.0.conv1.conv.weight", "encoder.stages.1.0.norm2.bias", 2),
        (
            SWIN,
            "encoder.swinViT.patch_embed.proj.weight",
            "encoder.swinViT.layers4.0.downsample.norm.bias",
            5,
        ),
        (
            Choice("resnet3d", {"depth": 10, "width": 0.125}),
            "encoder.bn1.weight",
            "encoder.layer4.0.conv2.weight",
            5,
        ),
    ],
)
def test_stages_of_other_encoders_have_decaying_rates(
    choice: Choice, first: str, last: str, num_layers: int
) -> None:
    rates = rates_of(build_network(choice, 1, decoder=False), 0.5)
    assert rates[first] == 2 * 0.5**num_layers and rates[last] == 2 * 0.5
    assert len(set(rates.values())) == num_layers


def test_the_first_group_has_the_full_rate_and_nothing_is_decayed_twice() -> None:
    groups = parameter_groups(build_network(VIT, 1, decoder=True), 0.05, 0.5)
    assert groups[0]["lr_share"] == 1 and [g["lr_share"] for g in groups] == sorted(
        (g["lr_share"] for g in groups), reverse=True
    )
    assert {(g["decays"], g["weight_decay"]) for g in groups} == {(True, 0.05), (False, 0.0)}
    ids = [id(p) for g in groups for p in g["params"]]
    assert len(ids) == len(set(ids)) == len(list(build_network(VIT, 1, decoder=True).parameters()))


def test_an_encoder_that_does_not_name_its_layers_is_refused() -> None:
    class Plain(nn.Conv3d):
        """A third-party encoder."""

    network = Network(Plain(1, 4, 3), Decoder(1, (4,), ((1, 1, 1),)))
    with pytest.raises(ConfigError, match=r"train.layer_decay: Plain does not name its layers"):
        build_optimizer(network, "adamw", lr=1.0, weight_decay=0.0, layer_decay=0.5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"momentum": 0.9}, r"momentum = 0.9: adamw has its own two momenta"),
        ({"optimizer": "lars", "nesterov": True}, r"nesterov: lars has no Nesterov momentum"),
        ({"optimizer": "sgd", "momentum": 0.0, "nesterov": True}, r"nesterov: sgd has no Nesterov momentum"),
        ({"layer_decay": 1.5}, r"layer_decay"),
        ({"optimizer": "adam"}, r"optimizer"),
    ],
)
def test_incompatible_fields_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse({"steps": 1, "samples_per_step": 1, **fields}, FitOptions, "test")


def learn(path: Path, fields: dict[str, Any], until: int = 8) -> dict[str, Tensor]:
    """Train a small transformer for 8 steps; the data ends after `until`."""
    torch.manual_seed(0)
    model = nn.Sequential(build_network(VIT, 1, decoder=False))

    def loss_of(model: nn.Module, batch: Tensor) -> Loss:
        value = model(batch).pooled[:, 0].sub(1).square().mean()
        return Loss(value, {"loss": value.detach()})

    def batches(start: int) -> Iterator[Tensor]:
        for step in range(start, until):
            yield torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(step))

    options = FitOptions(
        steps=8, samples_per_step=2, lr=0.05, checkpoint_every=3, log_every=1, precision="float32", **fields
    )
    with run_folder(path, fields, {}) as run:
        fit(model, loss_of, batches, options, run, torch.device("cpu"))
    return model.state_dict()


@pytest.mark.parametrize(
    "fields",
    [
        {"layer_decay": 0.7},
        {"optimizer": "sgd", "nesterov": True},
        {"optimizer": "lars", "layer_decay": 0.7, "momentum": 0.8},
    ],
    ids=["adamw", "sgd", "lars"],
)
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    whole = learn(tmp_path / "whole", fields)
    with pytest.raises(StopIteration):
        learn(tmp_path / "cut", fields, until=5)
    cut = learn(tmp_path / "cut", fields)
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert not torch.equal(whole["0.encoder.registers"], learn(tmp_path / "other", {})["0.encoder.registers"])
