"""Comparison of sessions of one patient's scans."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from medcl3d.core.collection import Collection

ONLY_SESSION = "1"
"""The default session of scans of a table without that column."""


def compare_sessions(
    collection: Collection, scan: int, rows: Int[np.ndarray, " m"]
) -> tuple[Bool[np.ndarray, " m"], Bool[np.ndarray, " m"]]:
    """``Bool[n]`` twice: which scans of `rows` have the session of `scan`, and which have another.

    A scan with an empty session is in neither: its session is unknown, and two unknown sessions may differ.
    """
    if "session" not in collection.table:
        return np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
    sessions = collection.texts("session")
    own_known = bool(pd.notna(sessions[scan]) and sessions[scan] != "")
    known = pd.notna(sessions[rows]) & (sessions[rows] != "") & own_known
    same = (sessions[rows] == sessions[scan]).astype(bool)
    return known & same, known & ~same
