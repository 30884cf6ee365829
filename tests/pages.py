"""Code blocks of the README and of docs/: what a page contains, whether it is valid, and how to run it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from typer import Context
from typer.main import get_command
from typer.testing import CliRunner

from medcl3d.cli import app
from medcl3d.comparison.plan.config import CompareConfig
from medcl3d.config.loading import load, read_options
from medcl3d.config.packaged import find_config
from medcl3d.core.errors import ConfigError
from medcl3d.downstream.evaluate import EvaluateConfig
from medcl3d.downstream.finetune import FinetuneConfig
from medcl3d.preprocessing.options import option_schemas, prepare_options
from medcl3d.pretraining.config import PretrainConfig

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^>]+) -->\n+)?^```(?P<language>[^\n`]*)\n(?P<code>.*?)^```",
    re.DOTALL | re.MULTILINE,
)
WHOLE_PAGE = re.compile(r"<!-- commands of this page are not run: ([^>]+) -->")
COMMAND_OF = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "evaluate": EvaluateConfig,
    "compare": CompareConfig,
}
SMALL_ENCODER = ("data.patch_size=[16,16,16]", "encoder={unet3d: {channels: [4, 8], strides: [1, 2]}}")
SMALL_TRAINING = ("train.steps=2", "train.warmup_steps=1", "train.samples_per_step=2", "train.workers=0")
SMALL = {
    "pretrain": (*SMALL_ENCODER, *SMALL_TRAINING),
    "finetune": (*SMALL_ENCODER, *SMALL_TRAINING, "num_labelled=2"),
    "evaluate": SMALL_ENCODER,
}
"""Overrides that are added to the commands of a page, so that it runs in seconds."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its code, and why it is not run (empty if it is)."""

    language: str
    code: str
    reason: str

    @property
    def is_shell(self) -> bool:
        """Whether it holds commands."""
        return self.language in ("", "console", "bash")

    @property
    def commands(self) -> list[str]:
        """Commands of a shell block, with continued lines joined and comments removed."""
        lines = self.code.replace("\\\n", " ").splitlines()
        if self.language == "console":  # commands follow a prompt, other lines are their output
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        return [line.split("  #")[0].split(" # ")[0].strip() for line in lines if line.strip()]

    @property
    def file(self) -> str:
        """Name of the file that a YAML block is, by its first line `# name.yaml`."""
        found = re.match(r"# (\S+\.ya?ml)\n", self.code)
        return found[1] if found else ""


def pages() -> list[Path]:
    """The README and all pages of the site."""
    return [ROOT / "README.md", *sorted(p for p in DOCS.rglob("*.md") if "_build" not in p.parts)]


def name_of(page: Path) -> str:
    """Path of a page below docs/, as `howto/bids`; README for the README."""
    return page.relative_to(DOCS).with_suffix("").as_posix() if DOCS in page.parents else page.stem


def blocks(page: Path, language: str | None = None) -> list[Block]:
    """The fenced blocks of a page, without directives of sphinx; all of them, or those of one language."""
    text = page.read_text(encoding="utf-8")
    whole = WHOLE_PAGE.search(text)
    found = [
        Block(one["language"].strip(), one["code"], one["reason"] or (whole[1] if whole else ""))
        for one in BLOCK.finditer(text)
    ]
    return [one for one in found if not one.language.startswith("{") and language in (None, one.language)]


def check_command(line: str) -> None:
    """Parse a command without running it; an exception if it, its options or its fields do not exist."""
    words = [word for word in shlex.split(line) if "=" not in word or not word.split("=")[0].isupper()]
    if words[0] == "medcl3d":
        _check_medcl3d(words[1:])
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets, line
    for word in words:
        if word.startswith(("configs/", "tools/", "docs/", "examples/", "docker/")):
            assert (ROOT / word).exists(), f"{line}: {word} does not exist"
    if words[0] == "torchrun":
        program = next(i for i, word in enumerate(words) if word.startswith(("tools/", "medcl3d")))
        name = words[program : program + 1] if words[program] != "medcl3d" else []
        _check_medcl3d([*(Path(one).stem for one in name), *words[program + 1 :]])


def _check_medcl3d(words: list[str]) -> None:
    if words[0].startswith("-"):
        return
    group = get_command(app)
    command = group.get_command(Context(group), words[0])  # type: ignore[attr-defined]
    assert command is not None, f"medcl3d {words[0]}: no such command"
    given = command.make_context(words[0], [word for word in words[1:] if word != "--help"]).params
    if words[0] == "prepare":
        fields = read_options(given["options"] or [], option_schemas(given["source"]))
        prepare_options(given["source"], fields)
    elif words[0] in COMMAND_OF:
        try:
            path = find_config(given["config"])
        except ConfigError:
            return  # a file that the page writes, or that stands for a file of the reader
        fields = [text for text in given["overrides"] or [] if "=" in text]
        load(path, fields, COMMAND_OF[words[0]])


def check_yaml(block: Block, folder: Path) -> None:
    """Load a YAML block as a configuration; one with a few fields replaces those of a packaged file."""
    content = yaml.safe_load(block.code)
    for name, model in COMMAND_OF.items():
        if set(content) <= set(model.__dataclass_fields__):
            base = yaml.safe_load((ROOT / "configs" / name / "mine.yaml").read_text())
            if name == "compare" and "evaluate" in content:
                del base["finetune"]
            (folder / "a.yaml").write_text(yaml.safe_dump(base | content))
            load(folder / "a.yaml", (), model)
            return
    raise AssertionError(f"the keys {sorted(content)} are of no configuration")


def environment(folder: Path) -> Mapping[str, str]:
    """Variables of a shell whose `medcl3d` is that of this checkout."""
    programs = folder.parent / "bin"
    programs.mkdir(exist_ok=True)
    for name, module in (("medcl3d", "medcl3d"), ("torchrun", "torch.distributed.run")):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        (programs / name).chmod(0o755)
    path = f"{programs}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run_page(page: Path, folder: Path, small: Mapping[str, Sequence[str]] = SMALL) -> dict[str, Any]:
    """Run the blocks of a page in order in the working folder; the names that its Python code defines."""
    names: dict[str, Any] = {}
    for block in blocks(page):
        if block.reason:
            continue
        if block.language == "python":
            exec(compile(block.code, str(page), "exec"), names)
        elif block.file:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(block.code)
        elif block.is_shell:
            for line in block.commands:
                _run(line, folder, small)
    return names


def _run(line: str, folder: Path, small: Mapping[str, Sequence[str]]) -> None:
    words = shlex.split(line)
    name = words[words.index("medcl3d") + 1] if "medcl3d" in words[:-1] else ""
    if words[0] == "medcl3d" and not set(words) & {"|", ">", "&&"}:
        done = CliRunner().invoke(app, [*words[1:], *small.get(name, ())])
        assert done.exit_code == 0, f"{line}\n{done.output[-3000:]}"
        return
    command = " ".join([line, *map(shlex.quote, small.get(name, ()))])
    shell = {"cwd": folder, "env": environment(folder), "capture_output": True, "text": True}
    bash: Any = subprocess.run(["bash", "-c", command], **shell)  # type: ignore[call-overload]
    assert bash.returncode == 0, f"{line}\n{bash.stdout[-3000:]}\n{bash.stderr[-3000:]}"
