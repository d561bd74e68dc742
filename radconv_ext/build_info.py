"""What was built, what is missing, and why: one sentence for each missing part.

`native()` is the one place that imports the compiled module `radconv_ext._C`. This file imports nothing else of the
package, so every engine may use it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, TypedDict

__all__ = [
    "BuildInfo",
    "CudaInfo",
    "NativeInfo",
    "build_info",
    "in_one_line",
    "native",
    "native_reason",
    "triton_reason",
]

_MODULE = f"{__package__}._C"
_IMPORTED_BY = os.getpid()
_RECORD = Path(__file__).with_name("_build.json")  # written by setup.py
_NEVER_BUILT = "running from a source tree that was never built: run `pip install -e .`"
_TRITON_DISTRIBUTIONS = ("triton", "pytorch-triton", "pytorch-triton-rocm", "pytorch-triton-xpu", "triton-windows")
_TRITON_MINIMUM = (3, 6)


class NativeInfo(TypedDict):
    """The compiled module. `reason` is None exactly when it is built and loads."""

    built: bool
    loads: bool
    #: such as "GNU 12.2.0"
    compiler: str | None
    #: instruction sets of the CPU kernels, out of "baseline", "avx2", "avx512"
    isas: list[str]
    reason: str | None


class CudaInfo(TypedDict):
    """The CUDA part in the compiled module. `reason` is None exactly when they can run on this machine."""

    built: bool
    #: such as "13.0"
    nvcc: str | None
    #: in CMake's names; "80-real" is machine code alone, "90" is machine code and PTX
    architectures: list[str]
    #: 1000 * major + 10 * minor; None when the kernels aren't built or don't load
    runtime_version: int | None
    #: newest runtime the driver serves, in the same form; 0 without a driver
    driver_version: int | None
    device_count: int | None
    reason: str | None


class BuildInfo(TypedDict):
    """Result of `build_info()`."""

    #: of radconv_ext, python, torch and triton; None where it is not installed
    versions: dict[str, str | None]
    native: NativeInfo
    cuda: CudaInfo
    #: one sentence for each part that can't be used here, empty when everything can
    missing: list[str]


@functools.cache
def _record() -> dict[str, Any] | None:
    """The record that setup.py left, None in a tree that was never built."""
    try:
        record: dict[str, Any] = json.loads(_RECORD.read_text())
    except FileNotFoundError:
        return None
    return record


@functools.cache
def _load() -> tuple[ModuleType | None, str | None]:
    """The compiled module, or None and why not."""
    try:
        module = importlib.import_module(_MODULE)
        if os.getpid() != _IMPORTED_BY:
            module.leave_openmp()  # forked in between, unseen by a library that was not loaded yet
        return module, None
    except ModuleNotFoundError as error:
        if error.name != _MODULE:
            return None, f"built, but it fails to load: {error}"
    except ImportError as error:
        return None, f"built, but it fails to load: {error}"
    record = _record()
    if record is None:
        return None, _NEVER_BUILT
    if record["native"]["built"]:
        return None, f"built, but not for this Python ({sys.implementation.cache_tag}): run `pip install` with it"
    return None, f"not built, {record['native']['reason']}"


def native() -> ModuleType | None:
    """The compiled module `radconv_ext._C`, or None where it is missing or doesn't load. The answer is cached."""
    return _load()[0]


def native_reason() -> str | None:
    """Why `native()` is None, in one sentence; None when it isn't."""
    reason = _load()[1]
    return None if reason is None else f"native library: {reason}"


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _why_no_cuda(cuda: CudaInfo) -> str | None:
    """Why the CUDA part can't run; `cuda["reason"]` holds the recorded reason where they aren't built."""
    runtime, driver = cuda["runtime_version"], cuda["driver_version"]
    if not cuda["built"]:
        return _NEVER_BUILT if _record() is None else f"not built, {cuda['reason']}"
    if runtime is None or driver is None:
        return "built, but the native library that holds them does not load"
    if driver == 0:
        return "built, but this machine has no NVIDIA driver"
    if driver // 1000 < runtime // 1000:
        return (
            f"built with CUDA {_dotted(runtime)}, but the driver serves CUDA {_dotted(driver)} at most: "
            f"update the driver or build with an older CUDA"
        )
    return None if cuda["device_count"] else "built, but no CUDA device is visible"


def _triton_version() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return None
    for name in _TRITON_DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def in_one_line(error: Exception) -> str:
    """Type and last line of an error, without a full stop: what a sentence about it ends with."""
    last = str(error).strip().rpartition("\n")[2].strip()
    return f"{type(error).__name__}: {last.rstrip('.')}"


def triton_reason() -> str | None:
    """Why the Triton kernels can't be used, in one sentence, as far as it shows without importing triton; or None."""
    version = _triton_version()
    if version is None:
        return "Triton kernels: triton is not installed"
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is not None and tuple(map(int, found.groups())) < _TRITON_MINIMUM:
        return f"Triton kernels: need triton {'.'.join(map(str, _TRITON_MINIMUM))} or newer, this is {version}"
    return None


def _package_version() -> str:
    try:
        return importlib.metadata.version("radconv_ext")
    except importlib.metadata.PackageNotFoundError:
        record = _record()
        return "unknown" if record is None else str(record["version"])


def build_info() -> BuildInfo:
    """What this installation was built with, what is missing and why.

    With the CUDA part built in, this asks the CUDA driver for its version and devices, which initialises the driver in
    this process: a child that is forked afterwards can't use CUDA.

    Returns:
        A new dictionary, see `BuildInfo`. `missing` holds sentences such as ``"native library: not built, no C++
        compiler was found (looked for $CXX, c++, g++, clang++)"``.
    """
    import torch

    record, module = _record(), native()
    built = {"native": {}, "cuda": {}} if record is None else record
    devices = module.device_info() if module is not None and hasattr(module, "device_info") else {}
    native_part = NativeInfo(
        built=module is not None or built["native"].get("built", False),
        loads=module is not None,
        compiler=built["native"].get("compiler"),
        isas=list(built["native"].get("isas", [])),
        reason=native_reason(),
    )
    cuda_part = CudaInfo(
        built=bool(devices) or built["cuda"].get("built", False),
        nvcc=built["cuda"].get("nvcc"),
        architectures=list(built["cuda"].get("architectures", [])),
        runtime_version=devices.get("runtime_version"),
        driver_version=devices.get("driver_version"),
        device_count=devices.get("device_count"),
        reason=built["cuda"].get("reason"),
    )
    why_no_cuda = _why_no_cuda(cuda_part)
    cuda_part["reason"] = None if why_no_cuda is None else f"CUDA part: {why_no_cuda}"
    versions: dict[str, str | None] = {
        "radconv_ext": _package_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _triton_version(),
    }
    missing = [reason for reason in (native_part["reason"], cuda_part["reason"], triton_reason()) if reason]
    return BuildInfo(versions=versions, native=native_part, cuda=cuda_part, missing=missing)
