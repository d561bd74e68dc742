"""Checkpoints of the authors' released packages, GMR-Conv 1.0.3 and SRE-Conv 1.0.2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..geometry import band_geometry
from .base import identity

__all__ = ["convert_released"]

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
        converted[prefix + "_extra_state"] = _identity(key, index, "binary" if sigmas is None else "banded")
    return converted


def _identity(key: str, index: Tensor, family: str) -> Tensor:
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
