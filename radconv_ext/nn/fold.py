"""Deployment: radial layers as plain convolutions, and batch norms inside the ring weights before them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .base import RadialConvNd

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
        ValueError: a lazy layer that has not seen an input, or hooks on a radial layer, which would be lost.
    """
    for name, layer in _radial_layers(model):
        if layer.in_channels is not None and _has_hooks(layer):  # a lazy one has its own
            raise ValueError(f"fold: expected radial layers without hooks, which would be lost, got some on {name!r}")
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
    """Looks into modules, but for torch's own, radial layers, and those that are known to be opaque."""

    def __init__(self, opaque: set[nn.Module]) -> None:
        super().__init__()
        self.opaque = opaque

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, RadialConvNd) or m in self.opaque or super().is_leaf_module(m, module_qualified_name)


def _graphs(model: nn.Module) -> list[tuple[str, fx.Graph]]:
    """The model's graph; where a forward can't be traced, those of its parts. Each with the prefix of its names."""
    opaque: set[nn.Module] = set()
    found: list[tuple[str, fx.Graph]] = []

    def visit(module: nn.Module, prefix: str) -> tuple[str, fx.Graph] | None:
        tracer = _Tracer(opaque)
        if tracer.is_leaf_module(module, prefix):
            return None
        parts = [visit(child, f"{prefix}{name}.") for name, child in module.named_children()]
        try:
            return prefix, tracer.trace(module)
        except Exception:  # the model's own code runs, on proxies: it may raise anything
            opaque.add(module)
            found.extend(part for part in parts if part is not None)
            return None

    whole = visit(model, "")
    return found if whole is None else [whole, *found]


def _why_not_fuse(conv: RadialConvNd, norm: _BatchNorm, users: int, calls: Callable[[nn.Module], int]) -> str | None:
    """Why the norm can't become part of the layer, or None."""
    if norm.running_mean is None:
        return "it has no running statistics"
    if norm.training or conv.training:
        return "it, or the layer before it, is in training mode"
    if users > 1:
        return "something else uses the layer's output too"
    if calls(conv) > 1 or calls(norm) > 1:
        return "it, or the layer before it, is called more than once"
    if nn.utils.parametrize.is_parametrized(conv):
        return "the layer's weights are parametrized"
    if _has_hooks(conv) or _has_hooks(norm):
        return "it, or the layer before it, has hooks"
    return None


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
    conv.bias = nn.Parameter(bias.to(w.dtype))


def fuse_bn(model: nn.Module) -> tuple[nn.Module, FuseReport]:
    """A copy of the model in which batch norms right behind radial layers are part of their ring weights and bias.

    The layers stay radial; `fold` may follow. Pairs are found by `torch.fx`; where a forward can't be traced, its parts
    are looked at one by one, each taken to be called as a whole.

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
    modules = dict(fused.named_modules(remove_duplicate=False))
    graphs = _graphs(fused)
    called = [modules[prefix + node.target] for prefix, graph in graphs for node in _calls(graph)]
    pairs, left = [], {}
    for prefix, graph in graphs:
        for node in _calls(graph):
            norm, before = modules[prefix + node.target], node.args[0] if node.args else None
            if not (isinstance(norm, _BatchNorm) and isinstance(before, fx.Node) and before.op == "call_module"):
                continue
            conv = modules[f"{prefix}{before.target}"]
            if not isinstance(conv, RadialConvNd):
                continue
            pair = Fused(f"{prefix}{before.target}", f"{prefix}{node.target}")
            reason = _why_not_fuse(conv, norm, len(before.users), called.count)
            if reason is None:
                _fuse(conv, norm)
                pairs.append(pair)
            else:
                left[pair.norm] = reason
    for pair in pairs:
        fused = _replace(fused, pair.norm, nn.Identity())
    return fused, FuseReport(tuple(pairs), left)


def _calls(graph: fx.Graph) -> list[Any]:
    """Nodes that call a module."""
    return [node for node in graph.nodes if node.op == "call_module"]
