"""Progress bars: shown on a terminal, and nowhere else."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import TextColumn

from medcl3d.io.progress import progress_bar, titled_bar, track


def test_nothing_is_printed_if_stderr_is_not_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter("abc"), "letters")) == ["a", "b", "c"]
    with titled_bar("scans", 2) as advance:
        advance("scans, 1 refused")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("shown", [True, False])
def test_a_terminal_shows_title_count_and_time(shown: bool) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100, _environ={})
    with progress_bar(console=console, shown=shown) as progress:
        progress.update(progress.add_task("preparing", total=8), completed=3)
    assert all((part in text.getvalue()) == shown for part in ("preparing", "3/8", "0:00:0"))


def test_measures_replace_the_count() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100, _environ={})
    with progress_bar(TextColumn("loss {task.fields[loss]}"), console=console) as progress:
        progress.add_task("training", total=8, loss=0.25)
    assert "loss 0.25" in text.getvalue() and "0/8" not in text.getvalue()


def test_a_faulty_item_ends_the_bar() -> None:
    with pytest.raises(KeyError):
        for item in track([1, 2], "numbers"):
            raise KeyError(item)
    assert list(track([1, 2], "numbers")) == [1, 2]
