"""TorchScript programs as graphs of torch.fx.

A program is run once on an example. Its numbers, lists and conditions are evaluated on the way, so that the branches
and the repetitions of that run are what the graph holds; sizes stay symbolic. The caller compares the graph with the
program afterwards.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..behavior import NotIncremental
from .aten import plain

_MOST_TURNS = 10_000  # of all loops together

#: Operators on numbers and lists.
_PYTHON: dict[str, Callable[..., Any]] = {
    "aten::add": operator.add,
    "aten::sub": operator.sub,
    "aten::mul": operator.mul,
    "aten::div": operator.truediv,
    "aten::floordiv": operator.floordiv,
    "aten::floor_divide": operator.floordiv,
    "aten::remainder": operator.mod,
    "aten::neg": operator.neg,
    "aten::pow": operator.pow,
    "aten::eq": operator.eq,
    "aten::ne": operator.ne,
    "aten::lt": operator.lt,
    "aten::le": operator.le,
    "aten::gt": operator.gt,
    "aten::ge": operator.ge,
    "aten::__is__": operator.is_,
    "aten::__isnot__": operator.is_not,
    "aten::__not__": operator.not_,
    "aten::__and__": operator.and_,
    "aten::__or__": operator.or_,
    "aten::__contains__": operator.contains,
    "aten::__getitem__": operator.getitem,
    "aten::len": len,
    "aten::list": list,
    "aten::Int": int,
    "aten::Float": float,
    "aten::Bool": bool,
    "aten::ScalarImplicit": lambda x: x,
    "aten::IntImplicit": lambda x: x,
    "aten::FloatImplicit": lambda x: x,
    "aten::format": lambda text, *values: text,
    "prim::max": max,
    "prim::min": min,
    "prim::NumToTensor": lambda x: x,
    "prim::unchecked_cast": lambda x: x,
    "prim::dtype": lambda x: x.dtype,
    "prim::device": lambda x: x.device,
    "prim::is_cuda": lambda x: x.is_cuda,
}
_UNCHANGED = {"aten::ScalarImplicit", "aten::IntImplicit", "aten::FloatImplicit", "aten::Int", "prim::NumToTensor"}
_UNCHANGED |= {"prim::unchecked_cast"}
_OF_ANYTHING = {"aten::__is__", "aten::__isnot__"}


@dataclass
class _Entry:
    """A value of a program: what the graph holds (a node, a constant or a list of such), and its value now."""

    held: Any
    value: Any

    @property
    def varies(self) -> bool:
        return bool(_nodes(self.held))


def _nodes(held: Any) -> list[fx.Node]:
    if isinstance(held, fx.Node):
        return [held]
    return [node for part in held for node in _nodes(part)] if isinstance(held, (list, tuple)) else []


def as_graph(model: torch.jit.ScriptModule, images: Tensor) -> fx.GraphModule:
    """Return a graph of what a program computes for images like these.

    Raises:
        NotIncremental: It does something that a graph can't hold.
    """
    return _Reader(copy.deepcopy(model)).read(images)


class _Reader:
    def __init__(self, model: torch.jit.ScriptModule) -> None:
        self._model = model
        self._graph, self._root = fx.Graph(), nn.Module()
        self._entries: dict[int, _Entry] = {}
        self._turns = 0

    @torch.no_grad()
    def read(self, images: Tensor) -> fx.GraphModule:
        graph = self._model.inlined_graph
        own, given, *more = graph.inputs()
        self._set(own, _Entry(self._model, self._model))
        self._set(given, _Entry(self._graph.placeholder("images"), images.clone()))
        for value in more:
            raise NotIncremental(f"its forward takes more than the images ({value.debugName()})")
        self._run(graph.nodes())
        results = [self._get(value) for value in graph.outputs()]
        self._graph.output(results[0].held)
        return fx.GraphModule(self._root, self._graph)

    def _get(self, value: Any) -> _Entry:
        return self._entries[value.unique()]

    def _set(self, value: Any, entry: _Entry) -> None:
        self._entries[value.unique()] = entry

    def _run(self, nodes: Any) -> None:
        for node in nodes:
            kind, outputs = node.kind(), list(node.outputs())
            if kind == "prim::Constant":
                self._set(outputs[0], self._constant(outputs[0].toIValue()))
            elif kind == "prim::If":
                self._branch(node, outputs)
            elif kind == "prim::Loop":
                self._loop(node, outputs)
            elif kind == "prim::RaiseException":
                raise NotIncremental("it raises an error for images like these")
            elif kind == "prim::Print":
                continue
            else:
                results = self._evaluate(node, kind, [self._get(value) for value in node.inputs()])
                for value, entry in zip(outputs, results, strict=True):
                    self._set(value, entry)

    def _constant(self, value: Any) -> _Entry:
        """Return an entry of a constant; a tensor becomes a buffer, also in a list, such as that of an index."""
        if isinstance(value, (list, tuple)):
            parts = [self._constant(part).held for part in value]
            return _Entry(tuple(parts) if isinstance(value, tuple) else parts, value)
        if not isinstance(value, Tensor):
            return _Entry(value, value)
        name = f"constant_{len(self._root._buffers)}"
        self._root.register_buffer(name, value.detach())
        return _Entry(self._graph.get_attr(name), value)

    # Control flow -------------------------------------------------------------------------------------

    def _condition(self, entry: _Entry) -> bool:
        if isinstance(entry.value, Tensor):
            raise NotIncremental("its control flow depends on the images")
        return bool(entry.value)

    def _branch(self, node: Any, outputs: list[Any]) -> None:
        first, second = node.blocks()
        chosen = first if self._condition(self._get(next(iter(node.inputs())))) else second
        self._run(chosen.nodes())
        for value, result in zip(outputs, chosen.outputs(), strict=True):
            self._set(value, self._get(result))

    def _loop(self, node: Any, outputs: list[Any]) -> None:
        most, begin, *carried = (self._get(value) for value in node.inputs())
        (block,) = node.blocks()
        turn, going = 0, self._condition(begin)
        while going and turn < most.value:
            self._turns += 1
            if self._turns > _MOST_TURNS:
                raise NotIncremental(f"its loops take more than {_MOST_TURNS} turns")
            count, *inside = block.inputs()
            self._set(count, _Entry(turn, turn))
            for value, entry in zip(inside, carried, strict=True):
                self._set(value, entry)
            self._run(block.nodes())
            again, *carried = (self._get(value) for value in block.outputs())
            going, turn = self._condition(again), turn + 1
        for value, entry in zip(outputs, carried, strict=True):
            self._set(value, entry)

    # Operators ----------------------------------------------------------------------------------------

    def _evaluate(self, node: Any, kind: str, given: list[_Entry]) -> list[_Entry]:
        held, values = [entry.held for entry in given], [entry.value for entry in given]
        if kind == "prim::GetAttr":
            return [self._constant(getattr(values[0], node.s("name")))]
        if kind in ("prim::ListConstruct", "prim::TupleConstruct"):
            make = list if kind == "prim::ListConstruct" else tuple
            return [_Entry(make(held), make(values))]
        if kind in ("prim::TupleUnpack", "prim::ListUnpack"):
            return [self._item(given[0], k) for k in range(node.outputsSize())]
        if kind == "prim::TupleIndex" or (kind == "aten::__getitem__" and not isinstance(values[0], dict)):
            if given[1].varies:
                raise NotIncremental("it chooses an item by a size")
            return [self._item(given[0], values[1])]
        if kind == "aten::append":
            held[0].append(held[1])
            values[0].append(values[1])
            return [given[0]]
        if kind in _UNCHANGED and (kind != "aten::Int" or isinstance(values[0], int)):
            return [given[0]]
        of_tensors = any(isinstance(value, Tensor) for value in _flat(values)) and kind not in _OF_ANYTHING
        if kind in _PYTHON and (not of_tensors or kind.startswith("prim::")):
            if kind in ("aten::add", "aten::sub") and values[2:] == [1]:
                given = given[:2]  # a number by which the second one is multiplied
            return [self._called(_PYTHON[kind], given)]
        if kind == "aten::tensor" and not any(entry.varies for entry in given):  # of a list, such as one of channels
            number = torch.tensor(values[0], device=values[2])
            dtype = number.dtype if values[1] is None else values[1]  # TorchScript's number of a dtype
            return [self._constant(torch.ops.aten._to_copy(number, dtype=dtype))]
        if kind in ("aten::Int", "aten::Float", "aten::Bool", "aten::item"):
            raise NotIncremental("it reads a number from a tensor")
        if not kind.startswith("aten::"):
            raise NotIncremental(f"its TorchScript has {kind}, which a graph can't hold")
        return self._operator(node, kind.removeprefix("aten::"), held, values)

    def _called(self, function: Callable[..., Any], given: Sequence[_Entry]) -> _Entry:
        value = function(*(entry.value for entry in given))
        fixed = isinstance(value, (bool, str, torch.dtype, torch.device)) or value is None
        if fixed or not any(entry.varies for entry in given):
            return _Entry(value, value)
        return _Entry(self._graph.call_function(function, tuple(entry.held for entry in given)), value)

    def _item(self, entry: _Entry, k: int) -> _Entry:
        value = entry.value[k]
        if not isinstance(entry.held, fx.Node):
            return _Entry(entry.held[k], value)
        return _Entry(self._graph.call_function(operator.getitem, (entry.held, k)), value)

    def _operator(self, node: Any, name: str, held: list[Any], values: list[Any]) -> list[_Entry]:
        packet = getattr(torch.ops.aten, name, None)
        if packet is None:
            raise NotIncremental(f"its TorchScript has aten::{name}, which a graph can't hold")
        schema = torch._C.parse_schema(node.schema())
        names = [argument.name for argument in schema.arguments]
        keyword = [argument.kwarg_only for argument in schema.arguments]

        def split(items: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            args = tuple(item for item, only in zip(items, keyword, strict=True) if not only)
            return args, {key: item for key, item, only in zip(names, items, keyword, strict=True) if only}

        if name.endswith("_") and isinstance(held[0], fx.Node) and held[0].op == "get_attr":
            raise NotIncremental(f"{name} changes a parameter or buffer in place")
        args, kwargs = split(values)
        result = packet(*args, **kwargs)
        results = list(result) if node.outputsSize() > 1 else [result]
        if not any(_nodes(item) for item in held):
            return [self._constant(value) for value in results]
        args, kwargs = split(held)
        call = plain(name, args, kwargs)
        if call is None:
            made = self._graph.call_function(packet, args, {k: v for k, v in kwargs.items() if v is not None})
        else:
            made = self._graph.create_node(*call)
        if len(results) == 1:
            return [_Entry(made, result)]
        return [
            _Entry(self._graph.call_function(operator.getitem, (made, k)), value) for k, value in enumerate(results)
        ]


def _flat(values: Any) -> list[Any]:
    return [part for value in values for part in _flat(value)] if isinstance(values, (list, tuple)) else [values]
