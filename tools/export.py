"""Run ``medcl3d export`` from a checkout that is not installed: ``python tools/export.py ...``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from medcl3d.cli import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
