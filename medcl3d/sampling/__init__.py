"""Batches of views: anchors per step, crops, points, augmentation, TorchIO."""
