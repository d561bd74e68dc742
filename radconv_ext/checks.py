"""Checks of single arguments: one clear sentence each (what, expected, got)."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "DTYPES",
    "HALF",
    "IntOrInts",
    "expect_dense",
    "expect_flag",
    "expect_floating",
    "expect_floating_dtype",
    "expect_integer",
    "expect_one_of",
    "expect_positive",
    "expect_tensor",
    "per_axis",
]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HALF = (torch.float16, torch.bfloat16)

IntOrInts = int | Sequence[int]


def expect_integer(name: str, value: Any, minimum: int) -> int:
    """An int (not a bool, not 1.0) that is at least `minimum`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    if number < minimum:
        raise ValueError(f"{name}: expected at least {minimum}, got {number}")
    return number


def per_axis(name: str, value: IntOrInts, ndim: int, minimum: int) -> tuple[int, ...]:
    """An int, or one per spatial axis, as a tuple."""
    if isinstance(value, (list, tuple)):
        if len(value) not in (1, ndim):
            raise ValueError(f"{name}: expected an int or {ndim} of them, one per spatial axis, got {tuple(value)}")
        return tuple(expect_integer(name, v, minimum) for v in value) * (ndim if len(value) == 1 else 1)
    return (expect_integer(name, value, minimum),) * ndim


def expect_positive(name: str, value: Any) -> float:
    """A finite number above 0."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a finite number above 0, got {value}")
    return float(value)


def expect_flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected a bool, got {value!r}")
    return value


def expect_one_of(name: str, value: Any, allowed: Sequence[str]) -> str:
    """One of the strings allowed."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def expect_tensor(name: str, value: Any) -> None:
    """A tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")


def expect_dense(name: str, t: Tensor) -> None:
    """A tensor with strides."""
    if t.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got layout {t.layout}")


_FLOATING = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)


def expect_floating(name: str, t: Tensor) -> None:
    """A tensor of a dtype that the operator is defined for."""
    if t.dtype not in DTYPES:
        raise TypeError(f"{name}: expected a floating-point tensor ({_FLOATING}), got {t.dtype}")


def expect_floating_dtype(name: str, dtype: Any) -> None:
    """A dtype that the operator is defined for."""
    if dtype not in DTYPES:
        raise TypeError(f"{name}: expected a floating-point type ({_FLOATING}), got {dtype!r}")
