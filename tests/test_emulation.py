"""The emulation of CUDA on a CPU: its own tests, bugs planted in the kernels that it must see, AddressSanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from emulation.build import BUILD, ROOT, build

if torch.cuda.is_available():
    pytest.skip("a GPU is here: test_gpu.py runs the compiled kernels instead", allow_module_level=True)


def test_emulation_keeps_what_it_promises() -> None:
    """Fragments, copies, barriers, races, reports: its own tests."""
    done = subprocess.run([BUILD / "selftest"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert len(done.stdout.splitlines()) >= 40
    assert all(line.startswith("ok ") for line in done.stdout.splitlines()), done.stdout


@dataclass(frozen=True)
class Bug:
    """A change to one source, and how it shows."""

    id: str
    file: str
    before: str
    after: str
    shows: str  # in the error, or "wrong numbers"

    @property
    def source(self) -> str:
        """Whose kernels run with it."""
        return self.file if self.file.endswith(".cu") else "conv.cu"


BUGS = [
    Bug("none", "conv.cu", "// Rings of every other step", "// Rings of every other step", "right"),
    Bug(
        "halo-barrier",
        "conv.cu",
        "barrier_sync(kHalo + group, kGroupThreads);\n      if (more && p.halo_buffers == 2)",
        "if (more && p.halo_buffers == 2)",
        "under way",
    ),
    Bug("halo-wait", "conv.cu", "wait_copies<0>();\n      // the halo", "// the halo", "under way"),
    Bug("weight-wait", "conv.cu", "wait_copies<0>();\n    // the weights", "// the weights", "under way"),
    Bug(
        "only-buffer-barrier",
        "conv.cu",
        "barrier_sync(kWeights, kGroupThreads);  // before the only buffer",
        "// before the only buffer",
        "race",
    ),
    Bug("full-barrier", "conv.cu", "barrier_sync(kFull + group, kPairThreads);", "", "arrived twice"),
    Bug("free-barrier", "conv.cu", "if (last && task >= 2) barrier_sync(kFree + group, kPairThreads);", "", "race"),
    Bug("last-barrier", "conv.cu", "barrier_sync(kWeights, kGroupThreads);\n  product", "product", "race"),
    Bug("staging-sync", "product.cuh", "__syncwarp();\n\n", "\n", "race"),
    Bug("halo-column", "rings.cuh", "kReach + thread / kWords)", "kReach + 1 + thread / kWords)", "wrong"),
    Bug("halo-edge", "halo.cuh", "input >= 0 && input < size", "input >= 0 && input <= size", "wrong"),
    Bug("swapped-weights", "product.cuh", "a[m], b[2], b[3]);", "a[m], b[3], b[2]);", "wrong"),
    Bug("swapped-rings", "product.cuh", "(row, 0, lane / 16)", "(row, 0, 1 - lane / 16)", "wrong"),
    Bug("shells-wait", "gradient.cu", "wait_copies<0>();\n        // the halo", "// the halo", "under way"),
    Bug(
        "shells-barrier",
        "gradient.cu",
        "barrier_sync(kHalo, kGroupThreads);\n        if (dz",
        "if (dz",
        "race",
    ),
    Bug("table-barrier", "gradient.cu", "barrier_sync(kHalo, kGroupThreads);\n  };", "};", "race"),
    Bug("gradient-wait", "gradient.cu", "wait_copies<C::kAhead - 1>();", "", "under way"),
    Bug(
        "gradient-barrier",
        "gradient.cu",
        "barrier_sync(kGrad, kMultiplyThreads);\n            if (i",
        "if (i",
        "race",
    ),
    Bug("gradient-full", "gradient.cu", "barrier_sync(kFull + place, kGradientThreads);", "", "arrived twice"),
    Bug("gradient-free", "gradient.cu", "if (count >= 2) barrier_sync(kFree + place(), kGradientThreads);", "", "race"),
    Bug("bias-sync", "gradient.cu", "__syncwarp();  // its lanes' sums", "// its lanes' sums", "race"),
    Bug(
        "swapped-gradient",
        "gradient.cu",
        "pixel_offset<true>(pixel, lane / 8 % 2)",
        "pixel_offset<true>(pixel, lane / 16)",
        "wrong",
    ),
    Bug("swapped-shells", "gradient.cu", "b[2 * i], b[2 * i + 1]);", "b[2 * i + 1], b[2 * i]);", "wrong"),
    Bug(
        "gradient-edge",
        "gradient.cu",
        "+ at.residue[axis] < p.out_size[axis]",
        "+ at.residue[axis] <= p.out_size[axis]",
        "wrong",
    ),
    Bug("depthwise-wait", "depthwise.cu", "wait_copies<0>();\n    __syncthreads();", "__syncthreads();", "under way"),
    Bug("depthwise-sums", "depthwise.cu", "__syncthreads();  // all warps' sums are there", "", "race"),
]

# Arguments: source and folder of each variant.  What its kernels lead to is in the file `said` in its folder.
VARIANTS_SCRIPT = """
import os
import sys
import traceback
from functools import partial
import torch
from test_cuda import TOLERANCE, Case, engine_module, problem_module
from test_engines import largest_errors, outputs_of

def verdict(source):
    case = Case("bug", (9, 20), (72, 130), batch=2, k=9, layout="channels_last", options={"padding": 4})
    names = ["y"]
    if source == "gradient.cu":
        names = ["grad_w", "grad_p", "grad_bias"]
    elif source == "depthwise.cu":
        names = ["y", "grad_x", "grad_w"]
        case = Case("bug", (25, 20), (40, 40), k=9, layout="channels_last", options={"padding": 4, "groups": 40})
    c, reason = engine_module._kernels()
    assert c is not None, reason
    real = {name: getattr(c, name) for name in dir(c) if name.endswith("Plan")}
    outputs = outputs_of if len(names) > 1 else lambda case, tensors, engine: {"y": case(tensors, engine)}
    expected = outputs(case, case.tensors(torch.float64), "reference")
    for shared in (163, 99):
        for name in real:
            setattr(c, name, partial(real[name], card=(shared * 1024, 1)))
        problem_module._problems.clear()  # planned anew
        found = outputs(case, case.tensors(torch.bfloat16), "cuda")
        errors = largest_errors(found, {name: expected[name] for name in names})
        if not max(errors.values()) < TOLERANCE["bfloat16"]:
            return "wrong numbers"
    return "right"

running = 0
for source, folder in zip(sys.argv[1::2], sys.argv[2::2]):
    if running == 2:
        os.wait()
        running -= 1
    if os.fork() == 0:  # torch is imported once
        os.environ["RADCONV_EMULATE_CUDA"] = folder
        os.dup2(os.open(folder + "/said", os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(1, 2)
        try:
            print(verdict(source), flush=True)
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    running += 1
for _ in range(running):
    os.wait()
"""


def run_script(script: str, *arguments: str, **variables: str) -> str:
    """What a process of its own says: its output, or the last line of its error."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "RADCONV_EMULATION_RACES": "1", **variables},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.stdout.strip() if done.returncode == 0 else done.stderr.strip()


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module for each bug."""
    folder = tmp_path_factory.mktemp("variants")
    sources = []
    for bug in BUGS:
        copy = folder / "sources" / bug.id
        shutil.copytree(ROOT / "csrc", copy)
        path = copy / "cuda" / bug.file
        text = path.read_text()
        assert text.count(bug.before) == 1, bug
        path.write_text(text.replace(bug.before, bug.after))
        sources.append((bug.source, copy))
    build(folder, folder / "build", ("variants",), ("9x1",), sources)
    return folder


def test_planted_bugs_are_caught(variants: Path) -> None:
    arguments = [argument for bug in BUGS for argument in (bug.source, str(variants / bug.id))]
    assert run_script(VARIANTS_SCRIPT, *arguments, OMP_NUM_THREADS="1") == ""
    found = {bug.id: (variants / bug.id / "said").read_text().strip().rpartition("\n")[2] for bug in BUGS}
    assert {bug.id: found[bug.id] for bug in BUGS if bug.shows not in found[bug.id]} == {}


SANITIZED_SCRIPT = """
import torch
from test_cuda import BY_ID, agree
plain = ("width-7", "channels-17-23", "stride-3", "sliced", "channels-last-stride", "circular-1", "k-6", "volume-tiles")
for id in (*plain, "groups-3", "depthwise-banded", "depthwise-3d"):
    for dtype in ("float16", "tf32"):
        agree(BY_ID[id], dtype)
print("right")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="preloads AddressSanitizer")
def test_kernels_stay_within_their_tensors(tmp_path: Path) -> None:
    """With AddressSanitizer under torch's allocations too; and it sees a halo that is one pixel too wide."""
    copy = tmp_path / "sources" / "wide"
    shutil.copytree(ROOT / "csrc", copy)
    path = copy / "cuda" / "halo.cuh"
    path.write_text(path.read_text().replace("input >= 0 && input < size", "input >= 0 && input <= size"))
    targets, sizes = ("emulated", "variants", "selftest"), ("5x1", "3x3", "0x0")
    build(tmp_path, tmp_path / "build", targets, sizes, [("conv.cu", copy)], sanitize=True)
    library = subprocess.run(
        [os.environ.get("CXX", "c++"), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    settings = {"LD_PRELOAD": library.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0", "RADCONV_EMULATION_RACES": "0"}
    said = run_script(SANITIZED_SCRIPT, RADCONV_EMULATE_CUDA=str(tmp_path), **settings)
    assert said == "right"
    said = run_script(SANITIZED_SCRIPT, RADCONV_EMULATE_CUDA=str(tmp_path / "wide"), **settings)
    assert "AddressSanitizer: heap-buffer-overflow" in said
    done = subprocess.run([tmp_path / "build" / "selftest"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
