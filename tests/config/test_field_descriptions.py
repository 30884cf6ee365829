"""Descriptions of fields come from docstrings: entries, entries of several fields, and references."""

from __future__ import annotations

from medcl3d.config.field_descriptions import documentation, field_descriptions, with_descriptions
from medcl3d.objectives import OBJECTIVES
from medcl3d.pairs import PAIRS

TEXT = """A strategy with `first` and  second.

first           the first field, in mm
second, third   both of them, which
                need two lines

Prose that follows is not a part of them,
    even if it is indented. Source: a paper.
"""


def test_an_entry_ends_at_a_line_without_indentation() -> None:
    both = "both of them, which need two lines"
    assert field_descriptions(TEXT) == {"first": "the first field, in mm", "second": both, "third": both}


def test_a_field_that_has_a_description_keeps_it_and_the_first_docstring_counts() -> None:
    schema = {"properties": {"first": {}, "second": {"description": "own"}, "other": {}}}
    described = with_descriptions(schema, "Title.\n\nfirst  of a subclass", TEXT)["properties"]
    assert described == {
        "first": {"description": "of a subclass"},
        "second": {"description": "own"},
        "other": {},
    }


def test_inherited_fields_and_those_of_a_named_component_are_described() -> None:
    for registry, name, field in (
        (PAIRS, "voxel_correspondence", "min_iou"),
        (OBJECTIVES, "byol", "hidden_dim"),
    ):
        own, *others = documentation(registry, name)
        assert field not in field_descriptions(own)
        assert any(field in field_descriptions(text) for text in others)
