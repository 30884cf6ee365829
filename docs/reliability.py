"""Meet every fault of `tests/faults` once and write what was told into the table of `reliability.md`: make reliability."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from medcl3d.data.options import prepare_options  # noqa: E402
from medcl3d.data.prepare import prepare  # noqa: E402
from tests.faults import FAULTS  # noqa: E402
from tests.faults.fault import meet  # noqa: E402

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"


def main() -> None:
    """Write the table; exit code 1 where a fault ends otherwise than its row says."""
    lines, wrong = ["| fault | what | exit | what is told |", "|---:|---|---:|---|"], 0
    with tempfile.TemporaryDirectory() as temporary:
        given = prepare_options("simulated", {"num_patients": 6, "shape": [32, 32, 32], "workers": 1})
        tiny = Path(temporary) / "store"
        prepare("simulated", None, tiny, fields=given.fields, options=given.options)
        for number, fault in enumerate(FAULTS):
            folder = Path(temporary) / str(number)
            folder.mkdir()
            code, told = meet(fault, folder, tiny)
            is_right = code == fault.code and all(text in told for text in fault.says) and "Traceback" not in told
            wrong += not is_right
            said = next((line for line in told.splitlines() if fault.says[0] in line), told.strip().rpartition("\n")[2])
            said = said.removeprefix("medcl3d: ").replace(f"{folder}/", "").replace(f"{folder}", "FOLDER")
            said = said.replace(f"{tiny}", "STORE").replace("|", "\\|")
            said = said if len(said) <= 300 else f"{said[:297]}..."
            lines.append(f"| {fault.number} | {fault.what} | {code} | {'' if is_right else '**WRONG** '}{said.replace('<', '&lt;')} |")
    head, _, rest = PAGE.read_text().partition(BEGIN)
    numbers = len({fault.number for fault in FAULTS})
    count = f"{len(FAULTS) - wrong} of {len(FAULTS)} rows, of {numbers} faults, end as they should.\n\n"
    PAGE.write_text(head + BEGIN + count + "\n".join(lines) + "\n" + END + rest.partition(END)[2])
    print(count.strip())
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
