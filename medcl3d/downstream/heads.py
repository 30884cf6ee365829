"""Heads of tasks on top of a network."""

from __future__ import annotations

from math import log

from torch import Tensor, nn

from medcl3d.encoders.network import Network

BACKGROUND_PRIOR = 0.9  # probability of class 0 in every voxel before training


class Segmenter(nn.Module):
    """Class scores per voxel: a 1x1x1 convolution on the decoded map of a network.

    The initial bias gives background a probability of 0.9. Otherwise, hundreds of steps are spent on learning
    that most voxels are background, before structures (Lin et al. 2017, Focal Loss, section 3.3).
    ValueError if the network has no decoder.
    """

    def __init__(self, network: Network, num_classes: int):
        super().__init__()
        if network.decoder is None:
            raise ValueError("segmentation needs a network with a decoder")
        self.network = network
        self.head = nn.Conv3d(network.decoder.out_channels, num_classes, kernel_size=1)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)
        self.head.bias.data[0] = log(BACKGROUND_PRIOR / (1 - BACKGROUND_PRIOR) * (num_classes - 1))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, D, H, W]`` -> logits ``[B, num_classes, D, H, W]``."""
        decoded = self.network(x).decoded
        scores: Tensor = self.head(decoded)
        return scores


class Classifier(nn.Module):
    """Class scores of a crop: a linear layer on normalised pooled features.

    Pooled features vary little between crops in an untrained network, and have other scales in pretrained
    ones. Without the norm, the head would need another learning rate for each.
    """

    def __init__(self, network: Network, num_classes: int):
        super().__init__()
        self.network = network
        self.norm = nn.LayerNorm(network.num_features)
        self.head = nn.Linear(network.num_features, num_classes)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, D, H, W]`` -> logits ``[B, num_classes]``."""
        scores: Tensor = self.head(self.norm(self.network(x).pooled))
        return scores
