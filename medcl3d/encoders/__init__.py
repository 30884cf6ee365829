"""Networks that turn a volume into features, one per file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medcl3d.config.registry import Registry

if TYPE_CHECKING:
    from medcl3d.encoders.module import ModuleEncoder as ModuleEncoder
    from medcl3d.encoders.resnet3d import ResNet3d as ResNet3d
    from medcl3d.encoders.swin3d import Swin3d as Swin3d
    from medcl3d.encoders.unet3d import UNet3d as UNet3d
    from medcl3d.encoders.vit3d import ViT3d as ViT3d

ENCODERS = Registry("encoder", __name__)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """A registered class or function, imported on first use."""
        from medcl3d.config.lazy import registered_attribute

        return registered_attribute(ENCODERS, name)


def __dir__() -> list[str]:
    from medcl3d.config.lazy import registered_attributes

    return sorted({*globals(), *registered_attributes(ENCODERS)})
