"""The code of the page about the Python API runs as written, block after block."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

import medcl3d
from medcl3d.cli import app
from medcl3d.config.loading import load
from medcl3d.pretraining.config import PretrainConfig
from tests.test_cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "howto" / "python.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    return [code for name, code in found if name == language]


def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "docs/howto/python.md", "exec"), names)
    assert names["vector"].shape == (8,)  # type: ignore[attr-defined]
    assert names["volume"].shape == (4, 32, 32, 32)  # type: ignore[attr-defined]
    assert names["trained"].channels == (10,)  # type: ignore[attr-defined]


@pytest.mark.parametrize("block", blocks("yaml"))
def test_yaml_is_a_configuration(block: str, tmp_path: Path) -> None:
    whole = yaml.safe_load((ROOT / "configs" / "pretrain" / "mine.yaml").read_text()) | yaml.safe_load(block)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(whole))
    load(tmp_path / "a.yaml", (), PretrainConfig)


def test_every_public_name_and_every_command_is_known() -> None:
    table = re.findall(r"^\| (`.*?) \|", PAGE, flags=re.MULTILINE)
    assert {name for row in table for name in re.findall(r"`(\w+)`", row)} == set(medcl3d.__all__)
    options = {option for parameter in app.registered_commands for option in [parameter.name]}
    for line in "".join(blocks("")).splitlines():
        words = shlex.split(line)
        assert words[1] in COMMANDS and words[1] in options
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / "howto" / link).exists(), link
