"""Two threads whatever the machine, so that timings and sums are comparable; and what may be left out where."""

from __future__ import annotations

import importlib.util
import os

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


def pytest_report_header() -> list[str]:
    return [f"left out: {module}, this machine lacks {', '.join(names)}" for module, names in _left_out.items()]
