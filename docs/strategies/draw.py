"""Draw the pictures of the strategies' pages from their own configurations: ``make pictures``.

Needs the simulated cohort: ``medcl3d prepare simulated - --out data/simulated``.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))


def configuration(page: Path) -> str:
    """The YAML of a page. ValueError if it has none, or several."""
    (found,) = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


def pages() -> list[Path]:
    """The pages of all strategies."""
    return sorted(
        page for page in HERE.glob("*.md") if page.stem not in ("README", "write_your_own", "recovery")
    )


def main(names: list[str]) -> None:
    """Draw the named strategies, all by default; 128 colours keep the files small."""
    from PIL import Image

    from medcl3d.pretraining.show_pairs import show_pairs

    (HERE / "pictures").mkdir(exist_ok=True)
    for page in pages():
        if names and page.stem not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            config, picture = Path(folder) / f"{page.stem}.yaml", Path(folder) / "picture.png"
            config.write_text(configuration(page), encoding="utf-8")
            show_pairs(config, (), picture, num_samples=2)
            image = Image.open(picture).convert("RGB")
            image.thumbnail((1000, 2000))
            image.quantize(128).save(HERE / "pictures" / f"{page.stem}.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1:])
