"""Networks that turn a volume into features, one per file."""

from medcl3d.registry import Registry

ENCODERS = Registry("encoder", __name__)
