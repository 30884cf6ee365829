"""What a task puts on top of a network."""

from __future__ import annotations

from math import log

from torch import Tensor, nn

from medcl3d.encoders.network import Network

BACKGROUND_PRIOR = 0.9  # probability of class 0 in every voxel before training


class Segmenter(nn.Module):
    """Class scores of every voxel: the network's decoded map through a 1x1x1 convolution.

    Its bias begins at a background of probability 0.9: else the first hundreds of steps learn that most
    voxels are background, and structures only after (Lin et al. 2017, Focal Loss, section 3.3).
    ValueError where the network has no decoder.
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
    """Class scores of a crop: the pooled features, normalised, through a linear layer.

    The norm is there because pooled features of an untrained network differ little from crop to crop, and of a
    pretrained one in scale: the head would need another rate for each.
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
