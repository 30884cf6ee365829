"""An ONNX file, which ONNX Runtime and other engines run."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from medcl3d.exports.source import Source, difference, needs
from medcl3d.exports.torch_export import program_of, refuse_different
from medcl3d.io.atomic import write_json

FILE = "model.onnx"
LARGEST = 2**31 - 2**20  # bytes of a file that ONNX can write in one piece


def write(source: Source, out: Path) -> list[str]:
    """Write model.onnx and model.json. Its input is `crops`, with any number of crops of the patch size."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise needs(str(error.name), "onnx") from None
    program, crops = program_of(source), source.crops(3)
    ours = source.outputs(crops)
    size = sum(tensor.numel() * tensor.element_size() for tensor in source.tensors.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own code
        torch.onnx.export(
            program,
            (),
            out / FILE,
            input_names=["crops"],
            output_names=list(ours),
            dynamo=True,
            external_data=size > LARGEST,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(out / FILE, providers=["CPUExecutionProvider"])
    found = session.run(list(ours), {"crops": crops.numpy()})
    theirs = {name: torch.from_numpy(one) for name, one in zip(ours, found, strict=True)}
    largest = difference(ours, theirs)
    refuse_different(largest, max(float(one.abs().max()) for one in ours.values()))
    write_json(out / "model.json", {**source.public, "input": "crops", "outputs": list(ours)})
    return [f"largest difference of ONNX Runtime to the run on 3 random crops: {largest:.2g}"]
