"""The commands of docs/howto/own_data.md are valid, and the page names every source."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from medcl3d.config.loading import read_options
from medcl3d.datasets.sources import SOURCES
from medcl3d.preprocessing.options import prepare_options
from tests.test_cli import COMMANDS, medcl3d

PAGE = (Path(__file__).parents[1] / "docs" / "howto" / "own_data.md").read_text()
LINES = [
    line
    for block in re.findall(r"```\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines()
    if line
]


def test_every_source_is_in_the_table() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE)) == set(SOURCES.names())


@pytest.mark.parametrize("line", LINES)
def test_command_is_valid(line: str) -> None:
    program, command, *words = shlex.split(line)
    assert program == "medcl3d" and command in COMMANDS
    if command == "prepare":
        prepare_options(words[0], read_options([word for word in words if "=" in word]))
    help_text = medcl3d(command, "--help").output
    for option in (word for word in words if word.startswith("--")):
        assert option in re.sub(r"\x1b\[[0-9;]*m", "", help_text)
