"""``python tools/view.py ...`` is ``medcl3d view ...``, from a checkout that need not be
installed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from medcl3d.cli import main

if __name__ == "__main__":
    main(["view", *sys.argv[1:]])
