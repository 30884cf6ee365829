"""`medcl3d export`: the weights of a finished run in the format of another program."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from pathlib import Path

from medcl3d.config.suggestions import did_you_mean
from medcl3d.core.errors import ConfigError, Word
from medcl3d.exports.output_folder import export_folder
from medcl3d.exports.source import Source, Writer

FORMATS = {
    "safetensors": "safetensors_files",
    "onnx": "onnx_file",
    "torch_export": "torch_export",
    "nnunet": "nnunet",
    "monai": "monai",
    "hub": "hub",
}
"""Format -> its module, which has a function `write`."""


def export(
    run: str | Path,
    to: str,
    out: str | Path,
    *,
    licence: str = "unknown",
    with_provenance: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write the weights of a finished run for other programs, without ids of patients; returns `out`.

        medcl3d.export("runs/pre", "onnx", "exported/pre_onnx")

    run              the run folder of a pretraining (or RUN@STEP), or of a fine-tuning
    to               safetensors, onnx, torch_export, nnunet, monai or hub
    out              a new or empty folder, or one that the same export has written
    licence          of the weights, as the licence of the training data allows it: an SPDX identifier
    with_provenance  also write keyed hashes of patients and scans; the key stays in the run folder

    ConfigError: the run has not finished, the format does not fit its network, or `out` has other files.
    MachineError: a package is missing (pip install 'medcl3d[export]'), or `out` cannot be written.
    """
    if to not in FORMATS:
        problem = f"not a format{did_you_mean(to, list(FORMATS))}"
        raise ConfigError("--to", Word(to), problem, f"use one of {', '.join(FORMATS)}")
    folder = Path(out).expanduser()
    source = Source.of(Path(run).expanduser(), licence, with_provenance)
    write: Writer = pkgutil.resolve_name(f"medcl3d.exports.{FORMATS[to]}:write")
    identity = {"format": to, "source_sha256": source.sha256}
    with export_folder(folder, identity, {"licence": licence}) as partial:
        lines = write(source, partial)
    for line in lines:
        say(line)
    say(f"{folder}: written for {to}")
    return folder
