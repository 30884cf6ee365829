"""Errors of users: exceptions that end a command with one line and a stable exit code."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MAX_ALSO = 3  # further mistakes in one message
Where = tuple[Any, ...]  # keys and list positions from the root of a configuration


class Word(str):
    """Text that a message shows without quotes, such as the name of a component or an option."""

    __slots__ = ()

    __repr__ = str.__str__


class UserError(Exception):
    """A mistake with a remedy: ``line: place: problem; remedy``.

    place    what the problem is in: a file, a folder, a scan, a component; "" if `problem` names it
    problem  what is wrong
    remedy   what to do; "" if `problem` has it
    where    the field of the configuration that is wrong, as keys from the root; () if none is
    line     where the field is given, as `file:line`; set when the file is known
    """

    exit_code = 1

    def __init__(
        self, place: object = "", problem: object = "", remedy: str = "", *, field: str | Where = ()
    ):
        super().__init__(place, problem, remedy)
        self.place, self.problem, self.remedy = str(place), str(problem), remedy
        self.where: Where = _keys(field)
        self.line = ""

    @property
    def field(self) -> str:
        """The field as a dotted path, "" if the error is not about a field."""
        return ".".join(map(str, self.where))

    def within(self, *keys: object) -> None:
        """Put keys before the field, since it is a part of what they name. The message is unchanged.

        The last keys are not repeated if the field already begins with them.
        """
        shared = next(n for n in range(len(keys), -1, -1) if keys[len(keys) - n :] == self.where[:n])
        self.where = (*keys[: len(keys) - shared], *self.where)

    def __str__(self) -> str:
        problem = self.problem + (f"; {self.remedy}" if self.remedy else "")
        return ": ".join(part for part in (self.line, self.place, problem) if part)


class ConfigError(UserError, ValueError):
    """A configuration, an option or a combination of fields is wrong: ``line: place: owner: field = value:
    problem; remedy``.

    A ValueError, so that a validator of a configuration may raise it. A single argument is the whole message.

    field   as a dotted path or as keys; `within` extends it, and the message keeps the name from here
    value   None: not shown; text without quotes: as a Path
    owner   the component, if `field` is one of its fields
    colon   False: the problem continues the value, as in ``k = 3 exceeds n = 2``
    also    further mistakes in the same configuration
    """

    exit_code = 2

    def __init__(
        self,
        field: str | Where = (),
        value: Any = None,
        problem: str = "",
        remedy: str = "",
        *,
        place: object = "",
        line: str = "",
        owner: str = "",
        colon: bool = True,
        also: Sequence[str] = (),
    ):
        named, said = (field, problem) if problem or isinstance(field, tuple) else ((), field)
        super().__init__(place, said, remedy, field=named)
        self.args = (field, value, problem, remedy)  # what a copy from another process is made of
        self.line, self.value, self.owner, self.also = line, value, owner, tuple(also)
        self.named, self._colon = self.field, colon
        if owner:
            self.within(*_keys(owner))

    def of(self, component: str, shown: str = "") -> None:
        """Name the component of the field, in the path and, unless one is named there, in the message."""
        if not (self.line or self.place or self.owner or self.where[:1] == (component,)):
            self.owner = shown or component
        self.within(component)

    def __str__(self) -> str:
        head = self.named if self.value is None else f"{self.named} = {short(self.value)}".lstrip()
        problem = self.problem + (f"; {self.remedy}" if self.remedy else "")
        said = (": " if self._colon else " ").join(part for part in (head, problem) if part)
        text = ": ".join(part for part in (self.line, self.place, self.owner, said) if part)
        more = len(self.also) - MAX_ALSO
        return "; also ".join((text, *self.also[:MAX_ALSO])) + (f"; and {more} more" if more > 0 else "")


class DataError(UserError):
    """A scan, a manifest, a split or a store is invalid."""

    exit_code = 3


class MachineError(UserError):
    """The machine lacks memory, disk space, a device or a package."""

    exit_code = 4


class Stopped(UserError):
    """The run was stopped; it saved its state, and the same command resumes it."""

    exit_code = 75


@contextmanager
def inside(*keys: object) -> Iterator[None]:
    """Errors in a part of a configuration get the keys of the part before their field."""
    try:
        yield
    except (ConfigError, DataError) as error:
        error.within(*keys)
        raise


def short(value: Any) -> str:
    """A value in a message, of at most 80 characters; text is quoted, a path is not."""
    text = str(value) if isinstance(value, Path) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _keys(field: str | Where) -> Where:
    return field if isinstance(field, tuple) else tuple(field.split(".")) if field else ()


def unexpected_error(where: object, error: Exception) -> str:
    """The message for an unexpected exception of one scan among many, which must not end the processing of
    the others.
    """
    if os.environ.get("MEDCL3D_DEBUG") == "1":
        traceback.print_exception(error)
    text = " ".join(str(error).split())
    return (
        f"{where}: cannot be used: {type(error).__name__}: {text}; inspect the file, and report a bug "
        "if it is valid"
    )
