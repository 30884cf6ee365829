"""Whether two scans of a patient are of one session."""

from __future__ import annotations

import numpy as np
import pandas as pd

from medcl3d.data.collection import Collection


def compare_sessions(collection: Collection, scan: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``Bool[n]`` twice: which of the scans `rows` are of the session of `scan`, and which are of another.

    A scan with an empty session is neither: its session is unknown, and two unknown sessions need not be one.
    """
    if "session" not in collection.table:
        return np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
    sessions = collection.texts("session")
    known = pd.notna(sessions[rows]) & (sessions[rows] != "") & bool(pd.notna(sessions[scan]) and sessions[scan] != "")
    same = (sessions[rows] == sessions[scan]).astype(bool)
    return known & same, known & ~same
