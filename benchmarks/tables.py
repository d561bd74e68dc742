"""Tables of results, the same for the page, the Markdown file and README.md; those of one device unless said."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from . import markdown
from .rows import DENSE, DENSE_FORMS, ENGINES, Results, Row, baseline

NOT_MEASURED = "not measured"
K_SUITES = ("table-s2", "table-s2-tf32", "table-s2-modern", "paper-protocol", "quick")  # one shape, growing k

# GMR-Conv paper (arXiv 2504.02819), Table S2: seconds of 1,000 calls, training and inference, on an RTX A5000.
PAPER: dict[str, dict[int, tuple[float, float]]] = {
    DENSE: {3: (0.974, 0.391), 5: (1.524, 0.727), 7: (3.579, 1.418), 9: (5.148, 2.347), 11: (6.887, 3.493)},
    "efficient GMR": {3: (1.194, 0.276), 5: (1.139, 0.270), 7: (1.680, 0.485), 9: (2.542, 0.689), 11: (2.869, 0.927)},
    "naive GMR": {3: (1.456, 0.635), 11: (7.162, 3.558)},
    "Symm.-Conv": {3: (1.058, 0.412), 11: (7.258, 3.544)},
    "E(2)-Conv": {3: (20.8, 11.0), 11: (313, 175)},
    "Group-Conv": {3: (24.0, 10.7), 11: (346, 162)},
}
PAPER_MODES = ("training", "inference")
PAPER_PEERS = (  # the paper's name, and who stands beside it here
    ("efficient GMR", "released_gmr"),
    ("naive GMR", "naive_gmr"),
    ("Symm.-Conv", "symm_conv"),
    ("E(2)-Conv", "e2_conv"),
    ("Group-Conv", "group_conv_p4"),
    ("Group-Conv", "group_conv_p4m"),
)


@dataclass(frozen=True)
class Cell:
    text: str
    note: str = ""
    bad: bool = False  # one of ours is slower than its baseline

    def __str__(self) -> str:
        """As Markdown."""
        text = f"**{self.text}**" if self.bad else self.text
        return f"{text} {self.note}".rstrip()


@dataclass(frozen=True)
class Table:
    head: list[str]
    rows: list[list[Cell]]
    caption: str = ""
    closed: bool = False  # opened by a click

    def markdown(self) -> str:
        return "\n\n".join(filter(None, [self.caption, markdown.table(self.head, self.rows)]))


def table(head: list[str], rows: list[list[Any]], caption: str = "", closed: bool = False) -> Table:
    return Table(head, [[c if isinstance(c, Cell) else Cell(str(c)) for c in cells] for cells in rows], caption, closed)


# ---- numbers ---------------------------------------------------------------------------------------------------------


def digits(value: float, count: int = 3) -> str:
    """Three significant digits, without an exponent."""
    decimals = count - 1 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, decimals)}f}"


def duration(seconds: float) -> str:
    unit, scale = next((u, s) for u, s in (("s", 1), ("ms", 1e3), ("us", 1e6)) if seconds * s >= 1 or u == "us")
    return f"{digits(seconds * scale)} {unit}"


def between(low: float, high: float) -> str:
    """Two durations, with the unit once where it is the same."""
    (first, unit), (second, same) = duration(low).split(), duration(high).split()
    return f"{first}{'' if unit == same else f' {unit}'} to {second} {same}"


def mebibytes(count: float | None) -> str:
    return NOT_MEASURED if count is None else f"{count / 2**20:.1f}"


def ratio(value: float | None) -> str:
    return NOT_MEASURED if value is None else digits(value, 2 if value < 10 else 3)


def shape(row: Row) -> str:
    """Input to output channels, k, and what isn't usual; nothing for what isn't one convolution."""
    if row.get("kernel_size") is None:
        return ""
    size = ", ".join(map(str, (row["batch"], row["channels"], *row["size"])))
    usual = {"groups": 1, "layout": "contiguous", "dtype": "float32"}
    extra = [f"groups {row['groups']}"] * (row.get("groups", 1) != usual["groups"])
    extra += [row[name] for name in ("layout", "dtype") if row.get(name, usual[name]) != usual[name]]
    return ", ".join([f"({size}) to {row['outputs']}, k={row['kernel_size']}", *extra])


def names_machine(results: Results) -> str:
    """One line: what it ran on, and with which versions."""
    rows = results.rows
    if not rows:
        return "Not measured yet."
    m = rows[-1]["machine"]
    where = [m["cpu"], f"{m['threads']} threads", m["isa"]] if "cpu" in m else [m["card"], f"driver {m['driver']}"]
    policy = [f"`OMP_WAIT_POLICY={m['omp_wait_policy']}`"] if m.get("omp_wait_policy") else []
    versions = [f"torch {m['torch']}", f"radconv_ext {m['radconv_ext']}", f"Python {m['python']}"]
    commit = [f"commit {m['commit'][:10]}{'+' * m['commit'].endswith('+')}"] if m.get("commit") else []
    return ", ".join(str(part) for part in [*where, *policy, *versions, *commit] if part) + "."


# ---- what was measured, on what --------------------------------------------------------------------------------------


def machine(results: Results) -> list[Table]:
    """Machine and versions, once per different one, then the ceilings."""
    found: list[dict[str, Any]] = []
    ceilings: dict[str, Any] = {}
    for row in results.rows:
        found += [row["machine"]] * (row["machine"] not in found)
        ceilings |= row.get("ceilings") or {}
    names = dict.fromkeys(name for one in found for name in one)
    head = ["", *(f"run {i}" for i in range(1, len(found) + 1))] if len(found) > 1 else ["machine", ""]
    lines = [[name, *(_known(one.get(name)) for one in found)] for name in names]
    return [
        table(head, lines, "Machine and versions"),
        table(["ceiling", ""], _ceilings(ceilings), "Ceilings, measured in the same run"),
    ]


def _known(value: Any) -> str:
    return "not set" if value is None else str(value)


def _ceilings(ceilings: dict[str, Any]) -> list[list[str]]:
    if not ceilings:
        return [["ceilings", NOT_MEASURED]]
    lines = []
    for name, value in ceilings.items():
        for part, rate in value.items() if isinstance(value, dict) else [("", value)]:
            unit = "GB/s" if "bytes" in name else "GFLOP/s" if "flops" in name else "G/s"
            known = NOT_MEASURED if rate is None else f"{digits(rate / 1e9)} {unit}"
            lines.append([f"{name} {part}".replace("_", " ").strip(), known])
    return lines


def agreement(results: Results) -> Table:
    """The worst error of each peer over its bound."""
    lines = []
    for peer in results.peers():
        rows = results.select(peer=peer).rows
        checked = [row for row in rows if row.get("agrees_with_reference")]
        errors = [
            (error / row["error_bounds"][name], error, row["error_bounds"][name], f"{name}, {row['problem']}")
            for row in checked
            for name, error in (row.get("errors") or {}).items()
        ]
        _, *worst = max(errors, default=(0.0, None, None, NOT_MEASURED))
        cells = [f"{value:.1e}" if isinstance(value, float) else value or NOT_MEASURED for value in worst]
        lines.append([peer, f"{len(checked)} of {len(rows)}", *cells])
    return table(["peer", "agree with the reference", "largest error to its bound", "bound", "of, at"], lines)


# ---- a table per suite -----------------------------------------------------------------------------------------------


def time_cell(results: Results, row: Row | None) -> Cell:
    """Median, then the ratio to the baseline and the quartiles."""
    if row is None:
        return Cell("–")
    speedup, eager = results.speedup(row), row.get("eager")
    notes = [f"{ratio(speedup)}x"] if speedup is not None and row["peer"] != baseline(row) else []
    notes += [f"({between(row['q1'], row['q3'])})"]
    notes += [f"eager {duration(eager)}"] if eager else []
    return Cell(duration(row["median"]), " ".join(notes), results.is_slower(row))


def suite(results: Results, name: str) -> list[Table]:
    """A table a mode: problems, and the peers as columns."""
    found = results.select(suite=name)
    return [_suite_mode(found, name, mode) for mode in found.modes()]


def _suite_mode(found: Results, name: str, mode: str) -> Table:
    here = found.select(mode=mode)
    peers = here.peers()
    lines: list[list[Any]] = []
    for problem in here.values("problem"):
        rows = {row["peer"]: row for row in here.select(problem=problem).rows}
        # where peers have other channels than the problem, the baseline has the problem's
        first = rows.get(baseline(here.rows[0])) or next(iter(rows.values()))
        lines.append([Cell(problem, shape(first)), *(time_cell(here, rows.get(peer)) for peer in peers)])
    return table(["problem", *peers], lines, f"{name}, {mode}")


def losing(results: Results) -> list[Table]:
    """Ours that are slower than their baseline, the engines first, then the dense forms of ours."""
    titles = {True: "Our engines", False: "Our dense forms, the reference engine and layers folded for deployment"}
    tables = []
    for fast, title in titles.items():
        lines: list[list[Any]] = []
        for row in results.losing():
            dense = results.dense(row)
            if dense is not None and (row["peer"] not in DENSE_FORMS) == fast:
                within = "yes" if row["q1"] <= dense["q3"] else "no"
                cells = [duration(row["median"]), duration(dense["median"])]
                slow = Cell(ratio(results.speedup(row)), bad=True)
                lines.append([Cell(row["problem"], shape(row)), row["mode"], row["peer"], *cells, slow, within])
        if lines:
            head = ["problem", "mode", "peer", "ours", "dense", "dense / ours", "quartiles overlap"]
            tables.append(table(head, lines, f"{title}: {len(lines)}", closed=not fast))
    return tables


# ---- single questions ------------------------------------------------------------------------------------------------


def of_k(results: Results) -> dict[int, str]:
    """The problem of each k in a suite of one shape: rows of one suite."""
    rows = results.usual("dtype", "layout", "batch", "channels").rows
    return {row["kernel_size"]: row["problem"] for row in sorted(rows, key=lambda row: row["kernel_size"])}


def time_ratio(results: Results, device: str, problem: str, mode: str, peer: str) -> float | None:
    """A peer's time over the baseline's."""
    row = results.get(device, problem, mode, peer)
    speedup = results.speedup(row) if row else None
    return None if speedup is None else 1 / speedup


def paper(results: Results, device: str) -> Table:
    """The paper's Table S2 beside ours, as time over that of torch's dense convolution."""
    protocol = results.select(suite="paper-protocol")
    problems = of_k(protocol if protocol.rows else results.select(suite="table-s2"))
    sizes = list(PAPER[DENSE])
    pairs = [*PAPER_PEERS, *(("", peer) for peer in ENGINES[device])]
    lines = []
    for mode in PAPER_MODES:
        place = PAPER_MODES.index(mode)
        for method, peer in pairs:
            known = PAPER.get(method, {})
            cells: list[Any] = [mode, method or "–", peer]
            for k in sizes:
                here = ratio(time_ratio(results, device, problems.get(k, ""), mode, peer))
                there = f"(paper {ratio(known[k][place] / PAPER[DENSE][k][place])})" if k in known else ""
                cells.append(Cell(here, there))
            lines.append(cells)
    return table(["mode", "in the paper", "here", *(f"k={k}" for k in sizes)], lines)


def memory(results: Results) -> list[Table]:
    """Peak memory, MiB, a table a mode; networks have their own."""
    known = [row for row in results.rows if row.get("peak_bytes") is not None]
    found = Results(row for row in known if row["suite"] != "network")
    tables = []
    for mode in found.modes():
        here = found.select(mode=mode)
        peers = here.peers()
        lines = []
        for problem in here.values("problem"):
            rows = {row["peer"]: row for row in here.select(problem=problem).rows}
            lines.append([problem, *(mebibytes(rows[p]["peak_bytes"]) if p in rows else "–" for p in peers)])
        tables.append(table(["problem", *peers], lines, f"{mode}, MiB", closed=True))
    return tables


def roofline(results: Results) -> Table | None:
    """The floor's parts, and what part of the time they are."""
    engines = [name for names in ENGINES.values() for name in names]
    rows = [row for row in results.rows if row["peer"] in engines and row.get("floor")]
    parts = ("memory", "rings", "product", "total")
    lines = []
    for row in rows:
        floor = [duration(row["floor"][part]) if row["floor"].get(part) else "–" for part in parts]
        share = ratio(row.get("floor_fraction"))
        lines.append([row["problem"], row["mode"], row["peer"], *floor, duration(row["median"]), share])
    head = ["problem", "mode", "peer", *parts, "measured", "floor / measured"]
    return table(head, lines, "The floor's parts", closed=True) if lines else None


def networks(results: Results) -> Table | None:
    """Images per second, peak memory and parameters."""
    found = results.select(suite="network")
    modes: tuple[str, ...] = ("inference", "training")
    lines: list[list[Any]] = []
    for problem in found.values("problem"):
        here = found.select(problem=problem)
        for peer in here.peers():
            rows = {row["mode"]: row for row in here.select(peer=peer).rows}
            cells = [_per_second(results, rows.get(mode)) for mode in modes]
            cells += [Cell(mebibytes(rows[mode].get("peak_bytes")) if mode in rows else "–") for mode in modes]
            count = next((row["parameters"] for row in rows.values() if row.get("parameters")), None)
            lines.append([problem, peer, *cells, NOT_MEASURED if count is None else f"{count:,}"])
    head = ["network", "layers", *(f"{mode}, images/s" for mode in modes), *(f"{mode}, peak MiB" for mode in modes)]
    return table([*head, "parameters"], lines) if lines else None


def _per_second(results: Results, row: Row | None) -> Cell:
    if row is None:
        return Cell("–")
    return Cell(digits(row["batch"] / row["median"]), bad=results.is_slower(row))
