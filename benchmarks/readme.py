"""The tables of README.md, made from the results that are kept in results/: `make report`."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import markdown, tables
from .markdown import between, marks
from .problems import MODES
from .rows import DENSE, ENGINES, Results, Row, is_ours, load, write
from .tables import digits, mebibytes, names_machine, ratio, time_ratio

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
COMMAND = "make report"
NOT_YET = "not measured yet"

MAIN_SUITES = {"cpu": ("table-s2", "convnext", "volume"), "cuda": ("table-s2-modern", "table-s2", "convnext", "volume")}
MAIN_MODES = ("forward", "training")
UNITS = {"cpu": ("ms", 1e3), "cuda": ("us", 1e6)}
SIZES = (3, 5, 9)  # of the table of peers
UNMEASURED = [f"table-s2-k{k}" for k in (3, 5, 7, 9, 11)]  # what a table without results names
TRITON_PROBLEMS = (*(f"2d-k{k}" for k in (3, 5, 7, 9, 11)), "depthwise-k7", "3d-k5")
TRITON_LAUNCHES = ("forward", "weight gradient")
TRITON_OPERATIONS = ("FADD", "HGMMA", "LDG", "LOP3")


def results_of(folder: Path, name: str, device: str) -> Results:
    """The rows of one kept file; none where it isn't kept yet."""
    path = folder / name
    return Results(load(path) if path.exists() else []).select(device=device)


def known(cells: list[str]) -> list[str]:
    return [NOT_YET if cell == tables.NOT_MEASURED else cell for cell in cells]


def wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def under(groups: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Heads of groups of columns: the first of each names the group."""
    return [f"{group}: {column}" if i == 0 else column for group in groups for i, column in enumerate(columns)]


# ---- a table each ----------------------------------------------------------------------------------------------------


def best_other(results: Results, problem: str, mode: str) -> Row | None:
    """The fastest of what is neither ours nor the dense convolution."""
    rows = results.select(problem=problem, mode=mode).rows
    others = [row for row in rows if not is_ours(row["peer"]) and row["peer"] != DENSE]
    return max(others, key=lambda row: results.speedup(row) or 0, default=None)


def main_cells(results: Results, device: str, problem: str, mode: str, others: bool) -> list[str]:
    """Ours, dense, dense over ours, and the fastest other peer where there are `others`."""
    scale = UNITS[device][1]
    found = [results.get(device, problem, mode, peer) for peer in (ENGINES[device][0], DENSE)]
    times = [tables.NOT_MEASURED if row is None else digits(row["median"] * scale) for row in found]
    speedup = results.speedup(found[0]) if found[0] else None
    cell = ratio(speedup)
    other = best_other(results, problem, mode)
    best = tables.NOT_MEASURED if other is None else f"{ratio(results.speedup(other))} ({other['peer']})"
    return [*times, f"**{cell}**" if speedup is not None and speedup < 1 else cell, *([best] if others else [])]


def main_table(results: Results, device: str) -> str:
    """Machine, ours against dense, and where ours loses."""
    found = [problem for suite in MAIN_SUITES[device] for problem in results.select(suite=suite).values("problem")]
    others = any(best_other(results, problem, mode) for problem in found for mode in MAIN_MODES)
    lines = []
    for problem in found or UNMEASURED:
        cells = [cell for mode in MAIN_MODES for cell in main_cells(results, device, problem, mode, others)]
        lines.append([problem, *known(cells)])
    unit = UNITS[device][0]
    columns = [f"ours, {unit}", f"dense, {unit}", "dense / ours", *(["dense / the best other"] if others else [])]
    head = ["problem", *under(MAIN_MODES, columns)]
    before, behind = names_machine(results), losing_line(results, device)
    return "\n\n".join([wrapped(before), markdown.table(head, lines), wrapped(behind)])


def losing_line(results: Results, device: str) -> str:
    """Every problem and mode of the results where our default engine is slower than the dense convolution."""
    rows = [row for row in results.losing() if row["peer"] == ENGINES[device][0]]
    if not results.rows:
        return f"Slower than dense: {NOT_YET}."
    names = [f"{row['problem']} {row['mode']} ({ratio(results.speedup(row))})" for row in rows]
    return f"Slower than dense, of all layers measured (dense / ours): {', '.join(names) or 'nothing'}."


def milliseconds(row: Row | None) -> str:
    return tables.NOT_MEASURED if row is None else digits(row["median"] * 1e3)


def mixing_table(results: Sequence[Results]) -> str:
    """Ours over the mixing alone, with each of two instruction sets."""
    problems = tables.of_k(results[0].select(suite="mixing"))
    lines = []
    for k in problems or SIZES:
        cells = []
        for found in results:
            pair = [found.get("cpu", problems.get(k, ""), "forward", peer) for peer in ("radconv_cpu", "mixing_alone")]
            cells += [*map(milliseconds, pair), ratio(pair[0]["median"] / pair[1]["median"] if all(pair) else None)]
        lines.append(known([str(k), *cells]))
    kernels = [found.rows[-1]["machine"]["isa"] if found.rows else NOT_YET for found in results]
    return markdown.table(["k", *under(kernels, ["ours, ms", "1x1 alone, ms", "ours / 1x1"])], lines)


def half_table(results: Results) -> str:
    """bfloat16 at Table S2: ours beside ours in float32, and the dense convolution in bfloat16."""
    half, full = (tables.of_k(results.select(suite=suite)) for suite in ("table-s2-bf16", "table-s2"))
    lines = []
    for k in half or SIZES:
        cells = []
        for mode in MAIN_MODES:
            ours, dense = (results.get("cpu", half.get(k, ""), mode, peer) for peer in ("radconv_cpu", DENSE))
            wide = results.get("cpu", full.get(k, ""), mode, "radconv_cpu")
            gain = wide["median"] / ours["median"] if wide and ours else None
            speedup = ours and results.speedup(ours)
            cells += [milliseconds(ours), ratio(gain), milliseconds(dense), ratio(speedup)]
        lines.append(known([str(k), *cells]))
    columns = ["ours, ms", "ours in float32 / ours", "dense, ms", "dense / ours"]
    return markdown.table(["bfloat16, k", *under(MAIN_MODES, columns)], lines)


def peers_table(results: Results, device: str) -> str:
    """Each peer's time over the dense convolution's, at Table S2."""
    problems = tables.of_k(results.select(suite="table-s2"))
    here = Results(row for row in results.rows if row["problem"] in [problems.get(k) for k in SIZES])
    lines = []
    for peer in here.peers() or [*ENGINES[device], DENSE]:
        ratios = [time_ratio(here, device, problems.get(k, ""), mode, peer) for k in SIZES for mode in MODES]
        lines.append([peer, *("–" if value is None and here.rows else ratio(value) for value in ratios)])
    head = ["time / dense", *under([f"k={k}" for k in SIZES], MODES)]
    return markdown.table(head, [known(line) for line in lines])


def microseconds(row: Row | None) -> str:
    return tables.NOT_MEASURED if row is None else f"{row['median'] * 1e6:.1f}"


def pairs_table(results: Results, suite: str, peers: tuple[str, str], head: list[str], unknown: str) -> str:
    """Calls on (1, 1, 8, 8): microseconds of two peers, and the first one's time over the second's."""
    found = results.select(suite=suite)
    lines = []
    for problem in found.values("problem") or [unknown]:
        for mode in found.select(problem=problem).modes() or MAIN_MODES:
            first, second = (found.get("cpu", problem, mode, peer) for peer in peers)
            over = first["median"] / second["median"] if first and second else None
            lines.append(known([f"{problem} {mode}", microseconds(first), microseconds(second), ratio(over)]))
    return markdown.table(["call on (1, 1, 8, 8)", *head], lines)


def overhead_tables(results: Results) -> str:
    head = ["ours, us", "dense, us", "ours / dense"]
    ours = pairs_table(results, "overhead", ("radconv_cpu", DENSE), head, "overhead")
    head = ["GMRConv2d, us", "gmr_conv2d, us", "module / function"]
    module = pairs_table(results, "module", ("GMRConv2d", "gmr_conv2d"), head, "module-call")
    return f"{ours}\n\n{module}"


def memory_table(results: Results) -> str:
    """Of a training step at Table S2."""
    rows = results.select(suite="table-s2", mode="training").rows
    found = Results(row for row in rows if row.get("peak_bytes") is not None)
    peers = found.peers() or ["radconv_cpu", DENSE]
    lines = []
    for problem in found.values("problem") or UNMEASURED:
        peaks = [found.get("cpu", problem, "training", peer) for peer in peers]
        missing = "–" if found.rows else NOT_YET
        lines.append([problem, *(mebibytes(row["peak_bytes"]) if row else missing for row in peaks)])
    return markdown.table(["training step, MiB", *peers], lines)


def networks_table(results: Results) -> str:
    found = tables.networks(results)
    if found is not None:
        return markdown.table(found.head, [known([str(cell) for cell in cells]) for cells in found.rows])
    head = ["network", "layers", "inference, images/s", "training, images/s", "parameters"]
    return markdown.table(
        head, [["resnet18", layers, *[NOT_YET] * 3] for layers in ("radconv_resnet", "conv_3x3_resnet")]
    )


def triton_table(folder: Path) -> str:
    """What the compiler makes of the Triton kernels for sm_90."""
    published = json.loads((folder / "resources.json").read_text())
    rows = [row for row in published["rows"] if (row["engine"], row["target"]) == ("triton", "sm_90")]
    rows = [row for row in rows if row["problem"] in TRITON_PROBLEMS and row["launch"] in TRITON_LAUNCHES]
    lines: list[list[Any]] = []
    for row in rows:
        mix = [f"{row['mix'].get(name, 0):.1f}" for name in TRITON_OPERATIONS]
        lines.append([row["problem"], row["launch"], row["registers"], row["blocks"], f"{row['slots']:.0f}", *mix])
    head = ["problem", "launch", "registers", "blocks", "slots", *TRITON_OPERATIONS]
    return f"Triton {published['triton']}.\n\n{markdown.table(head, lines)}"


# ---- README.md -------------------------------------------------------------------------------------------------------


def blocks(folder: Path) -> dict[str, str]:
    """What stands between each pair of marks."""
    cpu, avx512 = (results_of(folder, name, "cpu") for name in ("cpu.json", "cpu_avx512.json"))
    made: dict[str, Callable[[], str]] = {
        "speed on a CPU": lambda: main_table(cpu, "cpu"),
        "speed with AVX-512": lambda: main_table(avx512, "cpu"),
        "beside the mixing alone": lambda: mixing_table((cpu, avx512)),
        "bfloat16": lambda: half_table(cpu),
        "peers": lambda: peers_table(cpu, "cpu"),
        "overhead": lambda: overhead_tables(cpu),
        "peak memory": lambda: memory_table(cpu),
        "networks": lambda: networks_table(cpu),
        "speed on a GPU": lambda: main_table(results_of(folder, "gpu.json", "cuda"), "cuda"),
        "Triton kernels": lambda: triton_table(folder),
    }
    return {name: make() for name, make in made.items()}


def generate(text: str, folder: Path = RESULTS) -> str:
    """README.md with every table made anew."""
    for name, body in blocks(folder).items():
        text = between(text, marks(name, COMMAND), body)
    return text


def publish() -> None:
    write(README, generate(README.read_text(encoding="utf-8")))
