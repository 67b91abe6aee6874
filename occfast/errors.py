"""Exceptions that occfast raises besides ``ValueError`` and ``TypeError``."""

from __future__ import annotations


class NativeUnavailable(RuntimeError):
    """A native kernel can't be built or loaded. The message says what to install or set."""


class DataError(ValueError):
    """A file is missing, damaged or of the wrong kind. The message names it and, where known, the offset."""


class ProcessLost(RuntimeError):
    """A process that shares the work died, raised or no longer answers. The message says which and why."""


class MissingPackage(ImportError):
    """An optional package is not installed. The message names it and says how to install it."""
