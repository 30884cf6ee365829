"""Tasks that an encoder is fine-tuned for or evaluated on, one per file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medcl3d.config.registry import Registry
from medcl3d.core.errors import inside

if TYPE_CHECKING:
    from medcl3d.config.field_types import Choice
    from medcl3d.downstream.task import Task

TASKS = Registry("task", __name__, former="medcl3d.downstream")


def task_of(choice: Choice) -> Task:
    """The chosen task."""
    with inside("task"):
        task: Task = TASKS.build(choice)
    return task


if TYPE_CHECKING:
    from medcl3d.downstream.tasks.classification import Classification
    from medcl3d.downstream.tasks.multilabel import Multilabel
    from medcl3d.downstream.tasks.regression import Regression
    from medcl3d.downstream.tasks.segmentation import Segmentation
    from medcl3d.downstream.tasks.structure_at_centre import StructureAtCentre

    # A type checker verifies that each is a task.
    _TASKS: tuple[type[Task], ...] = (Classification, Multilabel, Regression, Segmentation, StructureAtCentre)
