"""Notes on a collection: names are apart from the text."""

from __future__ import annotations

import pickle

from medcl3d.core.notes import Counted, Note, without_names


def test_a_note_keeps_its_names_apart() -> None:
    note = Note("4 ids (of 9) are odd", ["a", "b (2)", "c", "d"])
    assert note == "4 ids (of 9) are odd (a, b (2), c and 1 more)"
    assert note.text == without_names(note) == "4 ids (of 9) are odd" and note.names == (
        "a",
        "b (2)",
        "c",
        "d",
    )
    assert Note("all are odd") == without_names("all are odd") == "all are odd"
    copied = pickle.loads(pickle.dumps(note))
    assert copied == note and copied.text == note.text and copied.names == note.names


def test_a_redacted_count_has_no_names() -> None:
    counted = Counted(redact=True)
    counted.add("files are odd", "a")
    counted.add("files are odd", "b")
    (note,) = counted.notes()
    assert note == without_names(note) == "2 files are odd"
