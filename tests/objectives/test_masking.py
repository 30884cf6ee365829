"""What is hidden is hidden: the same share of every view, and nothing of it reaches the decoder."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from medcl3d.objectives.masking import at_size, only_seen, visible_blocks
from tests.objectives.small import Step, batch_of, keys_of


def test_the_same_share_of_every_view_is_hidden_and_views_differ() -> None:
    keys = keys_of(torch.arange(40) // 2, torch.arange(40) % 2)
    seen = visible_blocks(keys, (3, 3, 3), 0.6)
    assert seen.shape == (40, 1, 3, 3, 3) and (~seen).flatten(1).sum(1).tolist() == [16] * 40
    assert len({tuple(view.flatten().tolist()) for view in seen}) == 40
    assert torch.equal(visible_blocks(keys[5:9], (3, 3, 3), 0.6), seen[5:9]), "a view's own, whatever is beside it"
    assert (seen.float().mean(0) - 11 / 27).abs().max() < 0.35, "every block gets its turn"


@pytest.mark.parametrize(
    "encoder",
    [
        {"unet3d": {"channels": [4, 8], "strides": [1, 2]}},
        {"vit3d": {"patch": [4, 4, 4], "hidden_size": 12, "num_layers": 1, "num_heads": 2}},
    ],
)
def test_nothing_of_a_hidden_block_reaches_the_loss(encoder: object) -> None:
    """Other voxels in hidden blocks leave what the network paints as it is: only the target moves."""
    model = Step("mae", encoder)
    batch = batch_of(range(3))
    seen = at_size(visible_blocks(batch.main.keys, (2, 2, 2), 0.6), (8, 8, 8))
    other = torch.where(seen, batch.main.voxels, torch.randn_like(batch.main.voxels))
    painted = []
    for voxels in (batch.main.voxels, other):
        with only_seen(model.network.encoder, visible_blocks(batch.main.keys, (2, 2, 2), 0.6)):
            painted.append(model.network(voxels * seen).decoded)
    assert torch.equal(painted[0], painted[1])
    moved = dataclasses.replace(batch, groups=(dataclasses.replace(batch.main, voxels=other),))
    assert model(moved) != model(batch)


def test_no_kernel_carries_what_is_seen_into_hidden_places() -> None:
    model = Step("mae")
    batch = batch_of(range(2))
    blocks = visible_blocks(batch.main.keys, (2, 2, 2), 0.6)
    outputs: list[torch.Tensor] = []
    handles = [
        module.register_forward_hook(lambda _m, _i, output: outputs.append(output))
        for module in model.network.encoder.modules()
        if isinstance(module, torch.nn.Conv3d)
    ]
    with only_seen(model.network.encoder, blocks):
        model.network.encoder(batch.main.voxels)
    for handle in handles:
        handle.remove()
    before = [output[~at_size(blocks, tuple(output.shape[2:])).expand_as(output)] for output in outputs]
    assert len(outputs) > 3 and any((values != 0).any() for values in before), "kernels reach in, and are undone by what comes after"
    outputs.clear()
    with only_seen(model.network.encoder, blocks):
        handles = [
            module.register_forward_hook(lambda _m, _i, output: outputs.append(output))
            for module in model.network.encoder.modules()
            if isinstance(module, torch.nn.Conv3d)
        ]
        model.network.encoder(batch.main.voxels)
    for handle in handles:
        handle.remove()
    assert all((output[~at_size(blocks, tuple(output.shape[2:])).expand_as(output)] == 0).all() for output in outputs)
