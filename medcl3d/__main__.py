"""``python -m medcl3d``."""

from medcl3d.cli import main

if __name__ == "__main__":
    main()
