"""`medcl3d features`: features of new scans from a pretrained encoder, as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from medcl3d.core.errors import ConfigError, Word
from medcl3d.distributed.collectives import process_group
from medcl3d.distributed.precision import autocast_dtype
from medcl3d.downstream.feature_files import TABLE, FeatureFiles, FeatureTable
from medcl3d.downstream.predict.inputs import InputScan, is_volume, scans_of
from medcl3d.downstream.predict.scan_loop import ScanLoop
from medcl3d.downstream.pretrained_encoder import load_encoder
from medcl3d.downstream.scan_features import Extraction, scan_features
from medcl3d.downstream.trained_scan import identity_of, intensity_kind, refuse_header
from medcl3d.io.disk_space import require_writable
from medcl3d.preprocessing.ready_scan import ReadyScan


def write_features(
    run: Path,
    target: Path,
    out: Path,
    *,
    file_format: str = "safetensors",
    dense: bool = False,
    intensity: str | None = None,
    force: bool = False,
    check: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Write features of a scan, or of all below a folder, and return the files.

    Features that an earlier call wrote for the same run and scans are kept.

    run          a pretraining's run folder, or its encoder.safetensors
    target       a NIfTI file, or a folder of NIfTI files and DICOM series
    out          a folder
    file_format  safetensors: OUT/NAME.safetensors with `features` ``Float32[F]``, or with `dense`
                 ``Float32[C, X, Y, Z]`` and `affine` ``Float64[4, 4]``, voxel -> RAS+ mm; csv:
                 OUT/features.csv, one row per scan: scan, origin, f0, f1, ...
    intensity    mri, ct or none: how to normalise, if the encoder was trained on several kinds
    force        replace files of another origin; without it they are refused before anything is computed
    check        read headers only, report what would be written, and write nothing

    ConfigError: the run, the target or the outputs are wrong. DataError, after all other scans are done: some
    were refused. MachineError: nothing can be written.
    """
    _refuse_outputs(out, file_format, dense)
    encoder = load_encoder(run)
    kind = intensity_kind(encoder.path, str(encoder.intensity["kind"]), intensity, "--intensity")
    extraction = Extraction(dense, None, 0.5, 4, kind)
    with scans_of(target, out, say) as (scans, refused), process_group() as device:
        dtype = autocast_dtype("auto", device)
        identity = identity_of(encoder.path, extraction, dtype)
        make = FeatureTable if file_format == "csv" else FeatureFiles
        output: FeatureTable | FeatureFiles = make(out, identity)
        require_writable(out, "--out")
        remaining = output.missing(scans, force)
        loop = ScanLoop(remaining, refused, encoder.intensity, "encoder", "encoded", say)
        loop.report_kept(len(scans))
        if check:
            loop.dry_run(
                lambda path: refuse_header(path, encoder.intensity, encoder.in_channels, "encoder"),
                lambda one: [output.file_of(one)],
            )
            return []
        out.mkdir(parents=True, exist_ok=True)
        encoder.to(device)

        def compute(one: InputScan) -> tuple[Tensor, ReadyScan]:
            def note(text: str) -> None:
                say(f"warning: {text}".replace(str(one.path), one.shown))

            return scan_features(encoder, one.path, extraction, dtype, note=note)

        try:
            loop.run(compute, lambda one, found: output.write(one, *found))
        finally:
            output.finish()
    what = "maps" if dense else f"vectors of {encoder.num_features} features"
    say(f"{len(scans)} scans: {what} in {out / TABLE if file_format == 'csv' else out}")
    return output.written


def _refuse_outputs(out: Path, file_format: str, dense: bool) -> None:
    if file_format not in ("safetensors", "csv"):
        raise ConfigError("--format", Word(file_format), "use safetensors or csv")
    if dense and file_format == "csv":
        remedy = "use --format safetensors, or leave --dense out"
        raise ConfigError("--format", Word("csv"), "a table holds one vector per scan, not maps", remedy)
    if is_volume(out.name) or out.is_file():
        raise ConfigError("--out", out, "features are written into a folder", "give one")
