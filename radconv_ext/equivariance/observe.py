"""A model, observed layer by layer and left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .grid import Symmetry
from .reasons import is_convolution

__all__ = ["FIRST", "LAST", "NONE", "Call", "copies_of", "layouts", "leaves", "preserved", "recorded", "transformed"]


@contextmanager
def preserved(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Run a model without leaving a trace: buffers, modes and torch's random state are put back at the end.

    Yields a function that puts buffers and random numbers back to one and the same start, to be called before each run,
    so that the model is a function of its input alone.
    """
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    copies = {buffer: buffer.clone() for buffer in model.buffers()}
    training = {module: module.training for module in model.modules()}
    devices = {t.device for t in (*model.parameters(), *model.buffers()) if t.device.type == "cuda"}

    def put_back_buffers() -> None:
        for module, own in buffers:
            module._buffers.clear()
            module._buffers.update(own)
        for buffer, copy in copies.items():
            if not torch.equal(buffer, copy):
                # past the version counter: a graph that has saved the buffer finds its values, and may go on
                buffer.data.copy_(copy)

    with torch.no_grad(), torch.random.fork_rng([device.index for device in devices]):
        start = torch.get_rng_state()
        starts = {device: torch.cuda.get_rng_state(device) for device in devices}

        def put_back() -> None:
            put_back_buffers()
            torch.set_rng_state(start)
            for device, state in starts.items():
                torch.cuda.set_rng_state(state, device)

        try:
            yield put_back
        finally:
            put_back_buffers()
            for module, mode in training.items():
                module.training = mode


@dataclass(frozen=True)
class Call:
    """One call of a layer, with copies of what went in and came out."""

    name: str
    layer: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    @property
    def inputs(self) -> list[Tensor]:
        """Every tensor among the arguments, those in lists included."""
        return [t for t in tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor)]


def leaves(model: nn.Module) -> dict[str, nn.Module]:
    """The layers by name: modules without children, and convolutions whatever they are made of."""
    found: dict[str, nn.Module] = {}

    def visit(module: nn.Module, name: str) -> None:
        children = {child: part for child, part in module.named_children() if child != "parametrizations"}
        if not children or is_convolution(module):
            found[name or "(model)"] = module
            return
        for child, part in children.items():
            if part not in found.values():
                visit(part, f"{name}.{child}" if name else child)

    visit(model, "")
    return found


def recorded(model: nn.Module, x: Tensor, layers: Mapping[str, nn.Module]) -> tuple[Tensor, list[Call]]:
    """The model's output, and the calls of its layers in order."""
    calls: list[Call] = []
    running: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    counts: dict[str, int] = {}

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        running.append(copies_of((args, kwargs)))  # copies, as a later layer may work in place

    def after(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(layer: nn.Module, _: Any, output: Any) -> None:
            args, kwargs = running.pop()
            counts[name] = counts.get(name, 0) + 1
            label = name if counts[name] == 1 else f"{name} (call {counts[name]})"
            calls.append(Call(label, layer, args, kwargs, copies_of(output)))

        return hook

    handles = []
    try:
        for name, layer in layers.items():
            # before hooks of the layer's own: they act again when the layer is run alone
            handles.append(layer.register_forward_pre_hook(before, prepend=True, with_kwargs=True))
            handles.append(layer.register_forward_hook(after(name)))
        return model(x), calls
    finally:
        for handle in handles:
            handle.remove()


def copies_of(values: Any) -> Any:
    return tree_map(lambda value: value.detach().clone() if isinstance(value, Tensor) else value, values)


# ---- where the spatial axes are --------------------------------------------------------------------------------------

FIRST, LAST, NONE = "channels first", "channels last", "no spatial axes"


def layouts(t: Any, batch: int, ndim: int) -> tuple[str, ...]:
    """How a tensor may be laid out: (B, C, *S) or (B, *S, C); (B, F); or nothing that is known here."""
    if not isinstance(t, Tensor) or not t.is_floating_point() or t.dim() < 2 or t.shape[0] != batch:
        return ()
    return {ndim + 2: (FIRST, LAST), 2: (NONE,)}.get(t.dim(), ())


def transformed(t: Tensor, g: Symmetry, layout: str) -> Tensor:
    """A contiguous copy of t with the symmetry applied to its spatial axes; (B, F) has none."""
    if t.dim() > 2 and layout == FIRST:
        t = g(t)
    elif t.dim() > 2 and layout == LAST:
        t = g(t.movedim(-1, 1)).movedim(1, -1)
    return t.clone(memory_format=torch.contiguous_format)
