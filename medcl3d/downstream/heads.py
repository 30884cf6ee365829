"""What a task puts on top of a network."""

from __future__ import annotations

from torch import Tensor, nn

from medcl3d.encoders.network import Network


class Segmenter(nn.Module):
    """Class scores of every voxel: the network's decoded map through a 1x1x1 convolution.

    ValueError where the network has no decoder.
    """

    def __init__(self, network: Network, num_classes: int):
        super().__init__()
        if network.decoder is None:
            raise ValueError("segmentation needs a network with a decoder")
        self.network = network
        self.head = nn.Conv3d(network.decoder.out_channels, num_classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, D, H, W]`` -> logits ``[B, num_classes, D, H, W]``."""
        decoded = self.network(x).decoded
        scores: Tensor = self.head(decoded)
        return scores
