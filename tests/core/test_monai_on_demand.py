"""MONAI's modules are imported when they are used, and all of them can be."""

from __future__ import annotations

import subprocess
import sys

import pytest

ON_DEMAND = """
import sys
from medcl3d.core.monai_on_demand import import_on_demand
import_on_demand()
import_on_demand()
import medcl3d.downstream.finetune, medcl3d.evaluation.metrics.segmentation
assert len([one for one in sys.meta_path if "monai_on_demand" in type(one).__module__]) == 1
assert "monai.networks.nets.resnet" in sys.modules
print(*[name for name in ("monai.engines", "monai.auto3dseg", "monai.visualize") if name in sys.modules])
import monai
assert monai.__version__ and monai.losses.DiceLoss and monai.transforms.Resize
assert callable(monai.networks.nets.SwinUNETR) and not hasattr(monai, "nothing")
from monai.utils.module import load_submodules
import pkgutil
assert list(pkgutil.walk_packages(monai.__path__))
assert load_submodules(monai.config, True)[0]
"""


def test_modules_are_imported_when_they_are_used() -> None:
    done = subprocess.run([sys.executable, "-c", ON_DEMAND], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_a_module_of_monai_that_fails_is_reported_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without MONAI, the import error is that of Python."""
    code = (
        "import sys; from medcl3d.core import monai_on_demand as m; m.import_on_demand(); "
        "m.PathFinder.find_spec = classmethod(lambda *a: None); sys.path[:] = []; import monai"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError: No module named 'monai'" in done.stderr
