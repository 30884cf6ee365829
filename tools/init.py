"""Run ``medcl3d init`` from a checkout that is not installed: ``python tools/init.py ...``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from medcl3d.cli import main

if __name__ == "__main__":
    main(["init", *sys.argv[1:]])
