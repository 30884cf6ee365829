"""A folder in the layout of the Hugging Face Hub: config.json, model.safetensors and a model card."""

from __future__ import annotations

from pathlib import Path

from medcl3d.exports.model_card import model_card
from medcl3d.exports.source import Source, needs


def write(source: Source, out: Path) -> list[str]:
    """Write the three files. `HubModel.from_pretrained(FOLDER)` reads them; nothing is uploaded."""
    try:
        from medcl3d.exports.hub_model import HubModel
    except ImportError as error:
        raise needs(str(error.name), "hub") from None
    if source.task not in ("", "segmentation"):
        remedy = "use a pretraining, a segmentation, or the format safetensors"
        source.refuse("hub", f"the head of {source.task} is not written", remedy)
    model = HubModel.like(source)
    (out / "README.md").write_text(model_card(source), encoding="utf-8")
    model.save_pretrained(out)
    return [
        "load it: medcl3d.exports.hub_model.HubModel.from_pretrained(FOLDER)",
        "before you share it, complete README.md, which lacks the source of the scans",
    ]
