"""Fields on the command line: ``KEY=VALUE``, or an option of that name."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import typer
from typer.core import TyperCommand


class WithOptions(TyperCommand):
    """A command with options for ``KEY=VALUE``: ``--store blosc2`` for ``store=blosc2``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Convert options that the command does not define into pairs, after the other arguments."""
        parameters = self.get_params(ctx)
        own = [name for one in parameters for name in (*one.opts, *one.secondary_opts)]
        return super().parse_args(ctx, as_pairs(args, own))


def as_pairs(arguments: Sequence[str], own: Sequence[str]) -> list[str]:
    """Move ``--key value`` to the end as ``key=value``; the command's options and similar names stay."""
    kept: list[str] = []
    pairs: list[str] = []
    left = list(arguments)
    while left:
        text = left.pop(0)
        name, equals, value = text.partition("=")
        if text == "--":
            return [*kept, "--", *left, *pairs]
        if not name.startswith("--") or get_close_matches(name, own, cutoff=0.8):
            kept.append(text)
        elif equals or (left and not left[0].startswith("--") and "=" not in left[0]):
            pairs.append(f"{name[2:].replace('-', '_')}={value if equals else left.pop(0)}")
        else:
            raise typer.BadParameter(f"no option {name}; write a field as {name[2:].replace('-', '_')}=VALUE")
    return [*kept, *pairs]
