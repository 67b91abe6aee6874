"""The operators that can be read, by name."""

from __future__ import annotations

from collections.abc import Callable

from ..builder import Builder, Value
from ..call import Call

#: Adds an operator's result to the graph.
Reader = Callable[[Builder, Call], "Value | tuple[Value, ...]"]

OPERATORS: dict[str, Reader] = {}


def operator(*names: str) -> Callable[[Reader], Reader]:
    """Register a function as the reader of operators of these names."""

    def register(reader: Reader) -> Reader:
        OPERATORS.update(dict.fromkeys(names, reader))
        return reader

    return register


__all__ = ["OPERATORS", "Reader", "operator"]
