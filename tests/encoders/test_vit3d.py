"""The transformer: MONAI's outputs, position embeddings, any size of crop, a decoder."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets.vit import ViT

from medcl3d.config.field_types import Choice
from medcl3d.core.errors import ConfigError
from medcl3d.encoders import vit3d
from medcl3d.encoders.network import build_network, check_patch_size
from medcl3d.encoders.vit3d import ViT3d

FIELDS = {"patch": (4, 8, 8), "hidden_size": 24, "num_layers": 2, "num_heads": 2}


def test_equals_monais_vit_with_the_same_weights() -> None:
    ours = ViT3d(2, **FIELDS)  # type: ignore[arg-type]
    theirs = ViT(2, (8, 16, 24), (4, 8, 8), 24, 96, 2, 2, pos_embed_type="none", qkv_bias=True)
    renamed = {
        name.replace("patch_embedding.patch_embeddings", "patch_embedding"): value
        for name, value in theirs.state_dict().items()
    }
    unused = [name for name in renamed if "cross_attn" in name or name.endswith("position_embeddings")]
    positions = vit3d.positions((2, 2, 3), 24)
    with torch.no_grad():
        theirs.patch_embedding.position_embeddings.copy_(positions[None])
    ours.load_state_dict({name: value for name, value in renamed.items() if name not in unused}, strict=True)
    back = {
        name.replace("patch_embedding", "patch_embedding.patch_embeddings"): value
        for name, value in ours.state_dict().items()
    }
    assert not theirs.load_state_dict(back, strict=False).unexpected_keys
    x = torch.randn(3, 2, 8, 16, 24)
    tokens, _ = theirs(x)
    features = ours(x)
    torch.testing.assert_close(features.pooled, tokens.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.maps[0].flatten(2).transpose(1, 2), tokens, rtol=1e-4, atol=1e-5)


def test_position_embeddings_are_unique_and_most_similar_between_neighbours() -> None:
    positions = vit3d.positions((3, 4, 5), 48)
    assert positions.shape == (60, 48) and len(positions.unique(dim=0)) == 60
    alike = positions @ positions.T
    index = 1 * 20 + 2 * 5 + 2  # (1, 2, 2)
    for step in (20, 5, 1):  # one token along depth, height, width
        assert alike[index, index + step] > alike[index, index + 22]


def learns(model: ViT3d) -> float:
    """Accuracy on new volumes after training to find the half, along each axis, that holds a bright cube."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    head = torch.nn.Linear(model.num_features, 8)
    optimiser = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=3e-3)

    def draw(num: int) -> tuple[torch.Tensor, torch.Tensor]:
        corner = torch.randint(0, 2, (num, 3), generator=generator)
        x = 0.3 * torch.randn(num, 1, 8, 8, 8, generator=generator)
        for i, (d, h, w) in enumerate((4 * corner).tolist()):
            x[i, 0, d : d + 4, h : h + 4, w : w + 4] += 1
        return x, corner @ torch.tensor([4, 2, 1])

    for _ in range(200):
        x, target = draw(32)
        loss = torch.nn.functional.cross_entropy(head(model(x).pooled), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x, target = draw(200)
    return float((head(model(x).pooled).argmax(1) == target).float().mean())


def test_positions_are_learnt_only_through_position_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"patch": (4, 4, 4), "hidden_size": 24, "num_layers": 2, "num_heads": 2}
    torch.manual_seed(0)
    assert learns(ViT3d(1, **fields)) > 0.9  # type: ignore[arg-type]
    monkeypatch.setattr(vit3d, "_positions_on", lambda *_: torch.zeros(1, 1))
    torch.manual_seed(0)
    assert learns(ViT3d(1, **fields)) < 0.3  # type: ignore[arg-type]


def test_registers_take_part_in_attention_and_not_in_the_output() -> None:
    torch.manual_seed(0)
    model, x = ViT3d(1, num_registers=4, **FIELDS), torch.randn(2, 1, 8, 16, 24)  # type: ignore[arg-type]
    assert model.registers is not None and model.registers.shape == (4, 24)
    before = model(x)
    assert before.maps[0].shape == (2, 24, 2, 2, 3)
    torch.testing.assert_close(before.pooled, before.maps[0].mean((2, 3, 4)), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        model.registers.normal_()
        assert not torch.allclose(model(x).pooled, before.pooled, atol=1e-4)
        model.blocks = torch.nn.ModuleList()  # without attention they have no effect
        reference = model(x)
        model.registers = None
        assert torch.equal(model(x).pooled, reference.pooled)
    assert "registers" not in ViT3d(1, **FIELDS).state_dict()  # type: ignore[arg-type]


def test_a_decoder_reaches_full_resolution_from_anisotropic_patches() -> None:
    network = build_network(Choice("vit3d", FIELDS), 1, decoder=True)
    for shape in ((16, 16, 16), (8, 24, 32)):
        found = network(torch.randn(2, 1, *shape))
        assert found.decoded is not None and found.decoded.shape[2:] == shape
    found.decoded.square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_crop_indivisible_by_the_patch_is_refused_with_both_fields() -> None:
    with pytest.raises(
        ConfigError, match=r"data.patch_size = \[10, 16, 16\].*\[4, 8, 8\].*use \[8, 16, 16\]"
    ):
        check_patch_size(build_network(Choice("vit3d", FIELDS), 1, decoder=False), (10, 16, 16))


@pytest.mark.parametrize(("hidden_size", "num_heads", "what"), [(24, 5, "num_heads"), (20, 2, "sines")])
def test_a_width_that_does_not_divide_is_refused(hidden_size: int, num_heads: int, what: str) -> None:
    with pytest.raises(ConfigError, match=f"hidden_size = {hidden_size}.*{what}"):
        ViT3d(1, hidden_size=hidden_size, num_heads=num_heads)


def test_positions_without_values_are_not_kept() -> None:
    """An estimate of memory, and a check of shapes, may precede the first step."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    grid, size = (2, 3, 5), 48
    with FakeTensorMode():
        vit3d._positions_on(grid, size, torch.float32, torch.device("cpu"))
    assert vit3d._positions_on(grid, size, torch.float32, torch.device("meta")).is_meta
    found = vit3d._positions_on(grid, size, torch.float32, torch.device("cpu"))
    assert torch.equal(found, vit3d.positions(grid, size))
    assert vit3d._positions_on(grid, size, torch.float32, torch.device("cpu")) is found
