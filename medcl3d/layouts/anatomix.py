"""anatomix: a U-Net pretrained on synthetic volumes."""

from __future__ import annotations

from medcl3d.core.errors import ConfigError
from medcl3d.layouts.layout import Converted, Layout, WeightsFile, count, needed

NETWORK = "the U-Net of anatomix"
LAYERS = 3  # of a convolution with its norm and activation
PER_STAGE = 2 * LAYERS + 1  # and a pooling or an upsampling


def convert(file: WeightsFile) -> Converted:
    """The U-Net with batch norm of the first anatomix, 6 million parameters."""
    stem = needed(file.tensors, "model.0.weight", NETWORK)
    weights = {name: tensor for name, tensor in file.tensors.items() if name.startswith("model.")}
    last = count(weights, r"model\.(\d+)\.weight") - 1
    # A convolution, stages with a pooling each, the last stage, as many of the decoder, a convolution.
    num_downs, rest = divmod(last - LAYERS - 2 * LAYERS, 2 * PER_STAGE)
    if rest or "model.1.running_mean" not in weights:
        problem = "not a U-Net of anatomix with batch norm, as anatomix.pth; its later variants differ"
        raise ConfigError(problem=problem, remedy="use anatomix.pth")
    fields = {
        "width": len(stem),
        "num_downs": num_downs,
        "out_channels": len(weights[f"model.{last}.weight"]),
    }
    return Converted({"whole_unet3d": fields}, stem.shape[1], weights, frozenset(weights))


ANATOMIX = Layout(
    about="anatomix.pth, 6 million parameters, which github.com/neel-dey/anatomix publishes",
    encoder="whole_unet3d",
    source="Dey et al. 2025, arXiv:2411.02372",
    licence="MIT",
    convert=convert,
    axes="",
    intensity={"kind": "mri", "percentiles": [0.0, 100.0], "value_range": [0.0, 1.0]},
)
