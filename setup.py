"""Builds the native core: decides what can be built here, drives CMake, records the outcome in radconv_ext/_build.json.

The static metadata is in pyproject.toml. Environment variables:

    CXX                  C++ compiler; default: the first of c++, g++, clang++ on PATH. None: a pure-Python install.
    RADCONV_CUDA         auto (default): CUDA part where a working nvcc is found; on: insist; off: never.
    RADCONV_CUDA_ARCHS   CUDA targets in CMake's form, such as "80-real;90"; default: this machine's card, else
                         sm_80, sm_90 and PTX for newer cards.
    CUDACXX, CUDA_HOME,  where nvcc is looked for, besides PATH.
    CUDA_PATH

A missing compiler is on record and in `radconv_ext.build_info`; a compiler that fails on our sources is an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext as _build_ext
from setuptools.command.build_py import build_py as _build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = "radconv_ext"
MODULE = f"{PACKAGE}._C"
CUDA_MODES = ("auto", "on", "off")
CXX_NAMES = ("c++", "g++", "clang++")
DEFAULT_ARCHITECTURES = ["80-real", "90"]
CMAKE_MINIMUM = (3, 24)
NVCC_PLACES = "looked for $CUDACXX, nvcc on PATH, $CUDA_HOME/bin, $CUDA_PATH/bin"

PROBE = """
#include <cuda_runtime_api.h>
#include <vector>
__global__ void probe(int* out) { *out = 1; }
int devices() {
  std::vector<int> count(1);
  probe<<<1, 1>>>(nullptr);
  return cudaGetDeviceCount(count.data()) == cudaSuccess ? count[0] : 0;
}
"""


@dataclass(frozen=True)
class Plan:
    """What to build, as far as that is known without running a compiler."""

    cuda_mode: str
    cxx: tuple[str, ...] | None  # compiler command; None: pure Python
    cxx_reason: str | None
    nvcc: str | None
    cuda_reason: str | None
    architectures: tuple[str, ...] | None  # RADCONV_CUDA_ARCHS, None when unset


def fail(sentence: str) -> SystemExit:
    """The exception that ends the build with one sentence and no traceback."""
    return SystemExit(f"{PACKAGE}: {sentence}")


def find_cxx(env: Mapping[str, str]) -> tuple[tuple[str, ...] | None, str | None]:
    """The C++ compiler's command, or None and why not."""
    path = env.get("PATH", "")
    words = shlex.split(env.get("CXX", ""))
    if words:
        found = shutil.which(words[0], path=path)
        if found is None:
            return None, f"no C++ compiler was found ($CXX is {words[0]!r}, which does not exist)"
        return (found, *words[1:]), None
    for name in CXX_NAMES:
        found = shutil.which(name, path=path)
        if found:
            return (found,), None
    return None, f"no C++ compiler was found (looked for $CXX, {', '.join(CXX_NAMES)})"


def find_nvcc(env: Mapping[str, str]) -> str | None:
    path = env.get("PATH", "")
    homes = [str(Path(env[name], "bin", "nvcc")) for name in ("CUDA_HOME", "CUDA_PATH") if env.get(name)]
    for candidate in [env.get("CUDACXX", ""), "nvcc", *homes]:
        found = shutil.which(candidate, path=path) if candidate else None
        if found:
            return found
    return None


def parse_architectures(text: str) -> tuple[str, ...] | None:
    words = re.split(r"[;,\s]+", text.strip()) if text.strip() else []
    for word in words:
        if not re.fullmatch(r"\d{2,3}[af]?(-real|-virtual)?", word):
            raise fail(f'RADCONV_CUDA_ARCHS: expected targets such as "80-real;90", got {word!r}.')
    return tuple(words) or None


def decide(env: Mapping[str, str]) -> Plan:
    """The plan for this environment; SystemExit with one sentence where what was asked for can't be had."""
    mode = env.get("RADCONV_CUDA", "") or "auto"
    if mode not in CUDA_MODES:
        raise fail(f"RADCONV_CUDA: expected one of {', '.join(CUDA_MODES)}, got {mode!r}.")
    architectures = parse_architectures(env.get("RADCONV_CUDA_ARCHS", ""))
    cxx, cxx_reason = find_cxx(env)
    nvcc = None if mode == "off" else find_nvcc(env)
    cuda_reason = None
    if mode == "off":
        cuda_reason = "switched off by RADCONV_CUDA=off"
    elif nvcc is None:
        cuda_reason = f"no CUDA compiler was found ({NVCC_PLACES})"
    elif cxx is None:
        cuda_reason = cxx_reason
    if mode == "on" and cuda_reason is not None:
        raise fail(f"RADCONV_CUDA=on, but {cuda_reason}.")
    return Plan(mode, cxx, cxx_reason, nvcc, cuda_reason, architectures)


# ---- questions to the compilers -------------------------------------------------------------------------------------


def output_of(*command: str, timeout: float = 30) -> str:
    """What the command prints, or "" when it can't be run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def nvcc_version(nvcc: str) -> str | None:
    match = re.search(r"release (\d+\.\d+)", output_of(nvcc, "--version"))
    return match.group(1) if match else None


def default_architectures(nvcc: str) -> list[str]:
    """This machine's cards, where nvidia-smi shows some and nvcc knows all of them; else DEFAULT_ARCHITECTURES."""
    shown = output_of("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    cards = {line.strip().replace(".", "") for line in shown.splitlines() if re.fullmatch(r"\d+\.\d", line.strip())}
    known = output_of(nvcc, "--list-gpu-code").split()
    if cards and all(f"sm_{card}" in known for card in cards):
        return sorted(cards, key=int)
    return list(DEFAULT_ARCHITECTURES)


def gencode(architecture: str) -> str:
    number, _, kind = architecture.partition("-")
    code = {"real": f"sm_{number}", "virtual": f"compute_{number}", "": f"[compute_{number},sm_{number}]"}[kind]
    return f"arch=compute_{number},code={code}"


def host_compiler(cxx: tuple[str, ...]) -> str:
    """The compiler itself in commands such as `ccache g++ -m64`: nvcc takes one program."""
    return next(word for word in reversed(cxx) if not word.startswith("-"))


def why_not_nvcc(nvcc: str, host: str, architectures: list[str]) -> str | None:
    """None when nvcc compiles and links a small kernel for these targets, else the reason."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cu")
        source.write_text(PROBE)
        targets = [word for architecture in architectures for word in ("-gencode", gencode(architecture))]
        command = [nvcc, "-std=c++17", "-ccbin", host, "-cudart", "static", *targets, "-shared", "-Xcompiler", "-fPIC"]
        try:
            done = subprocess.run(
                [*command, "-o", str(Path(folder, "probe.so")), str(source)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=300,
            )
        except (OSError, subprocess.SubprocessError) as error:
            return f"{nvcc} can't be run: {error}"
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"error|fatal|not found", line, re.IGNORECASE)]
    said = (telling or lines[-1:] or [f"exit status {done.returncode}"])[0]
    return f"{nvcc} can't compile a test kernel for {';'.join(architectures)}: {said[:300].rstrip('.')}"


# ---- the build ------------------------------------------------------------------------------------------------------


def tool_candidates(name: str) -> Iterator[Path]:
    """Where a build tool may lie: its Python distribution, this Python's scripts, PATH."""
    try:
        module = __import__(name)
        folder = getattr(module, f"{name.upper()}_BIN_DIR", None) or getattr(module, "BIN_DIR", None)
        if folder:
            yield Path(folder, name)
    except ImportError:
        pass
    yield Path(sysconfig.get_path("scripts"), name)
    found = shutil.which(name)
    if found:
        yield Path(found)


def find_tool(name: str, minimum: tuple[int, int] = (0, 0)) -> str:
    seen = "it was not found"
    for tool in tool_candidates(name):
        match = re.search(r"(\d+)\.(\d+)", output_of(str(tool), "--version"))
        if match and (int(match.group(1)), int(match.group(2))) >= minimum:
            return str(tool)
        if match:
            seen = f"{tool} is {match.group(0)}"
    needed = f"{name} {minimum[0]}.{minimum[1]} or newer" if any(minimum) else name
    raise fail(f"building needs {needed}, but {seen}.")


def find_pybind11() -> str:
    try:
        import pybind11
    except ImportError:
        raise fail("building needs pybind11 2.13 or newer, but it is not installed.") from None
    return pybind11.get_cmake_dir()


def build_native(plan: Plan, destination: Path, version: str) -> dict[str, object]:
    """Compiles the module, puts it at `destination` and returns the record."""
    assert plan.cxx is not None
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").exists():
        raise fail(f"building needs Python's headers, but there is no Python.h in {include}.")
    cmake, ninja, pybind11_dir = find_tool("cmake", CMAKE_MINIMUM), find_tool("ninja"), find_pybind11()

    cuda_reason, architectures, host = plan.cuda_reason, list(plan.architectures or []), host_compiler(plan.cxx)
    nvcc = plan.nvcc if cuda_reason is None else None
    if nvcc:
        architectures = architectures or default_architectures(nvcc)
        host = os.environ.get("CUDAHOSTCXX") or os.environ.get("NVCC_CCBIN") or host
        cuda_reason = why_not_nvcc(nvcc, host, architectures)
        if cuda_reason is not None:
            if plan.cuda_mode == "on":
                raise fail(f"RADCONV_CUDA=on, but {cuda_reason}.")
            nvcc = None
    if cuda_reason is not None:
        print(f"{PACKAGE}: building without the CUDA part: {cuda_reason}.", flush=True)

    # CMake keeps the compilers of its first run, and its cache breaks when the tree moves: one folder for each.
    identity = [str(ROOT), sys.executable, sysconfig.get_config_var("EXT_SUFFIX"), plan.cxx, nvcc, architectures, host]
    compilers = [output_of(*command, "--version") for command in (plan.cxx, *([(nvcc,)] if nvcc else []))]
    key = hashlib.sha256(json.dumps([identity, compilers]).encode()).hexdigest()[:12]
    folder = ROOT / "build" / f"native-{key}"
    output = folder / "module"
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_MAKE_PROGRAM": ninja,
        "CMAKE_CXX_COMPILER": ";".join(plan.cxx),
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11_dir,
        "RADCONV_OUTPUT_DIR": str(output),
        "RADCONV_CUDA": "ON" if nvcc else "OFF",
    }
    if nvcc:
        options |= {
            "CMAKE_CUDA_COMPILER": nvcc,
            "CMAKE_CUDA_HOST_COMPILER": host,
            "CMAKE_CUDA_ARCHITECTURES": ";".join(architectures),
        }
    configure = [cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"]
    configure += [f"-D{name}={value}" for name, value in options.items()]
    for step, command in (("configuring", configure), ("compiling", [cmake, "--build", str(folder)])):
        status = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
        if status != 0:
            raise fail(f"{step} the native library failed with status {status}: the compiler's messages are above.")
    built = json.loads((folder / "built.json").read_text())

    (library,) = output.glob("_C*")
    destination.parent.mkdir(parents=True, exist_ok=True)
    fresh = destination.with_name(destination.name + ".new")
    shutil.copy2(library, fresh)
    os.replace(fresh, destination)  # a running process keeps the old file: writing into it would crash that process
    native = {"built": True, "compiler": built["compiler"], "reason": None, "isas": built["isas"]}
    cuda = {"built": False, "nvcc": None, "architectures": [], "reason": cuda_reason}
    if nvcc:
        cuda = {"built": True, "nvcc": nvcc_version(nvcc), "architectures": architectures, "reason": None}
    return {"version": version, "native": native, "cuda": cuda}


def pure_record(plan: Plan, version: str) -> dict[str, object]:
    return {
        "version": version,
        "native": {"built": False, "compiler": None, "reason": plan.cxx_reason, "isas": []},
        "cuda": {"built": False, "nvcc": None, "architectures": [], "reason": plan.cuda_reason},
    }


def write_record(folder: Path, record: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_build.json").write_text(json.dumps(record, indent=2) + "\n")


class build_py(_build_py):
    def run(self) -> None:
        folder = ROOT / PACKAGE if self.editable_mode else Path(self.build_lib, PACKAGE)
        if not self.editable_mode:
            shutil.rmtree(folder, ignore_errors=True)  # else files deleted since the last build are packed again
        super().run()
        plan = decide(os.environ)
        if plan.cxx is None:
            print(f"{PACKAGE}: installing without the native library: {plan.cxx_reason}.", flush=True)
            if self.editable_mode:  # a library from an earlier build would contradict the record
                (folder / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").unlink(missing_ok=True)
            write_record(folder, pure_record(plan, self.distribution.get_version()))


class build_ext(_build_ext):
    def run(self) -> None:
        plan = decide(os.environ)
        if plan.cxx is None:
            return
        destination = Path(self.get_ext_fullpath(MODULE)).resolve()
        write_record(destination.parent, build_native(plan, destination, self.distribution.get_version()))


def main() -> None:
    plan = decide(os.environ)
    triton = [f"{PACKAGE}.{name}" for name in find_packages(include=["triton_kernels", "triton_kernels.*"])]
    setup(
        packages=[*find_packages(include=[PACKAGE, f"{PACKAGE}.*"]), *triton],
        package_dir={f"{PACKAGE}.triton_kernels": "triton_kernels"},
        package_data={PACKAGE: ["py.typed"]},
        include_package_data=False,
        ext_modules=[Extension(MODULE, [])] if plan.cxx else [],
        cmdclass={"build_py": build_py, "build_ext": build_ext},
    )


if __name__ == "__main__":
    main()
