"""Checkpoints: what ring weights mean, and those of the authors' packages, GMR-Conv 1.0.3 and SRE-Conv 1.0.2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ..geometry import band_geometry

if TYPE_CHECKING:
    from .base import RadialConvNd

__all__ = ["convert_released", "identity", "why_not_load"]


def identity(ndim: int, kernel_size: int, rings: int, family: str, circular: bool, transposed: bool = False) -> Tensor:
    """What a layer's ring weights mean, in the operators' words, such as `2d k=9 n=5 gaussian disk`.

    As the letters' codes in float32: a tensor, so that every checkpoint format takes it, and one that stays what it is
    where checkpoints are averaged or cast.
    """
    text = f"{ndim}d k={kernel_size} n={rings} {family} {'disk' if circular else 'cube'}"
    codes = list(f"{text} transposed".encode() if transposed else text.encode())
    return torch.tensor(codes, dtype=torch.float32, device="cpu")


def _text(state: Any) -> str | None:
    """The words of an `identity`, None where it can't be read."""
    try:
        return bytes(round(code) for code in state.flatten().tolist()).decode("ascii")
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None


_RELEASED_KEYS = ("log_sigmas", "weight_index_mat")


def why_not_load(layer: RadialConvNd, state_dict: dict[str, Any], prefix: str) -> str | None:
    """Why these tensors are not this layer's, and what to do about it."""
    released = [key for key in _RELEASED_KEYS if prefix + key in state_dict]
    if released:
        return (
            f"the checkpoint has {released[0]!r}, so it comes from the released GMR-Conv or SRE-Conv package; pass it "
            "through radconv_ext.nn.convert_released first"
        )
    own = _text(layer.get_extra_state())
    saved = state_dict.get(prefix + "_extra_state")
    meta = isinstance(saved, Tensor) and saved.is_meta  # has no content
    if prefix + "_extra_state" in state_dict and not meta and (text := _text(saved)) != own:
        if text is None:
            return (
                "the checkpoint's '_extra_state', which says what the ring weights mean, can't be read; where they are "
                f"known to be those of a layer {own!r}, delete the entry and load with strict=False"
            )
        return (
            f"the checkpoint was saved from a layer {text!r}, this one is {own!r}; the same numbers would mean another "
            "kernel: build the layer with the checkpoint's kernel_size (k), num_rings (n), family and circular "
            "(disk: True, cube: False)"
        )
    rings = f"ring weights of shape (*, *, {layer.num_rings}), as the layer is {own!r}"
    weight = state_dict.get(prefix + "weight")
    if isinstance(weight, Tensor) and not is_lazy(weight):
        if weight.dim() != 3:
            return (
                f"expected {rings}, the checkpoint's weight is a dense kernel {tuple(weight.shape)}; load it into the "
                "convolution that it belongs to"
            )
        if weight.shape[2] != layer.num_rings:
            return (
                f"expected {rings}, the checkpoint has {weight.shape[2]} rings, {tuple(weight.shape)}; build the layer "
                f"with the checkpoint's kernel_size and num_rings={weight.shape[2]}"
            )
    return None


_INDEX = "weight_index_mat"


def convert_released(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A released GMR-Conv or SRE-Conv model's state dict, in the words of this package's layers.

    Layers become those of `GMRConvNd(family="banded")`, or, where they have no sigma, of `SREConvNd`; weights, biases
    and sigmas keep their numbers, and every other entry is passed on. The models' own module names stay, so the target
    has layers of the same names.

    Args:
        state_dict: of a whole model or of one layer. It is left as it is.

    Returns:
        A new dict for `load_state_dict`.

    Raises:
        ValueError: an index matrix that is not one of bands: it was trained, and has no counterpart here.
    """
    converted = dict(state_dict)
    for key, index in state_dict.items():
        prefix, found, rest = key.rpartition(_INDEX)
        if not found or rest or prefix.endswith("default_"):
            continue
        sigmas = converted.pop(prefix + "log_sigmas", None)
        for name in (_INDEX, f"default_{_INDEX}", "mus"):
            converted.pop(prefix + name, None)
        if sigmas is not None:
            converted[prefix + "log_sigma"] = sigmas
        converted[prefix + "_extra_state"] = _layer_of(key, index, "binary" if sigmas is None else "banded")
    return converted


def _layer_of(key: str, index: Tensor, family: str) -> Tensor:
    """The layer that has this index matrix, (1, 1, n, k ** ndim)."""
    rings, taps = index.shape[-2:]
    for ndim in (1, 2, 3):
        size = round(taps ** (1 / ndim))
        if size**ndim != taps or size % 2 == 0:
            continue
        for circular in (True, False):
            if rings < 2 <= size and not circular:
                continue
            bucket = torch.tensor(band_geometry(ndim, size, rings, circular).bucket, device="cpu")
            bands = torch.arange(rings, device="cpu").unsqueeze(1) == bucket  # (n, taps)
            if torch.equal(index.detach().cpu().reshape(rings, taps), bands.to(index.dtype)):
                return identity(ndim, size, rings, family, circular)
    raise ValueError(
        f"{key}: expected bands, one ring per tap, got another matrix {tuple(index.shape)}; it was trained "
        "(train_index_mat=True), which has no counterpart here"
    )
