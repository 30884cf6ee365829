"""Masking: the same ratio in all views, and masked voxels do not reach the decoder."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from medcl3d.core.errors import ConfigError
from medcl3d.objectives.masking import at_size, masked_convolutions, masked_features, visible_blocks
from medcl3d.training.speed import apply_cost_options
from tests.objectives.small import Step, batch_of, keys_of


def test_the_mask_ratio_is_equal_in_all_views_and_masks_differ() -> None:
    keys = keys_of(torch.arange(40) // 2, torch.arange(40) % 2)
    visible = visible_blocks(keys, (3, 3, 3), 0.6)
    assert visible.shape == (40, 1, 3, 3, 3) and (~visible).flatten(1).sum(1).tolist() == [16] * 40
    assert len({tuple(view.flatten().tolist()) for view in visible}) == 40
    assert torch.equal(visible_blocks(keys[5:9], (3, 3, 3), 0.6), visible[5:9]), (
        "a mask depends on its view only"
    )
    assert (visible.float().mean(0) - 11 / 27).abs().max() < 0.35, "every block is masked in some view"


ENCODERS = {
    "unet3d": {"unet3d": {"channels": [4, 8], "strides": [1, 2]}},
    "vit3d": {
        "vit3d": {"patch": [4, 4, 4], "hidden_size": 12, "num_layers": 2, "num_heads": 2, "num_registers": 1}
    },
}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_masked_voxels_do_not_affect_the_features(encoder: str) -> None:
    """Other voxels in masked blocks do not change the features, only the target."""
    model = Step("mae", ENCODERS[encoder])
    batch = batch_of(range(3))
    blocks = visible_blocks(batch.main.keys, (2, 2, 2), 0.6)
    visible = at_size(blocks, (8, 8, 8))
    other = torch.where(visible, batch.main.voxels, torch.randn_like(batch.main.voxels))
    found = [
        masked_features(model.network.encoder, voxels * visible, blocks)
        for voxels in (batch.main.voxels, other)
    ]
    assert torch.equal(found[0].pooled, found[1].pooled) and torch.equal(found[0].maps[-1], found[1].maps[-1])
    moved = dataclasses.replace(batch, groups=(dataclasses.replace(batch.main, voxels=other),))
    assert model(moved) != model(batch)


def test_dropped_tokens_have_no_cost_and_no_effect() -> None:
    """The transformer's blocks get visible tokens and registers only; the map is 0 elsewhere."""
    encoder = Step("mae", ENCODERS["vit3d"]).network.encoder
    batch = batch_of(range(3))
    blocks = visible_blocks(batch.main.keys, (2, 2, 2), 0.6)
    lengths: list[int] = []
    for block in encoder.blocks:  # type: ignore[union-attr]
        block.register_forward_hook(lambda _m, inputs, _o: lengths.append(inputs[0].shape[1]))
    features = masked_features(encoder, batch.main.voxels, blocks)
    assert lengths == [1 + int(blocks[0].sum())] * 2
    shown = blocks.expand_as(features.maps[0])
    assert (features.maps[0][~shown] == 0).all() and (features.maps[0][shown] != 0).all()
    torch.testing.assert_close(features.pooled, features.maps[0].flatten(2).sum(2) / blocks[0].sum())
    everything = encoder(batch.main.voxels, torch.ones_like(blocks))
    torch.testing.assert_close(everything.maps[0], encoder(batch.main.voxels).maps[0])
    torch.testing.assert_close(everything.pooled, encoder(batch.main.voxels).pooled)


def test_crops_with_unequal_numbers_of_tokens_are_refused() -> None:
    encoder = Step("mae", ENCODERS["vit3d"]).network.encoder
    visible = torch.ones(2, 1, 2, 2, 2, dtype=torch.bool)
    visible[0, 0, 0, 0, 0] = False
    with pytest.raises(ConfigError, match="keep 7 to 8 tokens"):
        encoder(torch.zeros(2, 1, 8, 8, 8, dtype=torch.float64), visible)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_recomputation_is_masked_too(encoder: str) -> None:
    """Activation checkpointing recomputes blocks in the backward pass, which must be masked too."""
    batch = batch_of(range(3))
    plain, cheaper = Step("mae", ENCODERS[encoder]), Step("mae", ENCODERS[encoder])
    cheaper.load_state_dict(plain.state_dict())
    apply_cost_options(cheaper, checkpointing=True)
    for model in (plain, cheaper):
        model(batch).backward()
    for (name, mine), theirs in zip(plain.named_parameters(), cheaper.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=name)


def test_no_kernel_carries_visible_features_into_masked_blocks() -> None:
    model = Step("mae")
    batch = batch_of(range(2))
    blocks = visible_blocks(batch.main.keys, (2, 2, 2), 0.6)
    outputs: list[torch.Tensor] = []

    def watch() -> list[torch.utils.hooks.RemovableHandle]:
        convolutions = [
            module for module in model.network.encoder.modules() if isinstance(module, torch.nn.Conv3d)
        ]
        return [
            module.register_forward_hook(lambda _m, _i, output: outputs.append(output))
            for module in convolutions
        ]

    def in_masked_blocks() -> list[torch.Tensor]:
        return [output[~at_size(blocks, tuple(output.shape[2:])).expand_as(output)] for output in outputs]

    handles = watch()
    with masked_convolutions(model.network.encoder, blocks):
        model.network.encoder(batch.main.voxels)
    for handle in handles:
        handle.remove()
    reached = any((values != 0).any() for values in in_masked_blocks())
    assert len(outputs) > 3 and reached, "kernels reach into masked blocks, and hooks are removed afterwards"
    outputs.clear()
    with masked_convolutions(model.network.encoder, blocks):
        handles = watch()
        model.network.encoder(batch.main.voxels)
    for handle in handles:
        handle.remove()
    assert all((values == 0).all() for values in in_masked_blocks())
