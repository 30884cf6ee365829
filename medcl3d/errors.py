"""What a user can get wrong, as exceptions that end a command with one line and a stable exit code."""

from __future__ import annotations

import os
import traceback


class UserError(Exception):
    """A mistake that has a remedy. The message says what is wrong, where, and what would do."""

    exit_code = 1


class ConfigError(UserError):
    """A configuration, an option or a combination of fields is wrong."""

    exit_code = 2


class DataError(UserError):
    """A scan, a manifest, a split or a store is not what it says."""

    exit_code = 3


class MachineError(UserError):
    """The machine lacks something: memory, disk, a device, a package."""

    exit_code = 4


class Stopped(UserError):
    """The run was asked to stop; it saved its state and the same command resumes it."""

    exit_code = 75


def unforeseen(where: object, error: Exception) -> str:
    """What to say of an exception that nobody expected of one scan among many, which must not end the work on the others."""
    if os.environ.get("MEDCL3D_DEBUG") == "1":
        traceback.print_exception(error)
    said = " ".join(str(error).split())
    return f"{where}: cannot be used: {type(error).__name__}: {said}; look at the file, and report it where the file is good"
