"""Docstrings of functions and classes that differ by their dimension: templates, filled in."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import cleandoc

__all__ = ["fill"]

_AXES = ("L", "H, W", "D, H, W")


def fill(template: str | None, ndim: int, parts: Mapping[str, str]) -> str:
    """The template with its parts, and in both the words of this dimension, such as {axes} and {n}, put in."""
    axes = _AXES[ndim - 1]
    words = {
        "axes": axes,
        "outs": ", ".join(f"{axis}'" for axis in axes.split(", ")),
        "ks": ", k" * ndim,
        "cube": ("interval", "square", "cube")[ndim - 1],
        "n": f"{ndim}D",
        "nd": f"{ndim}d",
    }
    return cleandoc(template or "").format(**words, **{key: text.format(**words) for key, text in parts.items()})
