"""Trace a model into a functional torch.fx graph."""

from __future__ import annotations

import copy
import operator

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class NotIncremental(Exception):
    """This network can't be swept incrementally; the message says why."""


class NotDeterministic(NotIncremental):
    """Two runs on the same images differ."""


class BatchDependent(NotIncremental):
    """The output for an image depends on the others of its batch, or on its place there: no sweep gives its map."""


_ALIAS_MODULES = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


_ALIAS_FUNCTIONS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, torch.dropout}


_ALIAS_METHODS = {"contiguous", "clone", "detach"}


_RANDOM = {
    torch.rand,
    torch.randn,
    torch.randint,
    torch.rand_like,
    torch.randn_like,
    torch.randint_like,
    torch.randperm,
    torch.normal,
    torch.bernoulli,
    torch.poisson,
    torch.multinomial,
    F.gumbel_softmax,
}


_RANDOM_METHODS = {
    "bernoulli",
    "bernoulli_",
    "normal_",
    "uniform_",
    "random_",
    "exponential_",
    "multinomial",
    "log_normal_",
    "geometric_",
    "cauchy_",
}


_VIEW_METHODS = {
    "view",
    "contiguous",
    "reshape",
    "flatten",
    "permute",
    "transpose",
    "squeeze",
    "unsqueeze",
    "expand",
    "chunk",
    "split",
    "narrow",
    "select",
    "t",
    "unfold",
    "view_as",
    "expand_as",
    "unbind",
    "swapaxes",
    "movedim",
    "unflatten",
}


_VIEW_FUNCTIONS = {
    torch.flatten,
    torch.reshape,
    torch.permute,
    torch.transpose,
    torch.squeeze,
    torch.unsqueeze,
    torch.chunk,
    torch.split,
    torch.narrow,
    torch.select,
    torch.unbind,
    torch.swapaxes,
    torch.movedim,
    operator.getitem,
    getattr,
}


_IN_PLACE_OPERATORS = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ipow: operator.pow,
}


def trace(model: nn.Module) -> fx.GraphModule:
    """A functional copy of a model: evaluation mode, batch norm folded, nothing in place.

    The model itself is never changed.  Raises NotIncremental, with the reason, for what a graph
    of tensors can't say or what would make outputs depend on more than their own image.
    """
    if not isinstance(model, nn.Module):
        raise NotIncremental(f"it is a {type(model).__name__}, no nn.Module")
    for name, module in model.named_modules():
        where = f"module {name or '(the model)'} ({type(module).__name__})"
        if module.training:
            raise NotIncremental(f"{where} is in training mode; call model.eval()")
        if any(getattr(module, hooks, None) for hooks in ("_forward_hooks", "_forward_pre_hooks")):
            raise NotIncremental(f"{where} has forward hooks, which a trace would lose")
        batch_norm = isinstance(module, nn.modules.batchnorm._NormBase)
        if batch_norm and not isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.running_mean is None:
            raise NotIncremental(f"{where} keeps no running statistics, so an output depends on its whole batch")
    try:
        traced = fx.symbolic_trace(copy.deepcopy(model))
    except Exception as error:  # tracing runs the model's own code, which may raise anything
        raise NotIncremental(
            f"torch.fx can't trace it: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from error
    _functional(traced)
    _without_views(traced)
    _fold_batch_norm(traced)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


def _module(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def _is_alias(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node's result is its first argument itself."""
    if node.op == "call_module":
        return isinstance(_module(traced, node), _ALIAS_MODULES)
    if node.op == "call_function" and node.target in _ALIAS_FUNCTIONS:
        default = node.target in (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)
        position = 2
        training = node.kwargs.get("training", node.kwargs.get("train"))
        if training is None:
            training = node.args[position] if len(node.args) > position else default
        if training is not False:
            raise NotIncremental(f"{node.name} drops at random even in evaluation mode")
        return True
    return node.op == "call_method" and node.target in _ALIAS_METHODS


def _same_memory(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether writing to a node's result writes to its first argument as well."""
    return _is_alias(traced, node) and node.target not in ("clone", "contiguous")


def _in_place(traced: fx.GraphModule, node: fx.Node) -> bool:
    if module := _module(traced, node):
        return bool(getattr(module, "inplace", False)) and not isinstance(module, _ALIAS_MODULES)
    if node.op == "call_function":
        if node.target in _IN_PLACE_OPERATORS or node.kwargs.get("inplace"):
            return True
        name = getattr(node.target, "__name__", "")
        return name.endswith("_") and not name.startswith("_")
    return node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).endswith("__")


def _functional(traced: fx.GraphModule) -> None:
    """Replace in-place operations, where what they overwrite is known; refuse the rest."""
    order = {node: k for k, node in enumerate(traced.graph.nodes)}
    views: dict[fx.Node, fx.Node] = {}  # a view -> what it shows
    for node in traced.graph.nodes:
        if "out" in node.kwargs:
            raise NotIncremental(f"{node.name} writes into its argument out=")
        if node.op == "call_function" and node.target is operator.setitem:
            raise NotIncremental(f"{node.name} assigns to a part of a tensor")
        if (node.op == "call_function" and node.target in _RANDOM) or (
            node.op == "call_method" and node.target in _RANDOM_METHODS
        ):
            raise NotIncremental(f"{node.name} draws random numbers")
        first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if first is None:
            continue
        if (
            (node.op == "call_method" and node.target in _VIEW_METHODS)
            or (node.op == "call_function" and node.target in _VIEW_FUNCTIONS)
            or isinstance(_module(traced, node), (nn.Flatten, nn.Unflatten))
        ):
            views[node] = first
        if not _in_place(traced, node):
            continue
        # Everything that shares its memory with what is overwritten.
        roots, seen = {first}, set[fx.Node]()
        while roots != seen:
            seen = set(roots)
            for root in seen:
                roots |= {n for n in root.users if order[n] < order[node] and _same_memory(traced, n)}
                if _same_memory(traced, root) and isinstance(root.args[0], fx.Node):
                    roots.add(root.args[0])
        if any(root.op == "get_attr" for root in roots):
            raise NotIncremental(f"{node.name} changes a parameter or buffer in place")
        if any(view in roots or base in roots for view, base in views.items()):
            shown = roots | set(views) | set(views.values())
            if any(order[user] > order[node] for v in shown for user in v.users):
                raise NotIncremental(f"{node.name} works in place on a tensor that a view shows")
        for root in roots:  # later readers of the overwritten tensor see the result
            root.replace_all_uses_with(node, lambda user, now=order[node]: order[user] > now)  # type: ignore[misc]
        _make_functional(traced, node)


def _without_views(traced: fx.GraphModule) -> None:
    """``view`` asks for a memory layout that channels_last maps don't have; now that nothing writes in place any more,
    ``reshape`` means the same."""
    for node in traced.graph.nodes:
        shapes = not any(isinstance(a, torch.dtype) for a in (*node.args, *node.kwargs.values()))
        if node.op == "call_method" and node.target in ("view", "view_as") and shapes:
            node.target = node.target.replace("view", "reshape")


def _make_functional(traced: fx.GraphModule, node: fx.Node) -> None:
    if module := _module(traced, node):
        module.inplace = False  # type: ignore[assignment]  # it belongs to our copy
    elif node.op == "call_function" and node.target in _IN_PLACE_OPERATORS:
        node.target = _IN_PLACE_OPERATORS[node.target]
    elif "inplace" in node.kwargs:
        node.kwargs = {**node.kwargs, "inplace": False}
    elif node.op == "call_method" and hasattr(Tensor, str(node.target)[:-1]):
        node.target = str(node.target)[:-1]
    elif node.op == "call_function":
        name = str(getattr(node.target, "__name__", ""))[:-1]
        plain = getattr(torch, name, None) or getattr(F, name, None)
        if plain is None:
            raise NotIncremental(f"{node.name} works in place and has no known counterpart")
        node.target = plain
    else:
        raise NotIncremental(f"{node.name} works in place and has no known counterpart")


def _fold_batch_norm(traced: fx.GraphModule) -> None:
    """Fold batch norm into the convolution before it (of our copy)."""
    calls: dict[str, int] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            calls[node.target] = calls.get(node.target, 0) + 1
    for node in list(traced.graph.nodes):
        norm = _module(traced, node)
        before = node.args[0] if node.args else None
        if not isinstance(norm, nn.BatchNorm2d) or not isinstance(before, fx.Node) or len(before.users) != 1:
            continue
        conv = _module(traced, before)
        if type(conv) is nn.Conv2d and calls[str(before.target)] == 1:
            name = f"_folded_{len(calls)}"
            calls[name] = 1
            traced.add_module(name, fuse_conv_bn_eval(conv, norm))
            before.target = name
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
