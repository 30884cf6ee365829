"""A simulated cohort with known ground truth: patients, visits, modalities, scanners, written as NIfTI.

The manifest holds the known factors of each scan: the shape depends on the patient, the size of the ventricle
on `age`, its growth on `session_days`, the lesion on `class`, and all scanner effects on `site`.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field

from medcl3d.config.field_types import Fraction, PositiveInt, Seed, Size
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.datasets.manifest import Manifest
from medcl3d.datasets.phantom import LABELS, MODALITIES, Patient, simulate_scan
from medcl3d.datasets.sources import SOURCES
from medcl3d.datasets.sources.csv import csv as read_csv
from medcl3d.io.atomic import open_atomic, write_json, write_text
from medcl3d.io.json_file import read_json
from medcl3d.io.nifti import nifti_bytes


@SOURCES.register("simulated")
def simulated(
    root: Path | None,
    *,
    num_patients: Annotated[int, Field(ge=2, le=100_000)] = 40,
    shape: Size = (64, 64, 64),
    max_visits: Annotated[int, Field(ge=1, le=10)] = 2,
    num_modalities: Annotated[int, Field(ge=1, le=2)] = 2,
    num_sites: PositiveInt = 3,
    lesion_fraction: Fraction = 0.4,
    difficulty: Annotated[float, Field(ge=0, le=3, allow_inf_nan=False)] = 1.0,
    seed: Seed = 0,
) -> Manifest:
    """Write a cohort into `root` (None: nowhere) unless it exists, and read it like any table of files.

    shape           voxels over 128 mm in each direction, on the finest scanner
    max_visits      each patient has 1 to max_visits
    num_modalities  1: T1; 2: T1 and T2 of each visit, in one frame
    difficulty      multiplies scanner effects and the variation of shapes

    The same fields give the same bytes (on the same processor type). Raises ConfigError if `root` holds
    another cohort or other files.
    """
    if min(shape) < 16:
        problem = "at least 16 voxels per axis are needed, or the structures vanish"
        raise ConfigError("shape", shape, problem, owner="simulated")
    fields = dict(
        num_patients=num_patients,
        shape=list(shape),
        max_visits=max_visits,
        num_modalities=num_modalities,
        num_sites=num_sites,
        lesion_fraction=lesion_fraction,
        difficulty=difficulty,
        seed=seed,
    )

    def cohort() -> pd.DataFrame:
        people = (Patient(n, seed, difficulty, lesion_fraction, num_sites) for n in range(num_patients))
        rows = (_write_patient(root, patient, shape, max_visits, num_modalities) for patient in people)
        return pd.DataFrame(list(chain.from_iterable(rows)))

    if root is None:
        return Manifest.of(cohort(), Path("raw"), LABELS)
    exists = _is_complete(root, fields)
    if not exists:
        root.mkdir(parents=True, exist_ok=True)
        write_json(root / "simulated.json", {"version": 1, "fields": fields, "complete": False})
        for name in ("images", "labels"):
            (root / name).mkdir(exist_ok=True)
        write_text(root / "manifest.csv", cohort().to_csv(index=False, lineterminator="\n"))
        write_json(root / "labels.json", LABELS)
        write_json(root / "simulated.json", {"version": 1, "fields": fields, "complete": True})
    manifest = read_csv(root)
    note = f"the cohort was simulated and written to {root}"
    if exists:
        note = f"an existing cohort was read from {root}"
    return replace(manifest, notes=(*manifest.notes, note))


def _is_complete(root: Path, fields: dict[str, Any]) -> bool:
    """Whether `root` holds this cohort, complete. ConfigError or DataError if it holds anything else."""
    path = root / "simulated.json"
    if not path.exists():
        is_file = root.exists() and not root.is_dir()
        others = [] if is_file else sorted(entry.name for entry in root.glob("[!.]*"))
        if others or is_file:
            problem = f"contains {', '.join(others[:3]) or 'a file'}, not a simulated cohort"
            remedy = "choose an empty folder, or write - instead"
            raise ConfigError(problem=problem, remedy=remedy, place=root)
        return False
    found = read_json(path, f"delete {root}")
    if not isinstance(found, dict) or not isinstance(found.get("complete"), bool):
        raise DataError(path, "is damaged", f"delete {root}")
    if found.get("fields") != fields:
        problem = f"holds a cohort with {found.get('fields')}, not with {fields}"
        raise ConfigError(problem=problem, remedy="choose another folder, or delete this one", place=root)
    return bool(found["complete"])


def _write_patient(
    root: Path | None, patient: Patient, shape: tuple[int, int, int], max_visits: int, num_modalities: int
) -> list[dict[str, Any]]:
    """Write all scans of a patient (root None: nothing); returns their rows of the manifest."""
    rng = np.random.default_rng([patient.seed, patient.number, 3])
    num_visits = int(rng.integers(1, max_visits + 1))
    days = [0, *np.cumsum(rng.integers(150, 700, num_visits - 1)).tolist()]
    rows = []
    for visit, day in enumerate(days, start=1):
        years = day / 365.25
        for modality in MODALITIES[:num_modalities]:
            scan = f"{patient.name}_{visit}_{modality}"
            paths = f"images/{scan}.nii.gz", f"labels/{scan}.nii.gz"
            if root is not None:
                volumes = simulate_scan(patient, shape, visit, years, modality)
                for path, volume in zip(paths, volumes, strict=True):
                    with open_atomic(root / path) as file:
                        file.write(nifti_bytes(volume))
            rows.append(
                {
                    "scan": scan,
                    "patient": patient.name,
                    "session": str(visit),
                    "session_days": day,
                    "modality": modality,
                    "frame": f"{patient.name}_{visit}",
                    "path": paths[0],
                    "label": paths[1],
                    "class": "lesion" if patient.has_lesion else "healthy",
                    "age": round(patient.age + years, 1),
                    "sex": patient.sex,
                    "site": f"site{patient.site + 1}",
                }
            )
    return rows
