"""Settings of Sphinx for the documentation site: `make docs` builds it into docs/_build/html."""

from __future__ import annotations

from medcl3d.core.version import __version__

project = "medcl3d"
copyright = "the authors of medcl3d"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]


myst_heading_anchors = 4
myst_enable_extensions = ["deflist", "colon_fence", "attrs_inline", "dollarmath"]

html_theme = "furo"
html_title = f"medcl3d {__version__}"
html_copy_source = False
