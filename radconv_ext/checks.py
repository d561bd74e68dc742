"""Checks of single arguments: one clear sentence each (what, expected, got)."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "DTYPES",
    "HALF",
    "expect_dense",
    "expect_flag",
    "expect_floating",
    "expect_integer",
    "expect_one_of",
    "expect_tensor",
]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HALF = (torch.float16, torch.bfloat16)


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


def expect_floating(name: str, t: Tensor) -> None:
    """A dtype that the operator is defined for."""
    if t.dtype not in DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        raise TypeError(f"{name}: expected a floating-point tensor ({names}), got {t.dtype}")
