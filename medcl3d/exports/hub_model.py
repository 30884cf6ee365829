"""An exported network that the Hugging Face Hub's client saves and loads."""

from __future__ import annotations

from typing import Any

from huggingface_hub import PyTorchModelHubMixin
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn

from medcl3d.config.choices import choice_of
from medcl3d.config.field_types import STRICT
from medcl3d.config.loading import parse
from medcl3d.core.embeddings import Features
from medcl3d.downstream.heads import Segmenter
from medcl3d.encoders import ENCODERS
from medcl3d.encoders.network import build_network
from medcl3d.exports.source import Source


@validated(frozen=True, kw_only=True, config=STRICT)
class _Described:
    encoder: choice_of(ENCODERS)  # type: ignore[valid-type]


class HubModel(nn.Module, PyTorchModelHubMixin):
    """A pretrained encoder, or a segmentation network.

        model = HubModel.from_pretrained("exported/hub").eval()

    architecture  encoder and its fields, as in a configuration
    num_classes   of a segmentation, background included; None for an encoder
    decoder       whether an encoder comes with a decoder
    scans         how its scans are prepared: spacing, axes, patch size, intensity
    """

    def __init__(
        self,
        architecture: dict[str, Any],
        in_channels: int,
        decoder: bool = False,
        num_classes: int | None = None,
        scans: dict[str, Any] | None = None,
    ):
        super().__init__()
        described = parse({"encoder": architecture}, _Described, "config.json")
        decodes = decoder or num_classes is not None
        network = build_network(described.encoder, in_channels, decoder=decodes)
        self.model: nn.Module = network if num_classes is None else Segmenter(network, num_classes)
        self.scans = dict(scans or {})

    def forward(self, crops: Tensor) -> Features | Tensor:
        """`Features` of crops ``[B, C, D, H, W]``, or the logits of a segmentation."""
        found: Features | Tensor = self.model(crops)
        return found

    @staticmethod
    def like(source: Source) -> HubModel:
        """The network of a finished run."""
        public = source.public
        scans = {
            name: public[name] for name in ("spacing_mm", "axes", "patch_size", "intensity") if name in public
        }
        head: Any = source.model.head if source.task else None
        model = HubModel(
            architecture=public["architecture"],
            in_channels=source.in_channels,
            decoder=source.network.decoder is not None,
            num_classes=None if head is None else len(head.bias),
            scans=scans | ({"label_names": public["label_names"]} if source.task else {}),
        )
        model.model.load_state_dict(source.model.state_dict())
        return model.eval()
