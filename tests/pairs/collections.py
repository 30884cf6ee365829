"""Random collections for property tests: anisotropic, oblique, sheared, odd shapes, several visits per
patient.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medcl3d.core.collection import Collection


def make_collection(
    seed: int,
    num_scans: int,
    patch_size: tuple[int, int, int] = (12, 10, 8),
    smallest: int = 20,
    shear_degrees: float = 0.0,
) -> Collection:
    """A collection with random geometry; scans are never smaller than `smallest` voxels along an axis.

    shear_degrees: largest angle by which an axis is sheared towards those before it (0: axes are orthogonal).
    """
    rng, shear_rng = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    shapes = rng.integers(smallest, smallest + 30, (num_scans, 3))
    affines = np.tile(np.eye(4), (num_scans, 1, 1))
    for i in range(num_scans):
        spacing = rng.uniform(0.4, 6.0, 3)
        rotation = Rotation.from_euler("xyz", rng.uniform(-40, 40, 3), degrees=True).as_matrix()
        shear = np.eye(3) + np.triu(
            np.tan(np.radians(shear_rng.uniform(-shear_degrees, shear_degrees, (3, 3)))), 1
        )
        affines[i, :3, :3] = rotation @ (shear / np.linalg.norm(shear, axis=0)) * spacing
        affines[i, :3, 3] = rng.uniform(-200, 200, 3)
    low = rng.integers(0, shapes // 4 + 1)
    body = np.stack([low, shapes - rng.integers(0, shapes // 4 + 1)], 1)
    patient = [f"p{i // 2}" for i in range(num_scans)]
    table = pd.DataFrame(
        {
            "scan": [f"s{i}" for i in range(num_scans)],
            "patient": patient,
            "session": [str(i % 2) for i in range(num_scans)],
            "session_days": rng.uniform(0, 900, num_scans),
            "modality": [("t1", "t2")[i % 2] for i in range(num_scans)],
            "frame": [f"s{i}" for i in range(num_scans)],
            "age": rng.uniform(20, 80, num_scans),
            "sex": [("F", "M")[(i // 2) % 2] for i in range(num_scans)],
            "class": [("a", "b")[(i // 2) % 2] for i in range(num_scans)],
        }
    )
    return replace(Collection.of(table, shapes, affines, body), patch_size=patch_size)


collections = st.builds(
    make_collection, st.integers(0, 10_000), st.integers(4, 8), shear_degrees=st.sampled_from([0.0, 30.0])
)


def visits(collection: Collection) -> Collection:
    """The same scans in one modality, so that a patient's scans are two visits."""
    return replace(collection, table=collection.table.assign(modality="t1")).with_columns(
        {"modality": np.zeros(len(collection), dtype=np.int64)}
    )


def one_session(collection: Collection) -> Collection:
    """The same scans, with one session per patient."""
    return replace(collection, table=collection.table.assign(session="0"))


def with_gaps(seed: int, num_scans: int) -> Collection:
    """Scans of a few patients, some with one scan only, with empty sessions, days and modalities."""
    collection, rng = make_collection(seed, num_scans), np.random.default_rng(seed)

    def some(*values: object) -> np.ndarray:
        return rng.choice(np.array(values, dtype=object), num_scans)

    table = collection.table.assign(
        patient=some("a", "b", "c", "d", "e"),
        session=some("1", "2", np.nan, ""),
        session_days=some(0.0, 90.0, 400.0, np.nan).astype(np.float64),
        modality=some("t1", "t2", np.nan),
        age=some(40.0, 41.0, 70.0, np.nan).astype(np.float64),
    )
    again = Collection.of(table, collection.shapes, collection.affines, collection.body_boxes)
    return replace(again, patch_size=collection.patch_size)


gappy = st.builds(with_gaps, st.integers(0, 10_000), st.integers(6, 16))
