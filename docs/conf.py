"""Settings of Sphinx for the documentation site: `make docs` builds it into docs/_build/html."""

from __future__ import annotations

import sys
from pathlib import Path

from medcl3d.core.version import __version__

sys.path.insert(0, str(Path(__file__).parent))

project = "medcl3d"
copyright = "the authors of medcl3d"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "generated"]
default_role = "code"
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
myst_heading_anchors = 4
myst_enable_extensions = ["deflist", "colon_fence"]

highlight_language = "text"  # of blocks without a language

html_theme = "furo"
html_title = f"medcl3d {__version__}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
