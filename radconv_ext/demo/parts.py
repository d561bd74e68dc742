"""The demo's parts in order."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from . import digits, rings, rotation, speed
from .common import Demo

__all__ = ["run_all"]

PARTS = (rings.run, rotation.run, speed.run, digits.run)


def run_all(out: Path, quick: bool) -> None:
    """Run every part, then list the figures."""
    out.mkdir(parents=True, exist_ok=True)
    demo = Demo(out, quick, Console())
    for part in PARTS:
        part(demo)
        demo.console.print()
    demo.console.print("Saved:")
    for path in demo.saved:
        demo.console.print(f"  {path}", soft_wrap=True, highlight=False)
