"""Trace a model into a functional torch.fx graph."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..behavior import NotIncremental, in_training, is_exported
from .aten import in_plain_terms
from .script import as_graph

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
    "to",
    "type",
    "type_as",
    "float",
    "double",
    "half",
    "bfloat16",
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


def trace(model: nn.Module, images: Tensor) -> fx.GraphModule:
    """Return a functional copy of a model in evaluation mode: batch norm is folded, nothing works in place.

    The model itself is not changed.

    Args:
        model: The model.
        images: Example images, on which a TorchScript program is run.

    Raises:
        NotIncremental: A graph of tensors can't hold the model, or its outputs would depend on more than their own
            image.
    """
    if not isinstance(model, nn.Module):
        raise NotIncremental(f"it is a {type(model).__name__}, no nn.Module")
    model = _unwrapped(model)
    _check(model)
    try:
        if isinstance(model, torch.jit.ScriptModule):
            traced = as_graph(model, images)
        elif is_exported(model):
            traced = _of_export(copy.deepcopy(model))
        else:
            root = _Root(_without_parametrizations(copy.deepcopy(model)))
            traced = fx.GraphModule(root, _Tracer(root.model).trace(root))
    except NotIncremental:
        raise
    except Exception as error:  # tracing runs the model's own code, which may raise anything
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise NotIncremental(f"torch.fx can't trace it: {reason}") from error
    in_plain_terms(traced)
    for node in traced.graph.nodes:
        if node.op == "call_function" and not node.args and "input" in node.kwargs and _of_torch(node.target):
            kwargs = dict(node.kwargs)
            node.args = (kwargs.pop("input"),)
            node.kwargs = kwargs
    _functional(traced)
    _without_views(traced)
    _fold_batch_norm(traced)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


def _of_export(program: Any) -> fx.GraphModule:
    """Return the graph of a program of ``torch.export`` without its checks of the input, which are hooks as well."""
    graph = program.graph
    for node in reversed(graph.nodes):
        name = str(getattr(node.target, "__name__", node.target))
        if not node.users and (node.target == "_guards_fn" or name.startswith(("_assert", "sym_constrain"))):
            graph.erase_node(node)
    output = next(node for node in graph.nodes if node.op == "output")
    results = output.args[0]
    if isinstance(results, (tuple, list)) and len(results) == 1 and graph._codegen.pytree_info.out_spec.is_leaf():
        output.args = (results[0],)
    graph.set_codegen(fx.graph.CodeGen())
    return fx.GraphModule(program, graph)


class _Root(nn.Module):
    """Calls a model with the images alone, so that defaults, ``*args`` and an instance's own ``forward`` count."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        return self.model(images)


class _Tracer(fx.Tracer):
    """Traces through a model even if it is one of torch.nn's own modules."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m is not self._model and super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Allow ``f(*x.chunk(2, 1))``. Running the trace tells whether there are that many parts."""
        count, parts = _parts(obj.node), cast(Any, obj)
        return super().iter(obj) if count is None else iter([parts[k] for k in range(count)])


class _Proxy(fx.Proxy):
    def __len__(self) -> int:
        count = _parts(self.node)
        if count is None:
            return super().__len__()
        return count


def _parts(node: fx.Node) -> int | None:
    """Return the number of items of a tuple that a node returns, where the trace alone tells it."""
    count = node.kwargs.get("chunks", node.args[1] if len(node.args) > 1 else None)
    return count if node.target in ("chunk", torch.chunk) and isinstance(count, int) else None


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside DataParallel, DistributedDataParallel and torch.compile."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _check(model: nn.Module) -> None:
    training = in_training(model)
    for name, module in model.named_modules():
        where = f"module {name or '(the model)'} ({type(module).__name__})"
        if training and getattr(module, "training", False):
            raise NotIncremental(f"{where} is in training mode; call model.eval()")
        hooks = [
            hook
            for kind in ("_forward_hooks", "_forward_pre_hooks")
            for hook in (getattr(module, kind, None) or {}).values()
            if not isinstance(hook, _WEIGHT_HOOKS) and not is_exported(module)
        ]
        if hooks:
            raise NotIncremental(f"{where} has forward hooks, which a trace would lose")
        batch_norm = isinstance(module, nn.modules.batchnorm._NormBase)
        if batch_norm and not isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.running_mean is None:
            raise NotIncremental(f"{where} keeps no running statistics, so an output depends on its whole batch")


#: Hooks that compute a weight from others.
_WEIGHT_HOOKS = (WeightNorm, SpectralNorm)


def _without_parametrizations(model: nn.Module) -> nn.Module:
    """Replace computed weights by their values."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            # remove_parametrizations() would change the class, which a copy shares with its original.
            values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}  # type: ignore[union-attr]
            module.__class__ = type(module).__bases__[0]
            del module.parametrizations
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value, requires_grad=False))
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, _WEIGHT_HOOKS):
                hook.remove(module)
                del module._forward_pre_hooks[key]
    return model


def _of_torch(target: Any) -> bool:
    return str(getattr(target, "__module__", "")).split(".")[0] == "torch"


def module_of(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the module that a node calls, if it calls one."""
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_alias(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether a node's result is its first argument itself."""
    if node.op == "call_module":
        return isinstance(module_of(traced, node), _ALIAS_MODULES)
    if node.op == "call_function" and node.target in _ALIAS_FUNCTIONS:
        default = node.target in (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)
        position = 2
        training = node.kwargs.get("training", node.kwargs.get("train"))
        if training is None:
            training = node.args[position] if len(node.args) > position else default
        if training is not False:
            raise NotIncremental(f"{_name(node)} drops at random even in evaluation mode")
        return True
    if node.op == "call_function" and getattr(node.target, "__name__", "") == "stochastic_depth":  # torchvision
        return node.kwargs.get("training", node.args[3] if len(node.args) > 3 else True) is False
    return node.op == "call_method" and node.target in _ALIAS_METHODS


def _name(node: fx.Node) -> str:
    return node.name.removeprefix("model_")


def _same_memory(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether writing to a node's result also writes to its first argument."""
    return is_alias(traced, node) and node.target not in ("clone", "contiguous")


def _in_place(traced: fx.GraphModule, node: fx.Node) -> bool:
    if module := module_of(traced, node):
        return bool(getattr(module, "inplace", False)) and not isinstance(module, _ALIAS_MODULES)
    if node.op == "call_function":
        if node.target in _IN_PLACE_OPERATORS or node.kwargs.get("inplace"):
            return True
        name = getattr(node.target, "__name__", "")
        return name.endswith("_") and not name.startswith("_")
    return node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).endswith("__")


def _functional(traced: fx.GraphModule) -> None:
    """Replace in-place operations whose overwritten tensors are known; refuse the others."""
    order = {node: k for k, node in enumerate(traced.graph.nodes)}
    views: dict[fx.Node, fx.Node] = {}  # a view -> its base
    for node in traced.graph.nodes:
        if node.kwargs.get("out") is not None:
            raise NotIncremental(f"{_name(node)} writes into its argument out=")
        if node.op == "call_function" and node.target is operator.setitem:
            raise NotIncremental(f"{_name(node)} assigns to a part of a tensor")
        if (node.op == "call_function" and node.target in _RANDOM) or (
            node.op == "call_method" and node.target in _RANDOM_METHODS
        ):
            raise NotIncremental(f"{_name(node)} draws random numbers")
        first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if first is None:
            continue
        if (
            (node.op == "call_method" and node.target in _VIEW_METHODS)
            or (node.op == "call_function" and node.target in _VIEW_FUNCTIONS)
            or isinstance(module_of(traced, node), (nn.Flatten, nn.Unflatten))
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
            raise NotIncremental(f"{_name(node)} changes a parameter or buffer in place")
        if any(view in roots or base in roots for view, base in views.items()):
            shown = roots | set(views) | set(views.values())
            if any(order[user] > order[node] for v in shown for user in v.users):
                raise NotIncremental(f"{_name(node)} works in place on a tensor that a view shows")
        for root in roots:  # later readers of the overwritten tensor see the result
            root.replace_all_uses_with(node, lambda user, now=order[node]: order[user] > now)  # type: ignore[misc]
        _make_functional(traced, node)


def _without_views(traced: fx.GraphModule) -> None:
    """Replace ``view``, which raises for maps in channels_last, by ``reshape``.

    Both mean the same, since nothing works in place any more.
    """
    for node in traced.graph.nodes:
        shapes = not any(isinstance(a, torch.dtype) for a in (*node.args, *node.kwargs.values()))
        if node.op == "call_method" and node.target in ("view", "view_as") and shapes:
            node.target = node.target.replace("view", "reshape")


def _make_functional(traced: fx.GraphModule, node: fx.Node) -> None:
    if module := module_of(traced, node):
        module.inplace = False  # type: ignore[assignment]  # of the copy
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
            raise NotIncremental(f"{_name(node)} works in place and has no known counterpart")
        node.target = plain
    else:
        raise NotIncremental(f"{_name(node)} works in place and has no known counterpart")


def _fold_batch_norm(traced: fx.GraphModule) -> None:
    """Fold batch norm into the convolution before it."""
    calls: dict[str, int] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            calls[node.target] = calls.get(node.target, 0) + 1
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or len(before.users) != 1:
            continue
        norm, conv = module_of(traced, node), module_of(traced, before)
        if isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            if type(conv) is not nn.Conv2d or calls[str(before.target)] > 1:
                continue
            name = f"_folded_{len(calls)}"
            calls[name] = 1
            traced.add_module(name, fuse_conv_bn_eval(conv, norm))
            before.target = name
        elif not (
            node.target is F.batch_norm and before.target in _CONVOLUTIONS and _folded_call(traced, node, before)
        ):
            continue
        before.meta["batch_norm"] = True  # the dense sweep computes it
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)


_CONVOLUTIONS = (F.conv2d, torch.conv2d)


def _folded_call(traced: fx.GraphModule, norm: fx.Node, conv: fx.Node) -> bool:
    """Fold a call of batch norm into that of a convolution, as programs have them; return whether it could be."""
    names = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = dict(zip(names, norm.args[1:], strict=False)) | dict(norm.kwargs)
    weights = [conv.args[k] if len(conv.args) > k else conv.kwargs.get(n) for k, n in ((1, "weight"), (2, "bias"))]
    tensors = [*weights, *(given.get(name) for name in names[:4])]
    if given.get("training", False) is not False or weights[0] is None or any(t is None for t in tensors[2:4]):
        return False
    if not all(t is None or (isinstance(t, fx.Node) and t.op == "get_attr") for t in tensors):
        return False
    weight, bias, mean, variance, gain, shift = (
        _attribute(traced, t) if isinstance(t, fx.Node) else None for t in tensors
    )
    eps = given.get("eps", 1e-5)
    folded = fuse_conv_bn_weights(weight, bias, mean, variance, eps, gain, shift)  # type: ignore[arg-type]
    made = []
    for value in folded:
        name = f"_folded_weight_{len(traced._buffers)}"
        traced.register_buffer(name, value.detach())
        with traced.graph.inserting_before(conv):
            made.append(traced.graph.get_attr(name))
    kwargs = {key: value for key, value in conv.kwargs.items() if key not in ("weight", "bias")}
    conv.args, conv.kwargs = (conv.args[0], *made, *conv.args[3:]), kwargs
    return True


def _attribute(traced: fx.GraphModule, node: fx.Node) -> Tensor:
    owner, _, name = str(node.target).rpartition(".")
    return getattr(traced.get_submodule(owner), name)  # type: ignore[no-any-return]
