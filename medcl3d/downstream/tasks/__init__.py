"""Tasks that an encoder is fine-tuned for or evaluated on, one per file."""

from __future__ import annotations

from medcl3d.config.registry import Registry

TASKS = Registry("task", __name__, former="medcl3d.downstream")
