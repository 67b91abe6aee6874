"""The exceptions that occfast raises beside ``ValueError`` and ``TypeError``."""

from __future__ import annotations


class NativeUnavailable(RuntimeError):
    """A native kernel can't be built or loaded; the message says what to install or set."""


class DataError(ValueError):
    """A file can't be read; the message names the file and, where known, the offset."""


class ProcessLost(RuntimeError):
    """One of the processes that share the work died, gave up or no longer answers; the message says which and why."""


class MissingPackage(ImportError):
    """An optional package is not installed; the message names it and says how to install it."""
