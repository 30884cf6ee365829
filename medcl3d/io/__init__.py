"""Reading and writing files: NIfTI, arrays, tables, JSON, atomic writes, disk space."""
