"""Dense evaluation of a frozen encoder: probes of features at single voxels."""
