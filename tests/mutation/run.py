"""Mutation testing: report changes of the code that no test detects; `make mutation` runs it.

mutmut creates the mutants and runs the tests; this script selects the tests of each file and compares the
surviving
mutants with those explained in survivors.yaml. It exits with 1 if a survivor is not explained.

    python tests/mutation/run.py medcl3d/views/intensity.py medcl3d/losses

mutmut changes functions and methods, but not decorated functions, default arguments that are expressions,
module
constants or class fields.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("survivors.yaml")
COPIED = ("medcl3d", "tests", "configs", "pyproject.toml", "setup.cfg", "README.md")
UNNOTICED = ("survived", "no tests")
UNDECIDED = ("not checked", "skipped")
SETTINGS = """
[mutmut]
source_paths = medcl3d
only_mutate = {file}
also_copy =
    configs
    README.md
pytest_add_cli_args =
    -m
    not slow
pytest_add_cli_args_test_selection =
    {tests}
timeout_constant = 5
"""


@dataclass(frozen=True)
class Mutant:
    """A change of one function: the replaced lines and the new lines, with normalised spaces."""

    function: str
    was: str
    becomes: str


def one_line(code: Iterable[str]) -> str:
    """Lines of code as one, with single spaces."""
    return " ".join(" ".join(code).split())


def read_list() -> tuple[dict[str, list[str]], dict[str, set[Mutant]]]:
    """Further tests by source file, and explained survivors by source file."""
    listed = yaml.safe_load(LIST.read_text(encoding="utf-8"))
    explained = {
        file: {
            Mutant(entry["function"], one_line([entry["was"]]), one_line([becomes]))
            for entry in entries
            for becomes in ([entry["becomes"]] if isinstance(entry["becomes"], str) else entry["becomes"])
        }
        for file, entries in listed["survivors"].items()
    }
    return listed["tests"], explained


def own_tests(file: Path, further: dict[str, list[str]]) -> list[str]:
    """The test files of a source file: the one of its name and those listed, otherwise all of its folder."""
    folder = Path("tests", file.parts[1])
    own = [str(folder / f"test_{file.stem}.py")]
    found = [test for test in [*own, *further.get(str(file), [])] if (ROOT / test).exists()]
    return found or [str(folder)]


def mutmut(*words: str, work: Path) -> str:
    """Run mutmut in the working copy and return its output. Exits with its last lines if it failed."""
    done = subprocess.run(
        [Path(sys.executable).with_name("mutmut"), *words], cwd=work, capture_output=True, text=True
    )
    if done.returncode:
        tail = (done.stdout + done.stderr).replace("\r", "\n").splitlines()[-30:]
        sys.exit("\n".join([*tail, f"mutmut {' '.join(words)} failed in {work}"]))
    return done.stdout


def mutants(file: Path, tests: list[str], workers: int, work: Path) -> Iterator[tuple[str, str]]:
    """Name and state of every mutant of a file, after its tests have run on each mutant."""
    shutil.rmtree(work / "mutants", ignore_errors=True)
    settings = SETTINGS.format(file=file, tests="\n    ".join(tests))
    (work / "setup.cfg").write_text((ROOT / "setup.cfg").read_text() + settings)
    mutmut("run", "--max-children", str(workers), work=work)
    for line in mutmut("results", "--all", "True", work=work).splitlines():
        name, _, state = line.strip().rpartition(": ")
        if name:
            yield name, state


def shown(name: str, work: Path) -> Mutant:
    """The change of a mutant."""
    lines = [
        line for line in mutmut("show", name, work=work).splitlines() if not line.startswith(("---", "+++"))
    ]
    function = name.rpartition(".")[2].partition("__mutmut_")[0].removeprefix("x")
    was, becomes = (one_line(line[1:] for line in lines if line.startswith(sign)) for sign in "-+")
    return Mutant(
        re.sub("ǁ", ".", function).strip(".") if "ǁ" in function else function.removeprefix("_"), was, becomes
    )


def check(
    file: Path, further: dict[str, list[str]], explained: set[Mutant], workers: int, work: Path
) -> bool:
    """Mutate one file and print the result; returns whether every survivor is explained."""
    tests = own_tests(file, further)
    print(f"{file}: with {' '.join(tests)}", flush=True)
    states = dict(mutants(file, tests, workers, work))
    undecided = [name for name, state in states.items() if state in UNDECIDED]
    survivors = {name: shown(name, work) for name, state in states.items() if state in UNNOTICED}
    unexplained = {name: mutant for name, mutant in survivors.items() if mutant not in explained}
    counts = ", ".join(f"{number} {state}" for state, number in Counter(states.values()).most_common())
    print(
        f"{file}: {len(states)} mutants: {counts or 'none'}; {len(unexplained)} survivors without a reason",
        flush=True,
    )
    for name, mutant in unexplained.items():
        print(f"  {mutant.function} ({states[name]})\n    - {mutant.was}\n    + {mutant.becomes}", flush=True)
    for mutant in explained - set(survivors.values()):
        print(
            f"  no longer survives, remove it from {LIST.name}: {mutant.function}: {mutant.becomes}",
            flush=True,
        )
    for name in undecided:
        print(f"  {name} was not run", flush=True)
    return not unexplained and not undecided


def source_files(chosen: list[Path]) -> list[Path]:
    """Source files relative to the checkout, with folders expanded."""
    files: list[Path] = []
    for path in chosen:
        if not (ROOT / path).exists():
            sys.exit(f"{path}: not a file or folder of the checkout; give one such as medcl3d/losses")
        found = sorted((ROOT / path).rglob("*.py")) if (ROOT / path).is_dir() else [ROOT / path]
        files += [file.resolve().relative_to(ROOT) for file in found]
    return files


def main() -> None:
    """Mutate the given files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "files", nargs="+", type=Path, help="source files or folders, relative to the checkout"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that run tests")
    given = parser.parse_args()
    further, explained = read_list()
    with tempfile.TemporaryDirectory(prefix="medcl3d-mutation-") as folder:
        work = Path(folder)
        for name in COPIED:
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, work / name)
        clean = [
            check(f, further, explained.get(str(f), set()), given.workers, work)
            for f in source_files(given.files)
        ]
    sys.exit(not all(clean))


if __name__ == "__main__":
    main()
