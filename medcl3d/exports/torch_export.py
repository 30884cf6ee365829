"""A program of `torch.export`, which runs with torch alone."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from medcl3d.core.errors import MachineError
from medcl3d.exports.source import Named, Source, difference
from medcl3d.io.atomic import write_json

FILE = "model.pt2"
TOLERANCE = 1e-4  # of a difference, relative to the largest output if that exceeds 1


def write(source: Source, out: Path) -> list[str]:
    """Write model.pt2 and model.json. Its input is `crops`, its output a dict of tensors by name."""
    program = program_of(source)
    torch.export.save(program, out / FILE)
    loaded = torch.export.load(out / FILE).module()
    crops = source.crops(3)
    ours = source.outputs(crops)
    with torch.no_grad():
        largest = difference(ours, loaded(crops))
    refuse_different(largest, max(float(one.abs().max()) for one in ours.values()))
    write_json(out / "model.json", {**source.public, "input": "crops", "outputs": list(ours)})
    return [f"largest difference to the run on 3 random crops: {largest:.2g}"]


def program_of(source: Source) -> ExportedProgram:
    """The network as a program for any number of crops of the patch size."""
    if source.task not in ("", "segmentation"):
        remedy = "use a pretraining, a segmentation, or the format safetensors"
        source.refuse("a program", f"the head of {source.task} is not written", remedy)
    model, crops = Named(source.model).eval(), source.crops()
    with torch.no_grad():
        model(crops)  # constants that a network caches are real from here on
        return torch.export.export(model, (crops,), dynamic_shapes=({0: Dim("batch")},))


def refuse_different(largest: float, size: float) -> None:
    """MachineError if the written file computes other outputs than the run."""
    if not largest <= TOLERANCE * max(1.0, size):
        problem = f"the written program differs from the run by {largest:.3g}"
        raise MachineError(
            "", problem, "nothing was written; report this as a bug, with the versions of packages"
        )
