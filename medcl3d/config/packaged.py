"""Packaged configurations: complete files, found by name from any folder."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from medcl3d.core.errors import ConfigError


def packaged_root() -> Path | None:
    """``medcl3d/configs`` of an installed package, or ``configs`` of the checkout."""
    package = Path(__file__).parents[1]
    return next((root for root in (package / "configs", package.parent / "configs") if root.is_dir()), None)


def packaged_names() -> list[str]:
    """All packaged configurations as ``folder/name``, sorted."""
    root = packaged_root()
    if root is None:
        return []
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def find_config(name: str) -> Path:
    """The file `name`, otherwise the packaged configuration of that name (``configs/`` and ``.yaml`` are
    optional).

    ConfigError: neither exists; the message lists similar names.
    """
    if Path(name).exists():
        return Path(name)
    names = packaged_names()
    wanted = name.removeprefix("configs/").removesuffix(".yaml")
    root = packaged_root()
    if root and wanted in names:
        return root / f"{wanted}.yaml"
    near = get_close_matches(wanted, names, n=3, cutoff=0.4)
    near = near or [other for other in names if Path(other).name == Path(wanted).name]
    remedy = f"similar names: {', '.join(near)}" if near else "`medcl3d list configs` lists the packaged ones"
    raise ConfigError(
        problem="no such file, and no packaged configuration of that name", remedy=remedy, place=name
    )
