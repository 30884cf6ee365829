"""Cause every fault of `tests/faults` once and write the messages into a page: make reliability."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from medcl3d.preprocessing.options import prepare_options  # noqa: E402
from medcl3d.preprocessing.prepare import prepare  # noqa: E402
from tests.faults import FAULTS  # noqa: E402
from tests.faults.fault import meet  # noqa: E402

PAGE = ROOT / "docs" / "reference" / "faults.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"


def message(output: str, first: str, folder: Path, store: Path) -> str:
    """Line of the output with `first`, else the last, with paths shortened and escaped for a table."""
    line = next((line for line in output.splitlines() if first in line), output.strip().rpartition("\n")[2])
    line = line.removeprefix("medcl3d: ").replace(f"{folder}/", "").replace(f"{folder}", "FOLDER")
    line = line.replace(f"{store}", "STORE").replace("|", "\\|")
    line = line if len(line) <= 300 else f"{line[:297]}..."
    return line.replace("<", "&lt;")


def main() -> None:
    """Write the table; exit code 1 if the outcome of a fault differs from its row."""
    lines, wrong = ["| fault | what | exit | message |", "|---:|---|---:|---|"], 0
    with tempfile.TemporaryDirectory() as temporary:
        given = prepare_options("simulated", {"num_patients": 6, "shape": [32, 32, 32], "workers": 1})
        tiny = Path(temporary) / "store"
        prepare("simulated", None, tiny, fields=given.fields, options=given.options)
        for number, fault in enumerate(FAULTS):
            folder = Path(temporary) / str(number)
            folder.mkdir()
            code, output = meet(fault, folder, tiny)
            has_texts = all(text in output for text in fault.texts) and "Traceback" not in output
            is_expected = code == fault.code and has_texts
            wrong += not is_expected
            cell = f"{'' if is_expected else '**WRONG** '}{message(output, fault.texts[0], folder, tiny)}"
            lines.append(f"| {fault.number} | {fault.what} | {code} | {cell} |")
    head, _, rest = PAGE.read_text().partition(BEGIN)
    numbers = len({fault.number for fault in FAULTS})
    count = f"{len(FAULTS) - wrong} of {len(FAULTS)} rows, of {numbers} faults, end as expected.\n\n"
    PAGE.write_text(head + BEGIN + count + "\n".join(lines) + "\n" + END + rest.partition(END)[2])
    print(count.strip())
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
