"""Command line: `python -m radconv_ext info` and `python -m radconv_ext demo`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import build_info, demo
from .build_info import native
from .engines import ENGINES

__all__ = ["main"]


def _state(reason: str | None, title: str) -> str:
    """A part's state from its reason sentence, `"<title>: <why>"` or None."""
    return "available" if reason is None else reason.removeprefix(f"{title}: ")


def _print_rows(rows: Sequence[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")


def _info() -> int:
    """Versions, build and engines, as plain text: no package but torch is needed."""
    info, module = build_info(), native()
    cuda = info["cuda"]
    rows = [(name, version or "not installed") for name, version in info["versions"].items()]
    rows.append(("compiler", info["native"]["compiler"] or "not recorded"))
    rows.append(("native library", _state(info["native"]["reason"], "native library")))
    if module is not None:
        built = ", ".join(info["native"]["isas"] or module.available_isas())
        rows.append(("instruction set", f"{module.current_isa()} (of {built})"))
    rows.append(("CUDA part", _state(cuda["reason"], "CUDA part")))
    if cuda["built"]:
        rows.append(("CUDA targets", f"{', '.join(cuda['architectures'])}, nvcc {cuda['nvcc']}"))
    _print_rows(rows)
    print()
    states = [(name, engine.why_missing() or "available") for name, engine in ENGINES.items()]
    _print_rows([("engine", "state"), *states])
    return 0


def _demo(out: Path, quick: bool) -> int:
    """The demo, or one sentence on stderr when its extra packages are absent."""
    if (sentence := demo.why_missing()) is not None:
        print(sentence, file=sys.stderr)
        return 1
    from .demo.parts import run_all

    run_all(out, quick)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 when the demo can't run here."""
    parser = argparse.ArgumentParser(prog="python -m radconv_ext", description="Radially symmetric convolution.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, how the native library was built, and which engines can run here")
    show = commands.add_parser("demo", help="figures and tables on real images: rings, rotation error, speed, digits")
    show.add_argument("--out", type=Path, default=Path("demo_output"), help="folder for the figures (%(default)s)")
    show.add_argument("--quick", action="store_true", help="smaller and shorter, to see that everything runs")
    options = parser.parse_args(arguments)
    return _info() if options.command == "info" else _demo(options.out, options.quick)


if __name__ == "__main__":
    sys.exit(main())
