"""Names of the columns of a manifest that have a meaning."""

from __future__ import annotations

# Columns with a defined meaning; all other columns of a manifest are metadata.
ID_COLUMNS = ("scan", "patient", "session", "modality", "frame", "class")
KNOWN_COLUMNS = (*ID_COLUMNS, "session_days", "path", "label", "atlas", "split")
PATH_COLUMNS = ("path", "label", "atlas")
