"""DICOM series: from headers to sorted slices and to a volume in RAS+ millimetres."""
