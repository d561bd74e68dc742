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

HERE = Path(__file__).parent
PUBLISHED = HERE / "results" / "resources.json"
README = HERE / "README.md"
MARKS = "<!-- native kernels: python -m benchmarks.resources --publish -->", "<!-- end of native kernels -->"
ENGINES = {"triton": "triton", "cuda": "nvcc"}  # and whose version their rows depend on

# The plan that the kernels were written by, for bfloat16 on an H200: microseconds of k = 5, 9, 11, and issue slots of
# the ring stage at k = 9.
ESTIMATED_RINGS = {5: 28, 9: 77, 11: 110}
ESTIMATED_PRODUCT = {5: 33, 9: 55, 11: 66}
ESTIMATED_SLOTS = {9: 139}


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


def readme_table(rows: list[dict[str, Any]], target: str, dtype: str) -> list[str]:
    rows = [row for row in rows if row["target"] == target and row["kernel"].endswith(dtype) and "bounds" in row]
    estimated = target == "sm_90" and dtype == "bfloat16"
    units = ("issue", "fp32", "integer", "shared", "matrix")
    head = ["kernel", "registers", "spills", "KB", "blocks", "ring slots", "product slots", *units, "predicted, us"]
    if estimated:
        head += ["of dense", "estimated ring stage, product, us"]
    lines = [
        f"{dtype}, {target} ({rows[0]['card']}):",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    for row in rows:
        bounds = [
            f"**{row['bounds'][unit]:.2f}**" if unit == row["bound"] else f"{row['bounds'][unit]:.2f}" for unit in units
        ]
        size = row["kernel"].split()[1]
        k, depth = map(int, size.split("x"))
        cells = [
            f"k={k}" if depth == 1 else f"3D k={k}", row["registers"], row["spills"], f"{row['shared'] / 1024:.0f}",
            row["blocks"], f"{row['ring']['slots']:.0f}", f"{row['product']['slots']:.0f}", *bounds,
            f"{row['predicted_us']:.0f}",
        ]  # fmt: skip
        if estimated:
            share = row.get("predicted_over_dense")
            cells.append("" if share is None else f"{share:.2f}")
            known = depth == 1 and k in ESTIMATED_RINGS
            slots = f" ({ESTIMATED_SLOTS[k]} slots)" if known and k in ESTIMATED_SLOTS else ""
            cells.append(f"{ESTIMATED_RINGS[k]}{slots}, {ESTIMATED_PRODUCT[k]}" if known else "")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def readme_tables(published: dict[str, Any]) -> str:
    """What README.md says between its marks."""
    rows = [row for row in published["rows"] if row["engine"] == "cuda"]
    parts = [
        [f"Compiled by nvcc {published['nvcc']}."],
        readme_table(rows, "sm_90", "bfloat16"),
        readme_table(rows, "sm_90", "tf32"),
        readme_table(rows, "sm_80", "bfloat16"),
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
    text = README.read_text()
    begin, end = text.index(MARKS[0]) + len(MARKS[0]), text.index(MARKS[1])
    README.write_text(f"{text[:begin]}\n\n{readme_tables(new)}\n\n{text[end:]}")


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
            measure, table = (rows_of_cuda, native.table) if engine == "cuda" else (rows_of_triton, triton.table)
            found = measure(arguments.targets, arguments.only)
            if found:
                print(table(found), end="\n\n")
            rows += found
    if arguments.json:
        arguments.json.write_text(json.dumps(document(rows), indent=1) + "\n")
    if arguments.publish:
        publish(rows, engines)


if __name__ == "__main__":
    main()
