"""What the GPU kernels compile to, without a GPU: `python -m benchmarks.resources [--help]`.

Prints registers, spills (loads and stores of local memory), shared memory, blocks a multiprocessor, and the instruction
mix as issue slots per pixel and channel: of the Triton kernels, compiled ahead of time for each target
(triton_resources.py), and of the native CUDA kernels in the installed library, with the bound that each unit of a
multiprocessor sets (native_resources.py).

`--publish` also writes results/resources.json and the tables of README.md beside this file; an engine that isn't
measured keeps its rows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from . import native_resources as native
from . import triton_resources as triton
from .markdown import between, marks, table

HERE = Path(__file__).parent
PUBLISHED = HERE / "results" / "resources.json"
README = HERE / "README.md"
MARKS = marks("native kernels", "python -m benchmarks.resources --publish")
KERNELS = {"conv": "Convolution", "gradient": "Weight gradient"}
ENGINES = {"triton": "triton", "cuda": "nvcc"}  # and whose version their rows depend on

# The plan that the kernels were written by, for bfloat16 on an H200: microseconds of k = 5, 9, 11, and issue slots of
# the ring stage at k = 9.
ESTIMATED_RINGS = {5: 28, 9: 77, 11: 110}
ESTIMATED_PRODUCT = {5: 33, 9: 55, 11: 66}
ESTIMATED_SLOTS = {9: 139}
# Of a training step with bfloat16 on an H200: how many times as fast as the dense one it should be.
TARGETS = {3: 1.3, 5: 2, 7: 3, 9: 3.5, 11: 4.5}
UNITS = ("issue", "fp32", "integer", "shared", "matrix")


def rows_of_triton(targets: list[int], only: str) -> list[dict[str, Any]]:
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("benchmarks.resources: TRITON_INTERPRET=1 is set, nothing can be compiled.")
    problems = [problem for problem in triton.PROBLEMS if only in problem.id]
    return triton.measure_all(triton.measure, problems, targets or triton.TARGETS) if problems else []


def rows_of_cuda(targets: list[int], only: str) -> list[dict[str, Any]]:
    path = native.library()
    if path is None:
        print("benchmarks.resources: the native library has no CUDA kernels (python -m radconv_ext info says why).")
        return []
    return native.measure_library(path, targets or None, only)


def document(rows: list[dict[str, Any]]) -> dict[str, Any]:
    from radconv_ext.build_info import build_info

    return {
        "command": "python -m benchmarks.resources",
        "triton": metadata.version("triton"),
        "nvcc": build_info()["cuda"]["nvcc"],
        "rows": rows,
    }


# ---- README.md ------------------------------------------------------------------------------------------------------


def size_of(row: dict[str, Any]) -> tuple[int, int]:
    k, depth = map(int, row["kernel"].split()[1].split("x"))
    return k, depth


def find(rows: list[dict[str, Any]], kernel: str, target: str, dtype: str) -> list[dict[str, Any]]:
    """Rows of one table: with counts, by size."""
    here = [row for row in rows if row["target"] == target and "bounds" in row]
    return [row for row in here if row["kernel"].split()[::2] == [kernel, dtype]]


def titled(title: str, head: list[str], rows: list[list[Any]]) -> list[str]:
    return [f"{title}:", "", table(head, rows)]


def readme_table(rows: list[dict[str, Any]], kernel: str, target: str, dtype: str) -> list[str]:
    rows = find(rows, kernel, target, dtype)
    estimated = (kernel, target, dtype) == ("conv", "sm_90", "bfloat16")
    dense = any("predicted_over_dense" in row for row in rows)
    head = ["kernel", "registers", "spills", "KB", "ring slots", "product slots", *UNITS, "bytes", "predicted, us"]
    head += ["of dense"] * dense + ["estimated ring stage, product, us"] * estimated
    lines = []
    for row in rows:
        bounds = [
            f"**{row['bounds'][unit]:.2f}**" if unit == row["bound"] else f"{row['bounds'][unit]:.2f}" for unit in UNITS
        ]
        k, depth = size_of(row)
        cells = [
            f"k={k}" if depth == 1 else f"3D k={k}", row["registers"], row["spills"], f"{row['shared'] / 1024:.0f}",
            f"{row['ring']['slots']:.0f}", f"{row['product']['slots']:.0f}", *bounds, f"{row['copied_bytes']:.0f}",
            f"{row['predicted_us']:.0f}",
        ]  # fmt: skip
        if dense:
            share = row.get("predicted_over_dense")
            cells.append("" if share is None else f"{share:.2f}")
        if estimated:
            known = depth == 1 and k in ESTIMATED_RINGS
            slots = f" ({ESTIMATED_SLOTS[k]} slots)" if known and k in ESTIMATED_SLOTS else ""
            cells.append(f"{ESTIMATED_RINGS[k]}{slots}, {ESTIMATED_PRODUCT[k]}" if known else "")
        lines.append(cells)
    return titled(f"{KERNELS[kernel]}, {dtype}, {target} ({rows[0]['card']})", head, lines)


def training_table(rows: list[dict[str, Any]]) -> list[str]:
    """Forward and input gradient, one kernel, and weight gradient, against three dense convolutions."""
    both = [find(rows, kernel, "sm_90", "bfloat16") for kernel in KERNELS]
    lines = []
    for conv, gradient in zip(*both, strict=True):
        k, depth = size_of(conv)
        if depth == 1:
            ours = 2 * conv["predicted_us"] + gradient["predicted_us"]
            dense = 3 * conv["dense_us"]
            parts = [f"{row['predicted_us']:.0f}" for row in (conv, conv, gradient)]
            lines.append([f"k={k}", *parts, f"{ours:.0f}", f"{dense:.0f}", f"{dense / ours:.1f}", TARGETS[k]])
    head = ["kernel", "forward, us", "input gradient", "weight gradient", "sum", "dense", "dense / sum", "target"]
    return titled("Training step, bfloat16, sm_90 (H200)", head, lines)


def readme_tables(published: dict[str, Any]) -> str:
    """What README.md says between its marks."""
    rows = [row for row in published["rows"] if row["engine"] == "cuda"]
    parts = [
        [f"Compiled by nvcc {published['nvcc']}."],
        readme_table(rows, "conv", "sm_90", "bfloat16"),
        readme_table(rows, "conv", "sm_90", "tf32"),
        readme_table(rows, "conv", "sm_90", "float32"),
        readme_table(rows, "conv", "sm_80", "bfloat16"),
        readme_table(rows, "gradient", "sm_90", "bfloat16"),
        readme_table(rows, "gradient", "sm_90", "tf32"),
        readme_table(rows, "gradient", "sm_80", "bfloat16"),
        training_table(rows),
    ]
    return "\n\n".join("\n".join(part) for part in parts)


def publish(rows: list[dict[str, Any]], engines: Sequence[str]) -> None:
    new = document(rows)
    if PUBLISHED.exists():
        old = json.loads(PUBLISHED.read_text())
        for engine in ENGINES.keys() - engines:
            new[ENGINES[engine]] = old[ENGINES[engine]]
            new["rows"] = new["rows"] + [row for row in old["rows"] if row["engine"] == engine]
    new["rows"].sort(key=lambda row: list(ENGINES).index(row["engine"]))
    PUBLISHED.write_text(json.dumps(new, indent=1) + "\n")
    README.write_text(between(README.read_text(), MARKS, readme_tables(new)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", type=int, help="compute capabilities, such as 80 90")
    parser.add_argument("--engine", choices=(*ENGINES, "all"), default="all", help="whose kernels (all)")
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--only", default="", help="problems of Triton, kernels of CUDA whose name contains this")
    parser.add_argument(
        "--configurations", action="store_true", help="every row of Triton's configs.py on a small problem instead"
    )
    parser.add_argument("--publish", action="store_true", help="results/resources.json and README.md, too")
    parser.add_argument("--markdown", action="store_true", help="README.md's tables of what is published, and no more")
    parser.add_argument("--library", action="store_true", help="targets of machine code and PTX in it, and no more")
    arguments = parser.parse_args()
    if arguments.library:
        path = native.library()
        print(json.dumps(((), ()) if path is None else native.contents(path)))
        return
    if arguments.markdown:
        print(readme_tables(json.loads(PUBLISHED.read_text())))
        return
    if arguments.publish and (arguments.targets or arguments.only or arguments.configurations):
        parser.error("--publish takes all targets and problems")
    if arguments.configurations:
        rows = triton.measure_all(
            triton.measure_configuration, triton.configurations(), arguments.targets or triton.TARGETS
        )
        print(triton.table(rows))
    else:
        engines = list(ENGINES) if arguments.engine == "all" else [arguments.engine]
        rows = []
        for engine in engines:
            measure, show = (rows_of_cuda, native.table) if engine == "cuda" else (rows_of_triton, triton.table)
            found = measure(arguments.targets, arguments.only)
            if found:
                print(show(found), end="\n\n")
            rows += found
    if arguments.json:
        arguments.json.write_text(json.dumps(document(rows), indent=1) + "\n")
    if arguments.publish:
        publish(rows, engines)


if __name__ == "__main__":
    main()
