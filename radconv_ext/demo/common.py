"""What the parts share: console and output folder, and the image."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib.cbook import get_sample_data
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

__all__ = ["PLAIN", "RADIAL", "Demo", "Steps", "mri_slice"]

RADIAL, PLAIN = "#0b6e99", "#d1641c"  # colours of the two kinds of layer in every figure


@dataclass
class Steps:
    """A progress bar with a known number of steps."""

    progress: Progress
    task: TaskID

    def advance(self) -> None:
        self.progress.advance(self.task)
        self.progress.refresh()


@dataclass
class Demo:
    """Where a run prints and saves, and whether it is the short one."""

    out: Path
    quick: bool
    console: Console
    saved: list[Path] = field(default_factory=list)

    @contextmanager
    def steps(self, title: str, total: int, *, live: bool = True) -> Iterator[Steps]:
        """A progress bar with the time left; `live=False` keeps its thread out of measurements."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        left = (TextColumn("left"), TimeRemainingColumn())
        with Progress(*columns, *left, console=self.console, auto_refresh=live) as progress:
            yield Steps(progress, progress.add_task(title, total=total))

    def save(self, figure: Figure, name: str) -> None:
        path = self.out / name
        figure.savefig(path, dpi=130)
        self.saved.append(path)


def mri_slice() -> Tensor:
    """The sagittal head slice that matplotlib ships, scaled to 0..1: (256, 256)."""
    with gzip.open(get_sample_data("s1045.ima.gz", asfileobj=False)) as file:
        raw = np.frombuffer(file.read(), dtype=">u2").reshape(256, 256)  # big-endian: 0..215
    return torch.from_numpy(raw.astype(np.float32) / raw.max())
