"""One kernel launch, prepared once: Triton's own path binds, specialises and looks up at every call, this does not."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from triton import knobs
from triton.runtime import driver

from . import kernels
from .configs import Config

__all__ = ["INTERPRETED", "Launch", "card_of", "multiprocessors"]

INTERPRETED = type(kernels.convolve).__name__ == "InterpretedFunction"  # TRITON_INTERPRET=1 when it was imported
_interpreter = threading.Lock()  # it patches triton.language while it runs: one thread at a time


class Launch:
    """A kernel with everything but its pointers: those come first in every kernel's parameters."""

    def __init__(self, kernel: Any, grid: tuple[int, int, int], arguments: tuple[Any, ...], config: Config) -> None:
        self.kernel, self.grid, self.arguments = kernel, grid, arguments
        self.config = config
        self._compiled: dict[tuple[int, int], Any] = {}

    def __call__(self, *pointers: Tensor) -> None:
        """Launch on the current stream of the current device, which must be the tensors'."""
        if INTERPRETED:
            with _interpreter:
                self.kernel[self.grid](*pointers, *self.arguments)
            return
        active = driver.active
        device = active.get_current_device()
        aligned = 0  # compiled code may rely on addresses that are multiples of 16
        for t in pointers:
            aligned = 2 * aligned + (t.data_ptr() % 16 == 0)
        found = self._compiled.get((device, aligned))
        if found is None or _hooked():
            found = self.kernel[self.grid](*pointers, *self.arguments, **self._options())
            self._compiled[device, aligned] = found
            return
        found.run(
            *self.grid, active.get_current_stream(device), found.function, found.packed_metadata, None, None, None,
            *pointers, *self.arguments,
        )  # fmt: skip

    def _options(self) -> dict[str, Any]:
        options = {"num_warps": self.config.warps, "num_stages": 1, "enable_fp_fusion": True}
        if self.config.most_registers is not None and driver.active.get_current_target().backend == "cuda":
            options["maxnreg"] = self.config.most_registers
        return options

    def argument(self, name: str) -> Any:
        """Value of a parameter that is not a pointer."""
        names = [n for n in self.kernel.arg_names if not n.endswith("_ptr")]
        return self.arguments[names.index(name)]

    def compile(self, *pointers: torch.dtype) -> Any:
        """Triton's compiled kernel for aligned pointers to these types, without a launch."""
        return self.kernel.warmup(*pointers, *self.arguments, grid=self.grid, **self._options())


def _hooked() -> bool:
    """Whether somebody, a profiler for example, wants to know of launches."""
    hooks = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    return any(getattr(hook, "calls", hook) for hook in hooks)  # Triton's own are chains of calls, empty at first


def card_of(device: torch.device) -> str:
    """The class of cards that configurations are kept for: "sm_90", "interpreter", or the device type."""
    if INTERPRETED:
        return "interpreter"
    if device.type == "meta":  # compiled ahead of time, for one target after the other
        return f"sm_{driver.active.get_current_target().arch}"
    return _card(device)


@lru_cache(maxsize=64)
def _card(device: torch.device) -> str:
    if device.type == "cuda" and torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability(device)
        return f"sm_{major}{minor}"
    return device.type


@lru_cache(maxsize=64)
def multiprocessors(device: torch.device) -> int:
    """How many there are to fill."""
    if INTERPRETED:
        return 2
    if device.type == "meta":
        return 132
    properties = getattr(torch, device.type).get_device_properties(device)
    return getattr(properties, "multi_processor_count", None) or getattr(properties, "gpu_subslice_count", 32)
