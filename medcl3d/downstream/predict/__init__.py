"""Segmentation of new scans on their own grid."""
