"""The segmentation head."""

from __future__ import annotations

import pytest
import torch

from medcl3d.config.field_types import Choice
from medcl3d.downstream.heads import BACKGROUND_PRIOR, Segmenter
from medcl3d.encoders.network import build_network


def test_it_starts_near_the_background_prior_and_trains_all_parameters() -> None:
    torch.manual_seed(0)
    model = Segmenter(
        build_network(Choice("unet3d", {"channels": (4, 8), "strides": (1, 2)}), 2, decoder=True), 5
    )
    scores = model(torch.randn(2, 2, 8, 10, 6))
    assert scores.shape == (2, 5, 8, 10, 6)
    assert float(scores.detach().softmax(1)[:, 0].mean()) == pytest.approx(BACKGROUND_PRIOR, abs=0.05)
    scores.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_network_without_a_decoder_is_refused() -> None:
    with pytest.raises(ValueError, match="decoder"):
        Segmenter(
            build_network(Choice("unet3d", {"channels": (4, 8), "strides": (1, 2)}), 1, decoder=False), 2
        )
