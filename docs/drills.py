"""Cause every fault of `tests/drills` once, and some at random, and write what happened: make drills."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from medcl3d.preprocessing.options import prepare_options  # noqa: E402
from medcl3d.preprocessing.prepare import prepare  # noqa: E402
from tests.drills import DRILLS  # noqa: E402
from tests.drills.counts import Count, counts  # noqa: E402
from tests.drills.drill import Drill  # noqa: E402
from tests.drills.namespaces import allowed  # noqa: E402
from tests.drills.place import Outcome, Setting  # noqa: E402

PAGE = ROOT / "docs" / "reference" / "drills.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
LONGEST = 240


def message(drill: Drill, outcome: Outcome, folder: Path) -> str:
    """The line of the output with the first expected text, without folders, for a table."""
    if not drill.texts:
        return "-"
    line = next((line for line in outcome.output.splitlines() if drill.texts[0] in line), "-")
    line = re.sub(r"^.*UserWarning: |^medcl3d: ", "", line.strip())
    line = re.sub(rf"{re.escape(str(folder))}/[^/ ]+/", "", line)
    line = re.sub(r"\((\[/|PytorchStreamReader)[^)]*\)*[^)]*\)", "(...)", line)
    line = line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."
    return line.replace("|", "\\|").replace("<", "&lt;")


def rows_of(setting: Setting) -> tuple[list[str], int]:
    """One row per drill, and the number of wrong ones."""
    rows, wrong = [], 0
    for number, drill in enumerate(DRILLS):
        if drill.namespaces and not allowed():
            rows.append(f"| {drill.number or ''} | {drill.what} | not run: it needs root | | | |")
            continue
        outcome = drill.cause(setting.place(str(number)))
        mistakes = drill.mistakes(outcome)
        wrong += bool(mistakes)
        print(f"{drill.name}: {'; '.join(mistakes) or 'as expected'}", flush=True)
        codes = ", ".join(f"signal {-code}" if code < 0 else str(code) for code in outcome.codes)
        cells = [drill.what, codes, message(drill, outcome, setting.folder), outcome.state, outcome.recovered]
        rows.append(f"| {drill.number or ''} | {'**WRONG** ' * bool(mistakes)}{' | '.join(cells)} |")
    return rows, wrong


def write(rows: list[str], wrong: int, found: list[Count]) -> str:
    """Write the tables into the page, and return their first line."""
    ran = sum(allowed() or not drill.namespaces for drill in DRILLS)
    lines = [
        f"{ran - wrong} of {len(DRILLS)} drills end as expected.",
        "\n| fault | what | exit | message | state | recovered |",
        "|---:|---|---|---|---|---|",
        *rows,
        "\n| at random | times | end as expected | which is |",
        "|---|---:|---:|---|",
        *(f"| {count.what} | {count.caused} | {count.expected} | {count.end} |" for count in found),
    ]
    head, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(head + BEGIN + "\n".join(lines) + "\n" + END + rest.partition(END)[2])
    return lines[0]


def main(kills: int, others: int) -> None:
    """Write the tables; exit code 1 if a drill or a count does not end as expected."""
    with tempfile.TemporaryDirectory() as temporary:
        given = prepare_options("simulated", {"num_patients": 6, "shape": [32, 32, 32], "workers": 1})
        tiny = Path(temporary) / "prepared"
        prepare("simulated", None, tiny, fields=given.fields, options=given.options)
        setting = Setting(Path(temporary) / "drills", tiny)
        rows, wrong = rows_of(setting)
        write(rows, wrong, [])  # random faults take longer, and may be interrupted
        found = counts(setting, kills, others)
    print(write(rows, wrong, found), *found, sep="\n")
    raise SystemExit(wrong > 0 or any(count.caused != count.expected for count in found))


if __name__ == "__main__":
    main(int(os.environ.get("KILLS", "20")), int(os.environ.get("OTHERS", "50")))
