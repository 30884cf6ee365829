"""HTML pages from the templates of this package."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from medcl3d.comparison.analysis.incomplete_runs import count
from medcl3d.comparison.analysis.number_text import number, numbers, p_value
from medcl3d.comparison.plan.cells import cell_words
from medcl3d.io.atomic import write_text


def write_page(path: Path, template: str, content: Mapping[str, Any]) -> None:
    """Render a template to `path`, atomically."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medcl3d.comparison.report"),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals.update(
        number=number,
        numbers=numbers,
        data_uri=svg_uri,
        p_text=p_value,
        cell_words=cell_words,
        count=count,
        plain=plain_text,
    )
    write_text(path, environment.get_template(template).render(content))


def plain_text(value: Any) -> str:
    """A value of a configuration as text: fields and lists without quotes and braces."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain_text(one)}" if one != {} else str(key) for key, one in value.items())
    if isinstance(value, list | tuple):
        return " x ".join(map(plain_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def svg_uri(svg: str) -> str:
    """SVG text as a data URI."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
