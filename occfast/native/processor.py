"""What Linux states about the processor. Other systems state nothing here."""

from __future__ import annotations

from pathlib import Path


def model_name() -> str:
    """Return the name of the processor; "" if the system does not state it."""
    return _stated("model name")


def features() -> frozenset[str]:
    """Return the features of the processor, as Linux names them; none if the system does not state them."""
    return frozenset(_stated("flags", "Features").split())


def _stated(*fields: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(fields)), "")
