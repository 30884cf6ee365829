"""What a user can get wrong, as exceptions that end a command with one line and a stable exit code."""

from __future__ import annotations


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
