"""Simplification of a graph: groups of operators by which exporters write one layer."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from .builder import Builder


def simplify(b: Builder) -> None:
    """Replace groups of nodes by the layer that they stand for, in place, and drop nodes without readers."""
    for node in list(b.graph.nodes):
        for rule in (_permutations, _permuted_reduction, _permuted, _bias, _hard_swish, _silu, _gelu):
            if rule(b, node):
                break
    for node in reversed(list(b.graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            b.graph.erase_node(node)
    used = {str(node.target) for node in b.graph.nodes if node.op in ("call_module", "get_attr")}
    for name in [*b.root._modules, *b.root._buffers]:
        if name not in used:
            delattr(b.root, name)


def _attribute(b: Builder, node: Any) -> Tensor | None:
    if isinstance(node, fx.Node) and node.op == "get_attr":
        found: Tensor = getattr(b.root, str(node.target))
        return found
    return None


def _module(b: Builder, node: Any, kind: type[nn.Module]) -> Any:
    if isinstance(node, fx.Node) and node.op == "call_module":
        found = b.root.get_submodule(str(node.target))
        return found if isinstance(found, kind) else None
    return None


def _replace(node: fx.Node, by: fx.Node) -> bool:
    by.meta.setdefault("shape", node.meta["shape"])
    node.replace_all_uses_with(by)
    return True


def _permutations(b: Builder, node: fx.Node) -> bool:
    """Turn two permutations into one, or none."""
    before = node.args[0] if node.target is torch.permute else None
    if not isinstance(before, fx.Node) or before.target is not torch.permute:
        return False
    source, first = before.args
    joined = [first[k] for k in node.args[1]]  # type: ignore[index, union-attr]
    assert isinstance(source, fx.Node)
    if joined == sorted(joined):  # type: ignore[type-var]
        return _replace(node, source)
    node.args = (source, joined)
    return True


#: Modules that treat all numbers alike.
_POINTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Mish,
    nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Threshold,
)  # fmt: skip
#: Functions of single numbers, with broadcasting where they have two arguments.
_ELEMENTWISE = {
    operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.mul, torch.clamp, torch.exp, torch.log,
    torch.sqrt, torch.erf, torch.abs, torch.neg, torch.pow, torch.square, torch.reciprocal, torch.maximum,
    torch.minimum, torch.floor, torch.ceil, torch.round, torch.sign, torch.sin, torch.cos,
}  # fmt: skip
_REDUCTIONS = {torch.mean, torch.sum, torch.amax, torch.amin}


def _order(node: Any) -> list[int] | None:
    """Return the order of a permutation; None for other nodes."""
    return list(node.args[1]) if isinstance(node, fx.Node) and node.target is torch.permute else None  # type: ignore[arg-type]


def _permuted(b: Builder, node: fx.Node) -> bool:
    """Turn a function of single numbers of a permuted value into the permutation of the function.

    Exporters from TensorFlow put transpositions around each convolution, which meet and vanish so.
    """
    pointwise = _module(b, node, nn.Module)
    if not (isinstance(pointwise, _POINTWISE) or node.target in _ELEMENTWISE) or node.kwargs:
        return False
    varying = [a for a in node.args if isinstance(a, fx.Node) and a.op != "get_attr"]
    order = _order(varying[0]) if varying else None
    if order is None or any(_order(a) != order for a in varying):
        return False
    arguments: list[Any] = []
    for a in node.args:
        if (constant := _attribute(b, a)) is not None:
            if constant.dim() > len(order):
                return False
            # Dimension k of the permuted value is dimension order[k] of the value.
            whole = constant.reshape([1] * (len(order) - constant.dim()) + list(constant.shape))
            name = b.name("constant")
            b.root.register_buffer(name, whole.permute([order.index(k) for k in range(len(order))]).contiguous())
            with b.graph.inserting_before(node):
                arguments.append(b.graph.get_attr(name))
        else:
            arguments.append(a.args[0] if isinstance(a, fx.Node) else a)
    shapes = [[shape[order.index(k)] for k in range(len(order))] for shape in node.meta["shape"]]
    with b.graph.inserting_before(node):
        inner = b.graph.create_node(node.op, node.target, tuple(arguments), {})
        inner.meta["shape"] = tuple(map(tuple, shapes))
        outer = b.graph.call_function(torch.permute, (inner, order))
    return _replace(node, outer)


def _permuted_reduction(b: Builder, node: fx.Node) -> bool:
    """Turn a mean of a permuted value into one along other dimensions of the value."""
    order = _order(node.args[0]) if node.target in _REDUCTIONS else None
    if order is None:
        return False
    before, axes, keep = node.args
    inner_axes = sorted(order[axis] for axis in axes)  # type: ignore[union-attr, index]
    left = [k for k in order if k not in inner_axes]
    if not keep and left != sorted(left):
        return False
    source = before.args[0]  # type: ignore[union-attr]
    with b.graph.inserting_before(node):
        made = b.graph.call_function(node.target, (source, inner_axes, keep))  # type: ignore[arg-type]
        if keep:
            shapes = [[shape[order.index(k)] for k in range(len(order))] for shape in node.meta["shape"]]
            made.meta["shape"] = tuple(map(tuple, shapes))
            made = b.graph.call_function(torch.permute, (made, order))
    return _replace(node, made)


def _bias(b: Builder, node: fx.Node) -> bool:
    """Join a linear layer and the addition of a vector."""
    if node.target is not operator.add:
        return False
    for layer, other in (node.args, tuple(reversed(node.args))):
        linear, bias = _module(b, layer, nn.Linear), _attribute(b, other)
        if linear is None or bias is None or linear.bias is not None or len(layer.users) > 1:  # type: ignore[union-attr]
            continue
        size = linear.out_features
        if bias.numel() != size or bias.shape[-1:] != (size,) or bias.dim() > len(layer.meta["shape"][0]):  # type: ignore[union-attr]
            continue
        linear.bias = nn.Parameter(bias.reshape(-1))
        return _replace(node, layer)  # type: ignore[arg-type]
    return False


def _product(node: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """Return both orders of a product of two nodes."""
    if node.target is not operator.mul or not all(isinstance(a, fx.Node) for a in node.args):
        return []
    a, c = node.args
    return [(a, c), (c, a)]  # type: ignore[list-item]


def _new(b: Builder, node: fx.Node, module: nn.Module, name: str, x: fx.Node) -> bool:
    path = b.name(name)
    b.root.add_module(path, module.eval())
    with b.graph.inserting_before(node):
        made = b.graph.call_module(path, (x,))
    return _replace(node, made)


def _silu(b: Builder, node: fx.Node) -> bool:
    """``x * sigmoid(x)``."""
    for x, gate in _product(node):
        if _module(b, gate, nn.Sigmoid) is not None and gate.args[0] is x:
            return _new(b, node, nn.SiLU(), "silu", x)
    return False


def _hard_swish(b: Builder, node: fx.Node) -> bool:
    """``x * hardsigmoid(x)``, and ``x * relu6(x + 3) / 6`` in any order of its factors."""
    for x, gate in _product(node):
        if _module(b, gate, nn.Hardsigmoid) is not None and gate.args[0] is x:
            return _new(b, node, nn.Hardswish(), "hard_swish", x)
        if (inner := _scaled(gate)) is not None and _is_shifted(b, inner, x):
            return _new(b, node, nn.Hardswish(), "hard_swish", x)
    inner = _scaled(node)
    if inner is not None:
        for x, gate in _product(inner):
            if _is_shifted(b, gate, x):
                return _new(b, node, nn.Hardswish(), "hard_swish", x)
    return False


def _gelu(b: Builder, node: fx.Node) -> bool:
    """``x / 2 * (1 + erf(x / sqrt(2)))``, in any order of its factors."""
    factors = _factors(node)
    halves = [f for f in factors if isinstance(f, float) and abs(f - 0.5) < 1e-7]
    if len(factors) != 3 or len(halves) != 1:
        return False
    nodes = [f for f in factors if isinstance(f, fx.Node)]
    for x, bell in (nodes, nodes[::-1]) if len(nodes) == 2 else ():
        if bell.target is not operator.add or 1 not in bell.args:
            continue
        inner = next((a for a in bell.args if isinstance(a, fx.Node)), None)
        if inner is not None and inner.target is torch.erf and _is_over_root_two(inner.args[0], x):
            return _new(b, node, nn.GELU(), "gelu", x)
    return False


def _factors(node: Any) -> list[Any]:
    """Return the factors of a product of products, nodes and numbers; halves that are divisions by 2 count as 0.5."""
    if isinstance(node, fx.Node) and node.op == "call_function":
        if node.target is operator.mul:
            return [factor for argument in node.args for factor in _factors(argument)]
        if node.target is operator.truediv and node.args[1] == 2:
            return [*_factors(node.args[0]), 0.5]
    return [float(node) if isinstance(node, (int, float)) else node]


def _is_over_root_two(node: Any, x: fx.Node) -> bool:
    """Return whether a node is ``x / sqrt(2)`` or ``x * sqrt(1 / 2)``."""
    if not isinstance(node, fx.Node) or node.op != "call_function" or len(node.args) != 2:
        return False
    a, c = node.args
    if node.target is operator.truediv:
        return a is x and isinstance(c, (int, float)) and abs(c - math.sqrt(2)) < 1e-6
    if node.target is operator.mul:
        return any(y is x and isinstance(k, float) and abs(k - math.sqrt(0.5)) < 1e-6 for y, k in ((a, c), (c, a)))
    return False


def _scaled(node: Any) -> fx.Node | None:
    """Return ``y`` of ``y / 6`` and ``y * (1 / 6)``."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return None
    if node.target is operator.truediv and node.args[1] == 6:
        return node.args[0] if isinstance(node.args[0], fx.Node) else None
    if node.target is operator.mul:
        for y, factor in (node.args, tuple(reversed(node.args))):
            if isinstance(y, fx.Node) and isinstance(factor, float) and abs(factor - 1 / 6) < 1e-7:
                return y
    return None


def _is_shifted(b: Builder, node: Any, x: fx.Node) -> bool:
    """Return whether a node is ``relu6(x + 3)``."""
    if _module(b, node, nn.ReLU6) is None:
        return False
    shifted = node.args[0]
    return shifted.target is operator.add and (x, 3) in (shifted.args, tuple(reversed(shifted.args)))


__all__ = ["simplify"]
