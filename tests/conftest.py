"""Two threads whatever the machine, so that timings and sums are comparable; and what may be left out where."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

# idle OpenMP threads of torch sleep: spinning ones slow everything down when the machine is shared
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before the kernels are imported

torch.set_num_threads(2)

# Test modules that need more than torch, pytest and hypothesis. Missing packages fail the tests, except on a machine
# where nothing can be installed and that says so (benchmarks/gpu.sh).
NEEDS = {
    "test_released.py": ("GMR_Conv", "SRE_Conv", "scipy"),
    "test_demo.py": ("matplotlib", "sklearn", "rich"),
    "test_definition.py": ("hypothesis",),
    "test_operators.py": ("expecttest",),
    "test_networks.py": ("GMR_Conv", "e2cnn", "scipy"),
    "test_peers.py": ("GMR_Conv", "SRE_Conv", "e2cnn", "rich"),
    "test_report.py": ("jinja2", "matplotlib"),
    "test_fold.py": ("GMR_Conv", "SRE_Conv", "scipy", "onnx", "onnxscript", "onnxruntime"),
    "test_equivariance_check.py": ("matplotlib", "scipy"),
    "test_docs.py": ("matplotlib", "onnx", "onnxscript", "scipy"),
}
_missing = {
    module: [name for name in names if importlib.util.find_spec(name) is None] for module, names in NEEDS.items()
}
_left_out = {
    module: names for module, names in _missing.items() if names and os.environ.get("RADCONV_TESTS_NO_INSTALL")
}
collect_ignore = list(_left_out)


# Files whose tests stay in one process, since what they share takes long to make.
TOGETHER = ("test_demo.py", "test_resources.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each process takes the next test, or file of `TOGETHER`, when it is free; pytest 9.2 ignores marks of groups."""
    if config.getoption("dist") != "load":  # what -n alone means
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByTest(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return file if Path(file).name in TOGETHER else nodeid

    return ByTest(config, log)


def pytest_report_header() -> list[str]:
    return [f"left out: {module}, this machine lacks {', '.join(names)}" for module, names in _left_out.items()]
