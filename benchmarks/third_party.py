"""Other people's packages, which may be missing: each loader raises `Absent` with the reason."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np


class Absent(Exception):
    """A peer that can't be had here; the message is the reason."""


def reason(load: Callable[[], Any]) -> str | None:
    try:
        load()
    except Absent as absent:
        return str(absent)
    return None


@lru_cache
def released_module(distribution: str, version: str, file: str) -> ModuleType:
    """The module of the released layers alone: the packages' __init__ imports what they don't declare."""
    how = "`pip install --no-deps -r requirements/released.txt` installs it"
    try:
        found = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise Absent(f"{distribution} {version} is not installed: {how}") from None
    if found.version != version:
        raise Absent(f"{distribution}: expected version {version}, installed is {found.version}: {how}")
    path = Path(str(found.locate_file(file)))
    spec = importlib.util.spec_from_file_location(f"released_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        del sys.modules[spec.name]
        raise Absent(f"{distribution} can't be imported: {error}") from None
    return module


def gmr_module() -> ModuleType:
    return released_module("GMR-Conv", "1.0.3", "GMR_Conv/gmr_conv.py")


def sre_module() -> ModuleType:
    return released_module("SRE-Conv", "1.0.2", "SRE_Conv/sre_conv.py")


@lru_cache
def import_e2cnn() -> tuple[ModuleType, ModuleType]:
    """`gspaces` and `nn` of e2cnn."""
    try:
        from e2cnn import gspaces
        from e2cnn import nn as enn
        from e2cnn.kernels import irreps_basis, utils
    except ImportError as error:
        raise Absent(f"e2cnn 0.2.3 can't be imported: {error}; `pip install e2cnn==0.2.3` installs it") from None
    # NumPy 2 refuses array(.., copy=False) where it must copy, and NumPy 2.3 removed ndarray.tostring, which the hashes
    # call; equal bases have equal bytes
    utils.np = SimpleNamespace(**vars(np) | {"array": lambda values, copy=True: np.asarray(values)})
    for kind in vars(irreps_basis).values():
        if isinstance(kind, type) and "__hash__" in vars(kind):
            kind.__hash__ = lambda self: hash((self.in_irrep, self.out_irrep, self.mu.tobytes()))
    return gspaces, enn


@lru_cache
def import_escnn() -> tuple[ModuleType, ModuleType]:
    """`gspaces` and `nn` of escnn, the successor, which has 3D."""
    try:
        from escnn import gspaces
        from escnn import nn as enn
    except ImportError as error:
        raise Absent(f"escnn can't be imported: {error}") from None
    return gspaces, enn
