"""Measured configurations, on request: RADCONV_TRITON_AUTOTUNE in the environment, read when a plan is made.

    unset or empty  `configs.default` chooses by its model; nothing is timed, no file is read
    1               the first call with new sizes times every candidate on its own tensors and keeps the fastest, in
                    memory and on disk; compiling them can take a minute
    cached          what is on disk is used, else the default; nothing is timed

Choices are kept for each card, Triton version and package version in one JSON file, in $RADCONV_CACHE_DIR, else
$XDG_CACHE_HOME/radconv_ext, else ~/.cache/radconv_ext.  Nothing is timed while a CUDA graph is captured; the
interpreter always takes its own configurations.  A problem keeps the plan of its first call.

`python -m radconv_ext.triton_kernels.tune` prints what is kept, to be copied into configs.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import uuid
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import triton
import triton.testing
from torch import Tensor
from triton.errors import TritonError

from .. import __version__
from ..build_info import in_one_line
from ..problem import RadialConvProblem
from . import configs
from .configs import Config
from .launch import INTERPRETED
from .plan import Backward, Convolution

__all__ = ["Choices", "backward", "forward", "main", "postponed"]

_VARIABLE = "RADCONV_TRITON_AUTOTUNE"
_lock = threading.Lock()  # two threads that time at once disturb each other

Trial = Callable[[Config], Callable[[], None]]  # a launch with this configuration, ready to run


def forward(
    problem: RadialConvProblem, x: Tensor, w: Tensor, p: Tensor | None, bias: Tensor | None, y: Tensor, precision: str
) -> Convolution:
    """Plan of the forward pass; timing writes to y."""
    build = partial(Convolution, problem, False, x, y, precision, bias is not None, 0)
    return build(_convolve_config(build, x, w, p, bias, y))


def backward(
    problem: RadialConvProblem, x: Tensor, grad: Tensor, w: Tensor, p: Tensor | None, grad_x: Tensor | None,
    wanted: Sequence[bool], precision: str,
) -> Backward:  # fmt: skip
    """Plan of the gradients; timing writes to grad_x."""
    build = partial(Backward, problem, x, grad, grad_x, wanted, precision)
    sums = convolve = None
    if grad_x is not None:
        direction = partial(Convolution, problem, True, grad, grad_x, precision, False, 0)
        convolve = _convolve_config(direction, grad, w, p, None, grad_x)

    def trial(config: Config) -> Callable[[], None]:
        plan = build(config, convolve)
        return partial(plan.run_sums, x, grad, w, p, plan.workspace(x))

    if any(wanted[1:3]):
        sums = _config(x.device, lambda: build(None, convolve).sums, trial)
    return build(sums, convolve)


def postponed(device: torch.device) -> bool:
    """Whether timing was asked for, but not now: a plan made now is not to be kept."""
    return _setting() == "1" and _capturing(device)


def _convolve_config(
    build: Callable[..., Convolution], x: Tensor, w: Tensor, p: Tensor | None, bias: Tensor | None, y: Tensor
) -> Config | None:
    def trial(config: Config) -> Callable[[], None]:
        plan = build(config)
        return partial(plan.run_prepared, x, bias, y, plan.prepared(w, p))

    return _config(x.device, build, trial)


def _setting() -> str:
    """What the environment asks for: "", "1" or "cached"."""
    setting = os.environ.get(_VARIABLE, "")
    if setting not in ("", "1", "cached"):
        raise ValueError(f"{_VARIABLE}: expected '1', 'cached', or unset, got {setting!r}")
    return "" if INTERPRETED else setting


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _card_name(device: torch.device) -> str:
    return getattr(torch, device.type).get_device_name(device)


def _measure(run: Callable[[], None]) -> float:
    """Milliseconds, with a cold second-level cache."""
    return triton.testing.do_bench(run, return_mode="median")


def _config(device: torch.device, default: Callable[[], Any], trial: Trial) -> Config | None:
    """The choice for the launch that has `default().work` and `.key`; None leaves it to `configs.default`."""
    setting = _setting()
    if not setting:
        return None
    with _lock:
        choices, plan = _choices(_folder(), _card_name(device)), default()
        candidates = configs.candidates(plan.work)
        found = choices.get(plan.key)
        if found in candidates:  # else from older tables, or edited by hand
            return candidates[candidates.index(found)]
        if setting == "cached" or _capturing(device) or len(candidates) < 2:
            return None
        times = _times(candidates, trial, plan.work.kernel)
        if not times:
            return None  # launching the default says why
        best = min(times, key=lambda config: times[config])
        choices.add(plan.key, best, times[best], times.get(candidates[0]))
        return best


def _times(candidates: Sequence[Config], trial: Trial, kernel: str) -> dict[Config, float]:
    """Milliseconds of those that compile and launch."""
    times = {}
    for config in candidates:
        try:
            run = trial(config)
            run()
        except (TritonError, RuntimeError) as error:  # of compiling, loading or launching, which report at once
            sentence = f"autotuning leaves out {_literal(config)} for {kernel}: {in_one_line(error)}."
            warnings.warn(sentence, RuntimeWarning, stacklevel=2)
            continue
        times[config] = round(_measure(run), 6)
    return times


def _folder() -> Path:
    for variable, below in (("RADCONV_CACHE_DIR", ""), ("XDG_CACHE_HOME", "radconv_ext")):
        if value := os.environ.get(variable):
            return Path(value, below)
    return Path(os.path.expanduser("~"), ".cache", "radconv_ext")


def _parse(path: Path) -> dict[str, Any]:
    """The document in one file, its `choices` {key: {"config", "ms", "default_ms"}}; ValueError where it is not one."""
    document = json.loads(path.read_text(encoding="utf-8"))
    try:
        for entry in document["choices"].values():
            entry.update(config=Config(**entry["config"]), ms=float(entry["ms"]))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not a table of choices ({error!r})") from None
    return document


class Choices:
    """What is kept for one card, in memory and in a file that other processes write too."""

    def __init__(self, folder: Path, card: str) -> None:
        self._header = {"card": card, "triton": triton.__version__, "radconv_ext": __version__}
        name = f"{card}_triton-{triton.__version__}_radconv_ext-{__version__}"
        self._folder, self._path = folder, folder / (re.sub(r"[^\w.+-]+", "-", name) + ".json")
        self._said: set[str] = set()
        self._found = self._read()

    def get(self, key: str) -> Config | None:
        return self._found[key]["config"] if key in self._found else None

    def add(self, key: str, config: Config, ms: float, default_ms: float | None) -> None:
        """Keep it beside what others have written meanwhile; default_ms is None where the default fails."""
        mine = self._found | {key: {"config": config, "ms": ms, "default_ms": default_ms}}
        self._found = self._read() | mine
        entries = {k: e | {"config": asdict(e["config"])} for k, e in sorted(self._found.items())}
        fresh = self._folder / f"{self._path.name}.{uuid.uuid4().hex}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            fresh.write_text(json.dumps({**self._header, "choices": entries}, indent=1) + "\n", encoding="utf-8")
            os.replace(fresh, self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink()
            self._say(f"autotuning keeps its choices in memory: {self._folder} can't be written: {error.strerror}.")

    def _read(self) -> dict[str, Any]:
        try:
            return _parse(self._path)["choices"]
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError) as error:
            self._say(f"autotuning ignores {self._path} and will write it anew: {error}.")
            return {}

    def _say(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            warnings.warn(sentence, RuntimeWarning, stacklevel=2)


_choices = lru_cache(maxsize=64)(Choices)


def _literal(c: Config) -> str:
    cap = "" if c.most_registers is None else f", most_registers={c.most_registers}"
    return f"Config({c.pixels}, {c.block_c}, {c.block_o}, {c.warps}{cap})"


def main() -> None:
    """Print every file of the folder."""
    print(f"choices in {_folder()}")
    for path in sorted(_folder().glob("*.json")):
        try:
            document = _parse(path)
        except (OSError, ValueError) as error:
            print(f"{path}: {error}")
            continue
        choices = document.pop("choices")
        print(", ".join(f"{name} {value}" for name, value in document.items()))
        for key, e in choices.items():
            print(f"  {_literal(e['config']):<42} {e['ms']:.4f} ms, default {e.get('default_ms')} ms: {key}")


if __name__ == "__main__":
    main()
