"""Errors of users: exceptions that end a command with one line and a stable exit code."""

from __future__ import annotations

import os
import traceback


class UserError(Exception):
    """A mistake with a remedy. The message has the place, the problem and the remedy."""

    exit_code = 1


class ConfigError(UserError):
    """A configuration, an option or a combination of fields is wrong."""

    exit_code = 2


class DataError(UserError):
    """A scan, a manifest, a split or a store is invalid."""

    exit_code = 3


class MachineError(UserError):
    """The machine lacks memory, disk space, a device or a package."""

    exit_code = 4


class Stopped(UserError):
    """The run was stopped; it saved its state, and the same command resumes it."""

    exit_code = 75


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
