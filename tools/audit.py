"""Run ``medcl3d audit`` from a checkout that is not installed: ``python tools/audit.py ...``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from medcl3d.cli import main

if __name__ == "__main__":
    main(["audit", *sys.argv[1:]])
