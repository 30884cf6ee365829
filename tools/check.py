"""Run ``medcl3d check`` from a checkout that is not installed: ``python tools/check.py ...``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from medcl3d.cli import main

if __name__ == "__main__":
    main(["check", *sys.argv[1:]])
