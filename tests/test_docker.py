"""Checks of the container files that need no container engine: parsing, linting, and the wheel."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = ("docker/Dockerfile", "docker/Dockerfile.cuda")
KNOWN = {"FROM", "WORKDIR", "COPY", "RUN", "ARG", "ENV", "USER", "ENTRYPOINT", "CMD"}


def instructions(name: str) -> list[tuple[str, str]]:
    """Instruction and arguments of each line, with continued lines joined and comments removed."""
    lines = [
        line
        for line in (ROOT / name).read_text().splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def copied(name: str) -> Iterator[str]:
    """Paths that are copied from the checkout."""
    for word, rest in instructions(name):
        if word == "COPY" and not rest.startswith("--from"):
            yield from rest.split()[:-1]


def ignored(path: str) -> bool:
    """Whether .dockerignore excludes a top-level path; the last line that matches decides."""
    is_excluded = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#") and line.removeprefix("!") in ("*", path):
            is_excluded = not line.startswith("!")
    return is_excluded


@pytest.mark.parametrize("name", FILES)
def test_user_entry_point_and_shared_memory(name: str) -> None:
    parsed = instructions(name)
    assert {word for word, _ in parsed} <= KNOWN
    last = dict(parsed)
    assert json.loads(last["ENTRYPOINT"]) == ["medcl3d"] and json.loads(last["CMD"]) == ["--help"]
    assert int(last["USER"]) > 0
    assert any(word == "RUN" and f"--uid {last['USER']} " in rest for word, rest in parsed), "the user exists"
    names = {one.partition("=")[0] for one in last["ENV"].split()}
    assert {"HOME", "USER"} <= names, "MONAI finds no name for a user without an entry in the image"
    assert "--shm-size" in (ROOT / name).read_text()
    assert "http" not in (ROOT / name).read_text()


@pytest.mark.parametrize("name", FILES)
def test_stages_and_sources_exist(name: str) -> None:
    stages: set[str] = set()
    for word, rest in instructions(name):
        if word == "FROM" and " AS " in rest:
            stages.add(rest.split(" AS ")[1])
        if word == "COPY" and rest.startswith("--from="):
            assert rest.split()[0].removeprefix("--from=") in stages
    assert list(copied(name))
    for path in copied(name):
        assert (ROOT / path).exists() and not ignored(path)
    assert all(ignored(path) for path in ("data", "runs", ".git", ".venv", "tests"))


@pytest.mark.parametrize("name", FILES)
def test_torch_version_equals_that_of_the_makefile(name: str) -> None:
    pinned = re.search(r"^TORCH \?= (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert pinned is not None and ("ARG", f"TORCH={pinned[1]}") in instructions(name)


@pytest.mark.parametrize("name", FILES)
def test_run_lines_parse_as_shell(name: str) -> None:
    for word, rest in instructions(name):
        if word == "RUN":
            done = subprocess.run(["sh", "-n", "-c", rest], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", FILES)
def test_hadolint_reports_nothing(name: str) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed: it has no package for this platform")
    done = subprocess.run([hadolint, str(ROOT / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_copied_files_build_a_complete_wheel(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in copied(FILES[0]):
        (shutil.copytree if (ROOT / path).is_dir() else shutil.copy)(ROOT / path, source / path)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(source)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "medcl3d").rglob("*.py")}
    assert modules <= names and "medcl3d/configs/pretrain/mine.yaml" in names
