"""DICOM series: from headers to slices in order, and to a volume in RAS+ millimetres."""
