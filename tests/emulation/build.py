"""Builds the emulation of the CUDA kernels with CMake: `python tests/emulation/build.py [folder for the module]`.

Without an argument the module goes beside radconv_ext's other one, where RADCONV_EMULATE_CUDA=1 finds it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "radconv_ext"
BUILD = ROOT / "build" / "emulation"


def build(
    output: Path = PACKAGE,
    folder: Path = BUILD,
    targets: Sequence[str] = ("emulated", "selftest"),
    sizes: Sequence[str] = (),
    variants: Sequence[tuple[str, Path]] = (),
    sanitize: bool = False,
) -> None:
    """Configure and build in `folder`.

    Args:
        output: folder for the module `_emulated`; each variant's goes to a folder of its name in it.
        sizes: kernel sizes such as "9x1", "0x0" last; default: all.
        variants: changed copies of csrc, and the source whose kernels are compiled from each, such as "conv.cu".
        sanitize: with AddressSanitizer.

    Raises:
        RuntimeError: with the compiler's messages.
    """
    import pybind11

    scripts = Path(sys.executable).parent
    tools = {name: next((str(p) for p in [scripts / name] if p.exists()), name) for name in ("cmake", "ninja")}
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_MAKE_PROGRAM": tools["ninja"],
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "RADCONV_CUDA": "OFF",
        "RADCONV_EMULATION": "ON",
        "RADCONV_EMULATION_OUTPUT_DIR": str(output),
        "RADCONV_EMULATION_SANITIZE": "ON" if sanitize else "OFF",
        "RADCONV_EMULATION_VARIANTS": ";".join(f"{source}:{folder}" for source, folder in variants),
    }
    if sizes:
        options["RADCONV_CUDA_SIZES"] = ";".join(sizes)
    configure = [tools["cmake"], "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"]
    configure += [f"-D{name}={value}" for name, value in options.items()]
    for command in (configure, [tools["cmake"], "--build", str(folder), "--target", *targets]):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-5000:]}")


if __name__ == "__main__":
    try:
        build(*(Path(argument).resolve() for argument in sys.argv[1:2]))
    except RuntimeError as error:
        sys.exit(str(error))
