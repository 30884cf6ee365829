"""View recipes that TorchIO computes."""
