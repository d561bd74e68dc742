#!/usr/bin/env bash
# Build, tests and benchmarks on a machine with an NVIDIA GPU, with that machine's own Python and torch and no network.
#
#   benchmarks/gpu.sh FOLDER         (or: make gpu OUT=FOLDER)
#
# FOLDER receives a log per step, benchmarks.json, report.html, report.md, gpu.json (for benchmarks/results) and
# summary.txt. Every step runs, also after a failed one; the exit status is 1 if any failed, 2 if the machine lacks
# something that all steps need. Peers whose packages are missing are skipped, with the reason.
# STEPS=tune times the Triton configurations and prints the fastest, to be copied into triton_kernels/configs.py; they
# are kept in FOLDER/tuned, so that another run with the same FOLDER goes on where the first one ended, and the table
# with them in FOLDER/tuned.json.
# Variables: PYTHON (python3), STEPS ("environment build tests sanitizer benchmarks report"), RADCONV_CUDA (on: the CUDA
# part must build), RADCONV_CUDA_ARCHS.
set -uo pipefail

python=${PYTHON:-python3}
all_steps="environment build tests sanitizer benchmarks report"
steps=${STEPS:-$all_steps}
export RADCONV_CUDA=${RADCONV_CUDA:-on}
export PYTHONUNBUFFERED=1

give_up() {
  echo "make gpu: $1" >&2
  exit 2
}

[ -n "${1:-}" ] || give_up "OUT is missing: name a folder for logs and results, make gpu OUT=folder."
mkdir -p "$1" || give_up "the folder $1 can't be made."
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 2

command -v "$python" >/dev/null || give_up "$python was not found."
lacking=$("$python" - <<'END'
import importlib.util
import shutil
import sysconfig

modules = ("torch", "triton", "setuptools", "pybind11", "pytest", "pytest_benchmark", "rich", "matplotlib", "jinja2")
lacking = [name for name in modules if importlib.util.find_spec(name) is None]
path = sysconfig.get_path("scripts")
tools = ("cmake", "ninja")
lacking += [t for t in tools if not (importlib.util.find_spec(t) or shutil.which(t, path=path) or shutil.which(t))]
print(", ".join(lacking))
END
) || give_up "$python can't run."
[ -z "$lacking" ] || give_up "$python lacks $lacking, and this target installs nothing from the network."
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
  give_up "torch of $python sees no CUDA device."

environment() {
  nvidia-smi
  nvcc --version
  git log -1 --format='commit %H' 2>/dev/null
  "$python" - <<'END'
import platform

import torch

card = torch.cuda.get_device_properties(0)
print("python", platform.python_version())
print("torch", torch.__version__, "cuda", torch.version.cuda, "cudnn", torch.backends.cudnn.version())
print("card", card.name, f"sm_{card.major}{card.minor}", card.multi_processor_count, "multiprocessors")
END
}

# Editable: pytest run from this folder would otherwise import the source tree, which has no compiled module.
build() {
  "$python" -m pip install --no-index --no-build-isolation --no-deps -v -e . || return
  "$python" - <<'END'
import json
import sys

from radconv_ext.build_info import build_info

info = build_info()
print(json.dumps(info, indent=2))
sys.exit(info["native"]["reason"] or info["cuda"]["reason"])
END
}

tests() {
  RADCONV_TESTS_NO_INSTALL=1 "$python" -m pytest --durations=25 tests
}

# API errors aren't reported: torch, cuDNN and cuBLAS probe with calls that may fail, and the tests see their own.
sanitized() {
  local tool=$1 cases=$2
  echo "compute-sanitizer $tool: $cases"
  compute-sanitizer --tool "$tool" --error-exitcode 1 --report-api-errors no \
    "$python" -m pytest tests/test_gpu.py -q -k "$cases"
}

# Without its cache, torch makes each tensor an allocation of its own, so that an access beyond it is seen.
sanitizer() {
  command -v compute-sanitizer >/dev/null || {
    echo "make gpu: compute-sanitizer is not on PATH."
    return 1
  }
  local status=0
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 sanitized memcheck "width-7 or volume or depthwise-3d or stride-3" || status=1
  sanitized racecheck "width-7 or depthwise-3d" || status=1
  sanitized synccheck "width-7 or float16_rings" || status=1
  sanitized initcheck "width-7 or depthwise-3d" || status=1
  return "$status"
}

benchmarks() {
  rm -f "$out/benchmarks.json"
  "$python" -m pytest -q benchmarks --device cuda --seconds 480 --benchmark-json="$out/benchmarks.json"
}

report() {
  local found="$out/benchmarks.json"
  [ -s "$found" ] || found="$found.part" # what an interrupted run left
  "$python" -m benchmarks.report "$found" --html "$out/report.html" --markdown "$out/report.md" --condense "$out/gpu.json"
}

# Not among the default steps: some 300 configurations are compiled, up to 4 s each.
tune() {
  local status=0
  export RADCONV_TRITON_AUTOTUNE=1 RADCONV_CACHE_DIR="$out/tuned"
  "$python" -m pytest -q benchmarks --device cuda --seconds 480 -k "radconv_triton or torch_conv" \
    --benchmark-json="$out/tuned.json" || status=1
  "$python" -m radconv_ext.triton_kernels.tune || status=1
  return "$status"
}

failed=0
: >"$out/summary.txt"
for step in $steps; do
  declare -F "$step" >/dev/null || give_up "STEPS names $step, expected some of: $all_steps."
  echo "== $step"
  start=$SECONDS
  "$step" 2>&1 | tee "$out/$step.log"
  status=${PIPESTATUS[0]}
  [ "$status" -eq 0 ] || failed=1
  echo "$step: status $status, $((SECONDS - start)) s" | tee -a "$out/summary.txt"
done
exit "$failed"
