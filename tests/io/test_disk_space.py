"""Write access and disk space are checked before a run, without leaving files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from medcl3d.core.errors import MachineError
from medcl3d.io.disk_space import free_bytes, require_writable


def test_a_folder_that_could_be_created_is_not_created(tmp_path: Path) -> None:
    require_writable(tmp_path / "deep" / "deeper", "out_dir")
    require_writable(tmp_path, "out_dir")
    assert free_bytes(tmp_path / "deep") > 0 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("below", ["", "inner/most"])
def test_an_unwritable_path_is_reported_with_its_option(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(
            MachineError,
            match=re.escape(f"out_dir = {tmp_path / name / below}: {tmp_path / name} is not a folder"),
        ):
            require_writable(tmp_path / name / below, "out_dir")
    with pytest.raises(MachineError, match="cannot write in /proc"):
        require_writable(Path("/proc") / "x" / below, "--out")
