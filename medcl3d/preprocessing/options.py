"""Options of `prepare`, separated into those of the source and those of the preparation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as validated

from medcl3d.config.choices import describe, parse_choice
from medcl3d.config.field_types import Fraction, Positive, Seed
from medcl3d.config.loading import parse
from medcl3d.config.overrides import Schema
from medcl3d.config.suggestions import did_you_mean
from medcl3d.core.errors import ConfigError, Word
from medcl3d.datasets.sources import SOURCES
from medcl3d.io.array_file import Container
from medcl3d.preprocessing.read_scan import Channels
from medcl3d.preprocessing.resample import LabelInterpolation
from medcl3d.preprocessing.scan_task import Crop
from medcl3d.store.quantise import StoreAs

Spacing = Literal["keep", "median"] | tuple[Positive, Positive, Positive]
Percent = Annotated[float, Field(ge=0, le=100)]


@validated(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class PrepareOptions:
    """How scans are prepared.

    assume_spacing_mm  the voxel size, along the file's own axes, of files whose headers have lost it
    spacing_mm        keep, median (of the collection, per axis), or three numbers
    intensity         mri, ct or none; auto: ct if the modality is CT, none if it is shape, else mri. Scans of
                      two values become 0 and 1
    percentiles       range to which MR intensities are clipped
    window_hu         range to which CT intensities are clipped
    value_range       values that the ends of this window, or of the percentiles of MR, become, as some
                      published weights require (default: -1 and 1 for CT, mean 0 and deviation 1 for MR)
    nonfinite         NaN and infinity: error, zero (counted), or skip the scan
    channels          a fourth axis: error, all (channels), fourth (channels, even if the first axis looks
                      like them), first (volume), or split (each volume is a scan of the same patient and
                      frame)
    crop              none, or body: voxels outside the body's box are not stored
    label_interpolation  for resampled label maps: nearest, or linear (the class with the largest interpolated
                         share)
    body_coordinates  middle: mm from the middle of the body; affine: each scan is registered to one training
                      scan, about a second per scan, so that positions agree better across patients
    store_as          float16, or int16 with one scale per scan: finer, and integers stay exact
    store             npy, read as memory maps; or blosc2, compressed: a third to a half of the disk space,
                      but more processor time per crop
    test_fraction     of the patients, if the manifest has no split
    validation_fraction  of the patients: not used for training, but for choices (`measured_on: validation`)
    folds             2 or more: patients are divided into that many folds instead of test_fraction
                      (`data.fold: 0` tests the first)
    unlabelled        patients without a label map, if others have one: split as these, or all of them train,
                      which no test of a segmentation needs
    max_bad_fraction  of the scans that may be refused before it stops; one is always allowed
    hash_ids          scans, patients, frames and file names as keyed hashes, sessions numbered; the key and
                      links to the files are in DIR/raw, which must not be shared; other columns are unchanged
    workers           processes; 0: one per processor, up to 8
    """

    assume_spacing_mm: tuple[Positive, Positive, Positive] | None = None
    spacing_mm: Spacing = "keep"
    intensity: Literal["auto", "mri", "ct", "none"] = "auto"
    percentiles: tuple[Percent, Percent] = (0.5, 99.5)
    window_hu: tuple[float, float] = (-1000.0, 1000.0)
    value_range: tuple[float, float] | None = None
    nonfinite: Literal["error", "zero", "skip"] = "error"
    channels: Channels = "error"
    crop: Crop = "none"
    label_interpolation: LabelInterpolation = "nearest"
    body_coordinates: Literal["middle", "affine"] = "middle"
    store_as: StoreAs = "float16"
    store: Container = "npy"
    test_fraction: Fraction = 0.25
    validation_fraction: Fraction = 0.0
    folds: Annotated[int, Field(ge=2)] | None = None
    unlabelled: Literal["split", "train"] = "split"
    max_bad_fraction: Fraction = 0.01
    hash_ids: bool = False
    seed: Seed = 0
    workers: Annotated[int, Field(ge=0, le=256)] = 0

    def __post_init__(self) -> None:
        for name in ("percentiles", "window_hu", "value_range"):
            low, high = getattr(self, name) or (0, 1)
            if low >= high:
                raise ConfigError(name, None, f"the first, {low}, must be below the second, {high}")
        if self.folds is not None and self.unlabelled == "train":
            problem = "with folds, every patient is in one, so those without a label map too"
            raise ConfigError("unlabelled", Word("train"), problem, "remove unlabelled, or folds")


def option_schemas(source: str, common: type = PrepareOptions) -> list[Schema]:
    """JSON Schemas of the options of a source, if it exists, and of `common`."""
    own = [SOURCES.schema(source)] if source in SOURCES.names() else []
    return [adapter.json_schema() for adapter in (*own, TypeAdapter(common))]


@dataclass(frozen=True)
class ParsedOptions:
    """The fields of the source, with defaults, and the options of the preparation."""

    fields: Mapping[str, Any]
    options: PrepareOptions


def prepare_options(source: str, given: Mapping[str, Any]) -> ParsedOptions:
    """Validate and separate options; `seed` goes to both if the source has it too.

    ConfigError: unknown source, key or value.
    """
    if source not in SOURCES.names():
        parse_choice(SOURCES, source, {}, "prepare")  # raises with the list of sources
    place, common = f"prepare {source}", [f.name for f in dataclasses.fields(PrepareOptions)]
    own = refuse_unknown(given, source, common, place)
    fields = parse_choice(SOURCES, source, {k: v for k, v in given.items() if k in own}, place)
    options = parse({k: v for k, v in given.items() if k in common}, PrepareOptions, place)
    return ParsedOptions(fields.fields, options)


def refuse_unknown(given: Iterable[str], source: str, common: Sequence[str], place: str) -> list[str]:
    """The names of a source's fields. ConfigError for an option that is neither one of them nor `common`."""
    own = [spec.name for spec in describe(SOURCES, source)]
    for key in given:
        if key not in own and key not in common:
            problem = f"unknown option{did_you_mean(key, [*own, *common])}"
            listed = f"of {source}: {', '.join(own) or 'none'}; of any source: {', '.join(common)}"
            raise ConfigError(key, None, problem, listed, place=place)
    return own
