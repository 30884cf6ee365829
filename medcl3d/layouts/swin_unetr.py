"""Swin transformers of MONAI's SwinUNETR."""

from __future__ import annotations

from medcl3d.layouts.layout import Converted, Layout, WeightsFile, count, needed, part_of

PARTS = ("swinViT.", "encoder.", "")
"""Prefixes of the transformer: of a SwinUNETR, of Disruptive Autoencoders, of the transformer alone."""
LINEAR = {"mlp.fc1.": "mlp.linear1.", "mlp.fc2.": "mlp.linear2."}  # names before MONAI 0.9
STAGES = range(1, 5)


def convert(file: WeightsFile) -> Converted:
    """The transformer of a SwinUNETR, of its self-supervised pretraining, or of Disruptive Autoencoders."""
    prefix = next((p for p in PARTS if f"{p}patch_embed.proj.weight" in file.tensors), "")
    needed(file.tensors, f"{prefix}patch_embed.proj.weight", "a Swin transformer of MONAI")
    weights, used = {}, set()
    for name, tensor in part_of(file.tensors, prefix).items():
        own = _present(name)
        if own is not None:
            weights[f"swinViT.{own}"] = tensor
            used.add(f"{prefix}{name}")
    embed = weights["swinViT.patch_embed.proj.weight"]
    layers = [count(weights, rf"swinViT\.layers{s}\.0\.blocks\.(\d+)\.") for s in STAGES]
    bias = "swinViT.layers{}.0.blocks.0.attn.relative_position_bias_table"
    heads = [needed(weights, bias.format(s), "a Swin transformer of MONAI").shape[1] for s in STAGES]
    width = round(((len(weights[bias.format(1)]) ** (1 / 3)) + 1) / 2)
    hidden = weights["swinViT.layers1.0.blocks.0.mlp.linear1.weight"]
    fields = {
        "patch": list(embed.shape[2:]),
        "feature_size": len(embed),
        "num_layers": layers,
        "num_heads": heads,
        "window_size": [width] * 3,
        "mlp_ratio": hidden.shape[0] / hidden.shape[1],
        "v2": any(name.startswith("swinViT.layers1c.") for name in weights),
    }
    return Converted({"swin3d": fields}, embed.shape[1], weights, frozenset(used))


def _present(name: str) -> str | None:
    """The name in MONAI's present transformer; None for a tensor that it does not have."""
    if not name.startswith(("patch_embed.", *(f"layers{s}" for s in STAGES))):
        return None
    for former, present in LINEAR.items():
        name = name.replace(former, present)
    stage, _, rest = name.partition(".")
    # Disruptive Autoencoders repeat the number of each stage's only layer: layers1.0.0.blocks.
    return f"{stage}.{rest.removeprefix('0.')}" if rest.startswith("0.0.") else name


SWIN_UNETR = Layout(
    about="the Swin transformer of MONAI's SwinUNETR: model_swinvit.pt (self-supervised, 5,050 CT), "
    "ssl_pretrained_weights.pth (Disruptive Autoencoders), or a whole SwinUNETR",
    encoder="swin3d",
    source="Tang et al. 2022, arXiv:2111.14791; Valanarasu et al. 2023, arXiv:2307.16896",
    licence="Apache-2.0",
    convert=convert,
    intensity={"kind": "ct", "window_hu": [-1000.0, 1000.0], "value_range": [0.0, 1.0]},
)
