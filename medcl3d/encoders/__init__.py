"""Networks that turn a volume into features, one a file."""

from medcl3d.registry import Registry

ENCODERS = Registry("encoder", __name__)
