"""Benchmark results as rows: one flat dictionary a measurement, times in seconds.

Three forms of file are read: the JSON of `pytest benchmarks --benchmark-json=out.json`; its condensed form, which is
kept in results/ and has one benchmark a line, machine and ceilings said once per device; and `out.json.part`, one
benchmark a line, which an interrupted run leaves.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .problems import MODES

Row = dict[str, Any]
Key = tuple[str, str, str, str]  # device, problem, mode, peer

DENSE = "torch_conv"
BASELINES = {
    "module": "gmr_conv2d",
    "network": "conv_3x3_resnet",
}  # what the suite's peers are compared with, else DENSE
# Ours that are made for speed, the default first; and ours that are dense convolutions.
ENGINES = {"cpu": ("radconv_cpu",), "cuda": ("radconv_cuda", "radconv_triton")}
DENSE_FORMS = ("radconv_reference", "radconv_folded", "radconv_resnet_folded")

STATS = ("median", "q1", "q3", "min", "max", "rounds")
SHARED = ("machine", "ceilings")  # said once per device in the condensed form
REQUIRED = ("peer", "problem", "suite", "mode", "device")


class ResultsError(ValueError):
    """Results that can't be used; the message is one sentence."""


def is_ours(peer: str) -> bool:
    return peer.startswith("radconv")


def is_one_clock(row: Row, other: Row) -> bool:
    """Whether their times may be compared: graph replays and eager calls may not."""
    return row.get("clock") == other.get("clock")


def baseline(row: Row) -> str:
    return BASELINES.get(row["suite"], DENSE)


def key(row: Row) -> Key:
    return row["device"], row["problem"], row["mode"], row["peer"]


# ---- reading ---------------------------------------------------------------------------------------------------------


def _flat(benchmark: Any, document: Row, where: str) -> Row:
    """One benchmark as a row; machine and ceilings from the document's head where it doesn't have its own."""
    if not isinstance(benchmark, dict) or not {"stats", "extra_info"} <= benchmark.keys():
        raise ResultsError(f"{where}: expected a benchmark with stats and extra_info, got {str(benchmark)[:60]!r}.")
    extra, stats = benchmark["extra_info"], benchmark["stats"]
    lacking = [name for name in REQUIRED if name not in extra] + [name for name in STATS if name not in stats]
    if lacking:
        raise ResultsError(f"{where}: expected {', '.join(lacking)} in extra_info or stats, got none.")
    head = document.get("machine_info", {}).get(extra["device"], {})
    shared = {name: head.get(name) for name in SHARED}
    if extra.get("machine", shared["machine"]) is None:
        raise ResultsError(f"{where}: expected the machine in extra_info or machine_info, got neither.")
    row = {"group": benchmark.get("group"), "name": benchmark.get("name"), "datetime": document.get("datetime")}
    return row | {name: stats[name] for name in STATS} | shared | extra


def _parse(path: Path, text: str) -> list[Row]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ResultsError(f"{path}: expected JSON, got something else at line {error.lineno}.") from None
    if not isinstance(document, dict) or not isinstance(document.get("benchmarks"), list):
        got = ", ".join(document) if isinstance(document, dict) else type(document).__name__
        raise ResultsError(f"{path}: expected pytest-benchmark's results with a list `benchmarks`, got {got}.")
    found = [_flat(b, document, f"{path}, benchmark {i}") for i, b in enumerate(document["benchmarks"])]
    twice = [names for names, n in Counter(map(key, found)).items() if n > 1]
    if twice:
        raise ResultsError(f"{path}: expected device, problem, mode and peer once, got {' '.join(twice[0])} again.")
    return found


def _parse_lines(path: Path, text: str) -> list[Row]:
    *lines, last = text.split("\n")  # the last line is empty, or cut off
    found = []
    for number, line in enumerate(lines, 1):
        try:
            benchmark = json.loads(line)
        except json.JSONDecodeError:
            raise ResultsError(f"{path}: expected a benchmark as JSON in line {number}, got {line[:60]!r}.") from None
        found.append(_flat(benchmark, {}, f"{path}, line {number}"))
    try:
        return [*found, _flat(json.loads(last), {}, f"{path}, line {len(lines) + 1}")]
    except json.JSONDecodeError:
        return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path}: expected a readable text file, got: {error}.") from None


def load(*paths: str | Path) -> list[Row]:
    """The rows of all files; one of a later file replaces an earlier one of the same key."""
    found: dict[Key, Row] = {}
    for path in map(Path, paths):
        for row in (_parse_lines if path.suffix == ".part" else _parse)(path, _read(path)):
            found[key(row)] = row
    return list(found.values())


def absent(*paths: str | Path) -> list[Row]:
    """Why figures are missing, from files that `load` takes: device, peer, reason, and the count of them."""
    whole = [path for path in map(Path, paths) if path.suffix != ".part"]
    return [reason for path in whole for reason in json.loads(_read(path)).get("absent", [])]


# ---- writing ---------------------------------------------------------------------------------------------------------


def rounded(value: Any, digits: int = 5) -> Any:
    """The same with every float, at any depth, rounded to significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {name: rounded(item, digits) for name, item in value.items()}
    return [rounded(item, digits) for item in value] if isinstance(value, list) else value


def write(path: Path, text: str) -> None:
    """All of the file or none of it."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="utf-8", delete=False) as file:
        try:
            file.write(text)
            file.close()
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _benchmark(row: Row, head: Row) -> Row:
    """What `_flat` makes a row of; without what the head says."""
    said = {"group", "name", "datetime", *STATS} | {name for name in SHARED if row.get(name) == head[name]}
    extra = {name: value for name, value in row.items() if name not in said}
    stats = {name: row[name] for name in STATS}
    return {"group": row["group"], "name": row["name"], "stats": stats, "extra_info": extra}


def condense(paths: Sequence[str | Path], out: str | Path) -> None:
    """Writes the condensed form of all files, one benchmark a line."""
    found = load(*paths)
    heads: dict[str, Row] = {}
    for row in found:
        heads.setdefault(row["device"], {name: row.get(name) for name in SHARED})
    benchmarks = [rounded(_benchmark(row, heads[row["device"]])) for row in found]
    latest = max((row["datetime"] for row in found if row["datetime"]), default=None)
    head = f'"machine_info": {json.dumps(rounded(heads), indent=1)},\n"datetime": {json.dumps(latest)},\n'
    head += f'"absent": [\n{_lines(absent(*paths))}\n]'
    write(Path(out), f'{{{head},\n"benchmarks": [\n{_lines(benchmarks)}\n]}}\n')


def _lines(items: Sequence[Any]) -> str:
    return ",\n".join(map(json.dumps, items))


# ---- looking up ------------------------------------------------------------------------------------------------------


def in_order(names: Iterable[str], order: Iterable[str]) -> list[str]:
    """Names without repetition: those of `order` first, as there, then the others as they come."""
    there = dict.fromkeys(names)
    return [name for name in order if name in there] + [name for name in there if name not in set(order)]


class Results:
    """Rows, and how they are looked up."""

    def __init__(self, found: Iterable[Row]) -> None:
        self.rows = list(found)
        self.by_key = {key(row): row for row in self.rows}

    def select(self, **fields: Any) -> Results:
        """The rows with these values."""
        return Results(row for row in self.rows if all(row.get(name) == value for name, value in fields.items()))

    def values(self, field: str) -> list[Any]:
        """The different values of a field, as they come."""
        return list(dict.fromkeys(row[field] for row in self.rows))

    def peers(self) -> list[str]:
        """Ours first, then the dense convolution, then the others as they come."""
        return sorted(self.values("peer"), key=lambda peer: (not is_ours(peer), peer != DENSE))

    def modes(self) -> list[str]:
        return in_order(self.values("mode"), MODES)

    def suites(self) -> list[str]:
        return self.values("suite")

    def get(self, device: str, problem: str, mode: str, peer: str) -> Row | None:
        return self.by_key.get((device, problem, mode, peer))

    def dense(self, row: Row) -> Row | None:
        """What the row is compared with: the same problem and mode by the suite's baseline."""
        return self.get(row["device"], row["problem"], row["mode"], baseline(row))

    def speedup(self, row: Row) -> float | None:
        """Time of the baseline over time of the row."""
        dense = self.dense(row)
        if dense is None:
            return None
        if is_one_clock(row, dense):
            return dense["median"] / row["median"]
        known = row.get("eager") and dense.get("eager")  # one of them could not be replayed
        return dense["eager"] / row["eager"] if known else None

    def is_slower(self, row: Row) -> bool:
        """Whether one of ours takes longer than its baseline."""
        ratio = self.speedup(row)
        return is_ours(row["peer"]) and ratio is not None and ratio < 1

    def losing(self) -> list[Row]:
        """Ours that take longer than their baseline, the worst first."""
        return sorted(filter(self.is_slower, self.rows), key=lambda row: self.speedup(row) or math.inf)

    def usual(self, *fields: str) -> Results:
        """The problems that agree in the most common values of these fields: what can stand on one curve.

        The dense convolution's rows decide where there are any: other peers may have other channels.
        """
        form = lambda row: tuple(str(row.get(field)) for field in fields)
        deciding = self.select(peer=DENSE).rows or self.rows
        common = [form for form, _ in Counter(map(form, deciding)).most_common(1)]
        problems = {row["problem"] for row in deciding if form(row) in common}
        return Results(row for row in self.rows if row["problem"] in problems)
