"""How float32 is multiplied on matrix units: as torch's own convolutions do it."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

__all__ = ["emulates_cuda", "interprets_triton", "product_precision"]


def emulates_cuda() -> bool:
    """Whether tensors on the CPU may go to the emulated CUDA kernels: RADCONV_EMULATE_CUDA."""
    return os.environ.get("RADCONV_EMULATE_CUDA", "0") not in ("", "0")


def interprets_triton() -> bool:
    """Whether Triton's kernels run in its interpreter: TRITON_INTERPRET."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def product_precision(x: Tensor) -> str:
    """ "tf32" where torch's own convolutions of x may use it, else "ieee"; no meaning for other types than float32.

    TF32 exists on NVIDIA cards, and on a CPU that stands in for one.
    """
    if x.dtype is not torch.float32 or torch.version.hip is not None:
        return "ieee"
    if not (x.is_cuda or (x.is_cpu and (emulates_cuda() or interprets_triton()))):
        return "ieee"
    return _setting()


@torch.compiler.assume_constant_result  # torch.compile doesn't follow torch's settings
def _setting() -> str:
    backends: Any = torch.backends
    conv = getattr(backends.cudnn, "conv", None)
    if conv is None:  # torch before 2.9
        return "tf32" if backends.cudnn.allow_tf32 else "ieee"
    for setting in (conv, backends.cudnn, backends):  # from the particular to the general
        level = setting.fp32_precision
        if level != "none":
            return "tf32" if level == "tf32" else "ieee"
    return "ieee"
