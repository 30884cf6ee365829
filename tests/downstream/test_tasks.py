"""The registered tasks and the interfaces that they have."""

from __future__ import annotations

import ast
from pathlib import Path

import medcl3d.downstream.tasks as package
from medcl3d.downstream.probes import Probed
from medcl3d.downstream.task import DrawsEachStratumFirst, HasClasses
from medcl3d.downstream.tasks import TASKS
from medcl3d.downstream.tasks.classification import Classification
from medcl3d.downstream.tasks.multilabel import Multilabel
from medcl3d.downstream.tasks.regression import Regression
from medcl3d.downstream.tasks.segmentation import Segmentation
from medcl3d.downstream.tasks.structure_at_centre import StructureAtCentre


def test_a_type_checker_verifies_every_registered_task() -> None:
    tree = ast.parse(Path(str(package.__file__)).read_text())
    (checked,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Tuple)
        and node.elts
        and all(isinstance(name, ast.Name) for name in node.elts)
        and isinstance(node.ctx, ast.Load)
        and len(node.elts) > 2
    ]
    names = {name.id for name in checked.elts if isinstance(name, ast.Name)}
    assert names == {TASKS.get(name).__name__ for name in TASKS.names()}


def test_further_interfaces_of_tasks() -> None:
    tasks = (Classification(), Multilabel(targets=("a",)), Regression(), Segmentation(), StructureAtCentre())
    assert [isinstance(task, HasClasses) for task in tasks] == [True, True, False, True, True]
    assert [isinstance(task, Probed) for task in tasks] == [True, True, False, False, True]
    assert [isinstance(task, DrawsEachStratumFirst) for task in tasks] == [False, True, False, False, False]
