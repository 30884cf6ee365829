"""Parts of the reference that are generated from the code, as an extension of sphinx.

A comment `<!-- generated: NAME [KIND] -->` in a page is replaced by the Markdown of function NAME.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from pydantic import TypeAdapter
from typer.cli import get_docs_for_click
from typer.main import get_command

from medcl3d.catalogue import names_of, schema_of
from medcl3d.cli import app as program
from medcl3d.config.field_descriptions import documentation, with_descriptions
from medcl3d.config.json_schema import resolved, type_words
from medcl3d.datasets.sources import SOURCES
from medcl3d.downstream.tasks import TASKS
from medcl3d.encoders import ENCODERS
from medcl3d.layouts import LAYOUTS
from medcl3d.objectives import OBJECTIVES
from medcl3d.pairs import PAIRS
from medcl3d.preprocessing.options import PrepareOptions
from medcl3d.views import VIEWS

DOCS = Path(__file__).parent
FIGURES = DOCS / "results" / "scaling.json"
MARK = re.compile(r"<!-- generated: (\w+)(?: (\w+))? -->")
SECURITY = re.compile(r"\]\((?:\.\./)+SECURITY\.md")  # links to the file at the top of the checkout
REGISTRIES = {
    "pairs": PAIRS,
    "objectives": OBJECTIVES,
    "views": VIEWS,
    "encoders": ENCODERS,
    "tasks": TASKS,
    "sources": SOURCES,
}
CHOSEN = {
    "medcl3d.pairs": "a [pair strategy](../strategies/index.md)",
    "medcl3d.objectives": "an [objective](../objectives/index.md)",
    "medcl3d.views": "a [view recipe](components.md#view-recipes)",
    "medcl3d.encoders": "an [encoder](components.md#encoders)",
    "medcl3d.downstream.tasks": "a [task](components.md#tasks)",
}
ENTRY = re.compile(r"([a-z]\w*(?:, [a-z]\w*)*)(?:  +|: )(\S.*)")


def commands() -> str:
    """Usage, arguments and options of every command, from typer."""
    group = get_command(program)
    context = typer.Context(group)
    found = [group.get_command(context, name) for name in group.list_commands(context)]  # type: ignore[attr-defined]
    texts = [get_docs_for_click(obj=one, ctx=context, indent=1, call_prefix="medcl3d") for one in found]
    return "\n".join(texts).replace("```console\n", "```text\n")


def fields(kind: str) -> str:
    """Every field of the configuration of a command, or the options of `prepare`."""
    if kind == "prepare":
        schema = TypeAdapter(PrepareOptions).json_schema()
        schema = with_descriptions(schema, inspect.cleandoc(PrepareOptions.__doc__ or ""))
    else:
        schema = json.loads(schema_of(kind))
    return "\n".join(_fields(schema, schema, ""))


def components(kind: str) -> str:
    """Every component of a kind: its first line, source and fields."""
    registry, lines = REGISTRIES[kind], []
    for name in registry.names():
        text = inspect.getdoc(registry.get(name)) or ""
        schema = with_descriptions(registry.schema(name).json_schema(), *documentation(registry, name))
        lines += [f"### {name}", "", prose(text.partition("\n\n")[0])]
        lines += ["", f"Source: {prose(source_of(text))}"] if source_of(text) else []
        lines += ["", *_fields(schema, schema, "")]
    return "\n".join(lines)


def strategies() -> str:
    """One row per pair strategy: definition, needs, use, source."""
    return _table("pairs", "strategies", ["definition", "needs", "use", "source"])


def objectives() -> str:
    """One row per objective: definition, parts of the relation, decoder, use, source."""
    return _table("objectives", "objectives", ["definition", "of the relation", "use", "source"])


def layouts() -> str:
    """One row per layout of published weights."""
    head = ["layout", "weights", "becomes", "axes", "spacing in mm", "prepare with", "licence", "source"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, one in LAYOUTS.items():
        options = " ".join(f"`{option}`" for option in one.prepare_options()) or "unknown"
        spacing = " x ".join(f"{mm:g}" for mm in one.spacing_mm or ()) or "varies"
        cells = [f"`{name}`", prose(one.about), f"`{one.encoder}`", one.axes or "unknown", spacing, options]
        lines.append(f"| {' | '.join([*cells, one.licence, prose(one.source)])} |")
    return "\n".join(lines)


def figures(kind: str) -> str:
    """The table of `FIGURES` whose title is `kind`, in small letters with `_`; a note if it is missing."""
    tables = json.loads(FIGURES.read_text(encoding="utf-8"))["tables"] if FIGURES.exists() else []
    found = next((one for one in tables if re.sub(r"\W+", "_", one["title"].lower()) == kind), None)
    if found is None:
        return "*Not measured.*"
    lines = [found["columns"], ["---"] * len(found["columns"]), *found["rows"]]
    drawn = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{drawn}\n\n{found['note']}\n\nEnvironment: {found['machine']}."


def _table(kind: str, folder: str, columns: list[str]) -> str:
    lines = [f"| name | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    for name in names_of(kind):
        constructor = REGISTRIES[kind].get(name)
        text = inspect.getdoc(constructor) or ""
        page = (DOCS / folder / f"{name}.md").read_text(encoding="utf-8")
        middle = paragraph(page, "Needs") if kind == "pairs" else _uses(constructor)
        use = paragraph(page, "Use").replace("](", f"](../{folder}/").replace(f"../{folder}/../", "../")
        source = prose(source_of(text)) or "None: it combines others."
        cells = [prose(text.partition("\n")[0]), middle, use, source]
        lines.append(f"| [{name}](../{folder}/{name}.md) | {' | '.join(cells)} |")
    return "\n".join(lines)


def _uses(objective: Any) -> str:
    names = {"positive": "P", "negative": "M"}
    parts = " and ".join(names[part] for part in sorted(objective.uses, reverse=True) if part in names)
    return f"{parts or 'nothing'}{'; trains a decoder' if objective.decodes else ''}"


def paragraph(page: str, title: str) -> str:
    """The paragraph of a page that begins with **title.**, on one line. ValueError if there is none."""
    found = re.search(rf"^\*\*{title}\.\*\* (.*?)\n\n", page, re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError(f"no paragraph **{title}.** in the page {page.partition(chr(10))[0]}")
    return " ".join(found[1].split())


def source_of(text: str) -> str:
    """The source that a docstring ends with, on one line."""
    found = re.search(r"\bSource: (.*?)(?:\n\n|\Z)", text, re.DOTALL)
    text = " ".join(found[1].split()) if found else ""
    return text[:1].upper() + text[1:]


def prose(text: str) -> str:
    """Plain text as Markdown on one line: characters with a meaning outside of code are escaped."""
    parts = re.split(r"(``.*?``|`.*?`)", " ".join(text.split()))
    escaped = (re.sub(r"([*<\[\]_])", r"\\\1", part) if i % 2 == 0 else part for i, part in enumerate(parts))
    return "".join(escaped).replace("|", "\\|")


def _fields(node: Mapping[str, Any], schema: Mapping[str, Any], path: str) -> Iterator[str]:
    """Definition lists of the fields of an object, those of inner objects after their own field."""
    for name, spec in node.get("properties", {}).items():
        kind, inner, below = _kind(spec, schema)
        is_required = name in node.get("required", ())
        default = "required" if is_required else _default(spec.get("default"), inner is None)
        yield f"`{path}{name}` — {kind}{default and f', {default}'}"
        yield f": {prose(str(spec.get('description', '')))}\n"
        if inner is not None:
            yield from _fields(inner, schema, f"{path}{name}{below}.")


def _kind(spec: Mapping[str, Any], schema: Mapping[str, Any]) -> tuple[str, Mapping[str, Any] | None, str]:
    """The type of a field in words, the schema of its fields if it has some, and the path to them."""
    options = [option for option in spec.get("anyOf", [spec]) if option.get("type") != "null"]
    if len(options) == 1:
        (only,) = options
        name = str(only.get("$ref", "")).rsplit("/", 1)[-1] or only.get("x-choice-of", "")
        if name in CHOSEN:
            return CHOSEN[name], None, ""
        for key, below in (("additionalProperties", ".NAME"), ("items", "[]")):
            if isinstance(only.get(key), Mapping) and "$ref" in only[key]:
                return _kind(only[key], schema)[0], _kind(only[key], schema)[1], below
        target = resolved(only, schema)
        if "properties" in target:
            return "a group of fields", target, ""
    groups = [target for one in options if "properties" in (target := resolved(one, schema))]
    if len(groups) == 1 and len(options) > 1:
        words = " or ".join(
            "a group of fields" if resolved(one, schema) is groups[0] else type_words(one) for one in options
        )
        return prose(words), groups[0], ""
    return prose(type_words({**spec, "anyOf": options} if len(options) > 1 else options[0])), None, ""


def _default(value: Any, is_value: bool) -> str:
    if value is None or not is_value:
        return "optional"
    if isinstance(value, dict) and set(value) == {"name", "fields"}:
        value = {value["name"]: value["fields"]} if value["fields"] else value["name"]
    return f"default `{value if isinstance(value, str) else json.dumps(value)}`"


def docstring(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Entries `name  text` of a docstring as a list, and indented lines as code: for autodoc, in place."""
    found: list[str] = []
    state = ""
    for line in lines:
        entry = ENTRY.fullmatch(line)
        if line.startswith("    ") and state != "entry":
            found += [] if state == "code" else [".. code-block:: python", ""]
            state = "code"
        elif entry and "  " in line:
            found += [""] if state != "entry" else []
            line = f"- **{entry[1]}**: {entry[2]}"
            state = "entry"
        elif line.startswith(" ") and state == "entry":
            line = f"  {line.strip()}"
        elif line:
            found += [""] if state == "entry" else []
            state = ""
        found.append(line)
    lines[:] = [*found, ""]


def replaced(text: str) -> str:
    """The text of a page with its generated parts."""
    parts = (commands, fields, components, layouts, strategies, objectives, figures)
    makers: dict[str, Any] = {maker.__name__: maker for maker in parts}
    return MARK.sub(lambda mark: makers[mark[1]](*filter(None, [mark[2]])), text)


def setup(app: Any) -> dict[str, bool]:
    """Connect the functions above to sphinx."""

    def read(_app: Any, _name: str, source: list[str]) -> None:
        source[0] = SECURITY.sub("](/reference/security.md", replaced(source[0]))

    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", docstring)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
