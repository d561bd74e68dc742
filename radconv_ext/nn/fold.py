"""Deployment: radial layers as plain convolutions, and batch norms inside the ring weights before them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .base import RadialConvNd
from .modules import Transposed

__all__ = ["FoldReport", "Folded", "FuseReport", "Fused", "fold", "fuse_bn"]


# ---- fold ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folded:
    """One layer that became a plain convolution."""

    name: str  # in the model; "" for the model itself
    kind: str
    ring_weights: int
    dense_weights: int


@dataclass(frozen=True)
class FoldReport:
    """What `fold` did."""

    layers: tuple[Folded, ...]

    def __str__(self) -> str:
        rows = [f"{layer.name or '(model)'}: {layer.kind}, {layer.ring_weights} -> {layer.dense_weights} weights"
                for layer in self.layers]  # fmt: skip
        return "\n".join([f"{len(self.layers)} radial layers folded", *rows])


def _radial_layers(model: nn.Module) -> Iterator[tuple[str, RadialConvNd]]:
    """Every place of every radial layer; one that is used twice has two."""
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, RadialConvNd):
            yield name, module


def _replace(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """The model with `module` in the place of that name."""
    if not name:
        return module
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
    return model


# those that are known: a subclass may do anything
FORWARDS = (RadialConvNd.forward, Transposed.forward, _BatchNorm.forward, nn.SyncBatchNorm.forward)


def _has_hooks(module: nn.Module) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks)


def fold(model: nn.Module) -> tuple[nn.Module, FoldReport]:
    """A copy of the model in which every radial layer is the plain convolution with the same outputs.

    The copy needs nothing of this package: it can be exported, quantised, and served by whatever takes `torch.nn`.

    Args:
        model: any module, or a radial layer itself. It is left as it is.

    Returns:
        The new model, and a report of the layers that were folded.

    Raises:
        ValueError: a lazy layer that has not seen an input; hooks on a radial layer, or a forward of a subclass, which
            would be lost.
    """
    for name, layer in _radial_layers(model):
        if layer.in_channels is not None and _has_hooks(layer):  # a lazy one has its own
            raise ValueError(f"fold: expected radial layers without hooks, which would be lost, got some on {name!r}")
        if type(layer).forward not in FORWARDS:
            raise ValueError(
                f"fold: expected radial layers with the forward of their class, got {name!r}, a {type(layer).__name__} "
                "with one of its own, which would be lost"
            )
    folded = copy.deepcopy(model)
    plain: dict[RadialConvNd, nn.Module] = {}
    report = []
    for name, layer in list(_radial_layers(folded)):
        if layer not in plain:
            conv = plain[layer] = layer.to_conv()
            dense: Any = conv.weight
            report.append(Folded(name, type(layer).__name__, layer.weight.numel(), dense.numel()))
        folded = _replace(folded, name, plain[layer])
    return folded, FoldReport(tuple(report))


# ---- fuse_bn ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fused:
    """One batch norm that went into the layer before it."""

    conv: str
    norm: str


@dataclass(frozen=True)
class FuseReport:
    """What `fuse_bn` did, and which batch norms behind a radial layer it left, with the reason."""

    fused: tuple[Fused, ...]
    left: dict[str, str]

    def __str__(self) -> str:
        rows = [f"{pair.norm} -> {pair.conv}" for pair in self.fused]
        rows += [f"{name} left: {reason}" for name, reason in self.left.items()]
        return "\n".join([f"{len(self.fused)} batch norms fused", *rows])


class _Tracer(fx.Tracer):
    """Looks into modules, but for torch's own, radial layers, batch norms, and those that are known to be opaque."""

    def __init__(self, opaque: Container[nn.Module]) -> None:
        super().__init__()
        self.opaque = opaque

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf = isinstance(m, (RadialConvNd, _BatchNorm)) or m in self.opaque
        return leaf or super().is_leaf_module(m, module_qualified_name)


def _graph(model: nn.Module) -> tuple[fx.Graph, list[str]]:
    """The model's graph, and the names of the modules whose forward can't be traced: leaves of the graph."""
    opaque: dict[nn.Module, str] = {}

    def visit(module: nn.Module, name: str) -> fx.Graph | None:
        tracer = _Tracer(opaque)
        if tracer.is_leaf_module(module, name):
            return None
        for child_name, child in module.named_children():
            visit(child, f"{name}.{child_name}" if name else child_name)
        try:
            return tracer.trace(module)
        except Exception:  # the model's own code runs, on proxies: it may raise anything
            opaque[module] = name
            return None

    return visit(model, "") or fx.Graph(), list(opaque.values())


@dataclass(frozen=True)
class _Pair:
    """A batch norm behind a radial layer."""

    names: Fused
    conv: RadialConvNd
    norm: _BatchNorm
    users: int  # of the layer's output
    graph: fx.Graph

    def why_not(self, calls: Callable[[nn.Module], int]) -> str | None:
        """Why the norm can't become part of the layer, or None."""
        conv, norm = self.conv, self.norm
        if norm.running_mean is None:
            return "it has no running statistics"
        if norm.training or conv.training:
            return "it, or the layer before it, is in training mode"
        if any(type(module).forward not in FORWARDS for module in (conv, norm)):
            return "it, or the layer before it, has a forward of its own"
        if self.users > 1:
            return "something else uses the layer's output too"
        if calls(conv) > 1 or calls(norm) > 1:
            return "it, or the layer before it, is called more than once"
        read = {str(node.target).rpartition(".")[0] for node in self.graph.nodes if node.op == "get_attr"}
        if read & {self.names.conv, self.names.norm}:
            return "the model reads its parameters, or those of the layer before it"
        if nn.utils.parametrize.is_parametrized(conv):
            return "the layer's weights are parametrized"
        if _has_hooks(conv) or _has_hooks(norm):
            return "it, or the layer before it, has hooks"
        return None


def _pairs(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> Iterator[_Pair]:
    for node in _calls(graph):
        norm = modules[node.target]
        before = next(iter((*node.args, *node.kwargs.values())), None)
        if isinstance(norm, _BatchNorm) and isinstance(before, fx.Node) and before.op == "call_module":
            conv = modules[str(before.target)]
            if isinstance(conv, RadialConvNd):
                yield _Pair(Fused(str(before.target), node.target), conv, norm, len(before.users), graph)


def _calls(graph: fx.Graph) -> list[Any]:
    """Nodes that call a module."""
    return [node for node in graph.nodes if node.op == "call_module"]


def _fuse(conv: RadialConvNd, norm: _BatchNorm) -> None:
    """Scale and shift by the norm's statistics, in float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    w, mean = conv.weight.detach(), norm.running_mean.double()
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    bias = -mean if conv.bias is None else conv.bias.detach().double() - mean
    bias = bias * scale
    if norm.bias is not None:
        bias = bias + norm.bias.detach().double()
    # rows of w are outputs, but of a transposed convolution inputs, and its columns the outputs of their group
    first = conv.groups if conv.transposed else w.shape[0]
    scaled = w.double().unflatten(0, (first, -1)) * scale.view(first, 1, -1, 1)
    conv.weight = nn.Parameter(scaled.flatten(0, 1).to(w.dtype), conv.weight.requires_grad)
    trained = norm.bias if conv.bias is None else conv.bias
    conv.bias = nn.Parameter(bias.to(w.dtype), conv.weight.requires_grad if trained is None else trained.requires_grad)


def fuse_bn(model: nn.Module) -> tuple[nn.Module, FuseReport]:
    """A copy of the model in which batch norms right behind radial layers are part of their ring weights and bias.

    The layers stay radial; `fold` may follow. Pairs are found by `torch.fx`, with arguments of `forward` that have a
    default at their default. A module whose forward can't be traced (one that branches on its input) keeps its batch
    norms: fuse its parts by themselves where they are always called as wholes.

    Args:
        model: any module, in eval mode. It is left as it is.

    Returns:
        The new model, with `torch.nn.Identity` where batch norms were, and a report.

    Raises:
        ValueError: the model is in training mode, where a batch norm depends on the batch.
    """
    if model.training:
        raise ValueError("fuse_bn: expected a model in eval mode, got one in training mode; call model.eval() before")
    fused = copy.deepcopy(model)
    places = list(fused.named_modules(remove_duplicate=False))
    modules = dict(places)
    graph, opaque = _graph(fused)
    called = [modules[node.target] for node in _calls(graph)]

    def calls(module: nn.Module) -> int:
        # a second place may be called by what can't be traced
        return max(called.count(module), sum(other is module for _, other in places))

    left = {}
    for outer in opaque:
        inner = modules[outer]
        if any(isinstance(module, RadialConvNd) for module in inner.modules()):
            for name, module in inner.named_modules(prefix=outer):
                if isinstance(module, _BatchNorm):
                    left[name] = f"it is inside {outer or 'the model'}, whose forward can't be traced"
    done = []
    for pair in _pairs(graph, modules):
        reason = pair.why_not(calls)
        if reason is None:
            _fuse(pair.conv, pair.norm)
            done.append(pair.names)
        else:
            left[pair.names.norm] = reason
    for names in done:
        fused = _replace(fused, names.norm, nn.Identity())
    return fused, FuseReport(tuple(done), left)
