"""What changed between two runs: `python -m benchmarks.compare base.json new.json [--threshold 0.1] [--absolute]`.

Times are compared relative to the dense convolution of the same run, because the speed of machines drifts; `--absolute`
compares seconds. What is slower by more than the threshold and than the spread (the new lower quartile lies above the
old upper one) is a regression where it is ours; peers change with their packages and the machine. Exit status: 1 if
there is a regression, 2 if the files can't be compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from . import markdown
from .rows import Key, Results, ResultsError, Row, baseline, is_one_clock, is_ours, load

EXPECTED_TO_DIFFER = ("commit", "radconv_ext", "sm_clock", "memory_clock")
REGRESSION = "REGRESSION"


@dataclass(frozen=True)
class Time:
    """Seconds, or parts of the baseline's median."""

    q1: float
    median: float
    q3: float


@dataclass(frozen=True)
class Change:
    key: Key
    base: Time
    new: Time

    @property
    def ratio(self) -> float:
        return self.new.median / self.base.median

    def verdict(self, threshold: float) -> str:
        *_, peer = self.key
        if self.ratio > 1 + threshold and self.new.q1 > self.base.q3:
            return REGRESSION if is_ours(peer) else "slower"
        return "faster" if self.ratio < 1 / (1 + threshold) and self.new.q3 < self.base.q1 else ""


def times(results: Results, absolute: bool) -> dict[Key, Time]:
    """By row; relative: without the baselines themselves, and what has none by the same clock."""
    found = {}
    for name, row in results.by_key.items():
        dense = results.dense(row)
        if absolute or (dense and row["peer"] != baseline(row) and is_one_clock(row, dense)):
            unit = dense["median"] if dense and not absolute else 1.0
            found[name] = Time(*(row[quartile] / unit for quartile in ("q1", "median", "q3")))
    return found


def machines(results: Results, device: str) -> dict[str, set[str]]:
    """The values that the rows of a device give for each property of the machine."""
    found: dict[str, set[str]] = {}
    for row in results.select(device=device).rows:
        for name, value in row["machine"].items():
            found.setdefault(name, set()).add(str(value))
    return found


def differences(base: Results, new: Results) -> list[str]:
    """A warning for each device whose machine isn't the same."""
    lines = []
    for device in [d for d in base.values("device") if d in new.values("device")]:
        old, now = machines(base, device), machines(new, device)
        names = [name for name in old | now if old.get(name) != now.get(name) and name not in EXPECTED_TO_DIFFER]
        said = [f"{name} {_values(old.get(name))} / {_values(now.get(name))}" for name in names]
        if said:
            lines.append(f"WARNING: not the same machine ({device}): {'; '.join(said)}")
    return lines


def _values(found: Iterable[str] | None) -> str:
    return ", ".join(sorted(found)) if found else "not said"


def only_in(where: str, here: Iterable[Key], there: Iterable[Key]) -> list[str]:
    names = [" ".join(key) for key in here if key not in set(there)]
    return [f"{len(names)} only in {where}:", *(f"  {name}" for name in names)] if names else []


def table(changes: list[Change], threshold: float, absolute: bool) -> str:
    show = (lambda time: f"{time.median * 1e3:.4g}") if absolute else (lambda time: f"{time.median:.4g}")
    rows = [[*c.key, show(c.base), show(c.new), f"{100 * (c.ratio - 1):+.1f} %", c.verdict(threshold)] for c in changes]
    unit = "ms" if absolute else "time / dense"
    return markdown.table(["device", "problem", "mode", "peer", f"base, {unit}", f"new, {unit}", "change", ""], rows)


def compare(base: list[Row], new: list[Row], threshold: float, absolute: bool) -> tuple[str, int]:
    """What to print, and how many regressions there are."""
    old, now = Results(base), Results(new)
    before, after = times(old, absolute), times(now, absolute)
    both = [key for key in old.by_key if key in now.by_key]
    changes = [
        Change(key, before[key], after[key])
        for key in both
        if key in before and key in after and is_one_clock(old.by_key[key], now.by_key[key])
    ]
    if not changes:
        what = "measurement" if absolute else "measurement with its baseline"
        raise ResultsError(f"expected a {what} in both files, got {len(before)} and {len(after)} and none in common.")
    changes.sort(key=lambda change: change.ratio, reverse=True)
    regressions = sum(change.verdict(threshold) == REGRESSION for change in changes)
    lines = [*differences(old, now), table(changes, threshold, absolute)]
    lines += [*only_in("base", old.by_key, now.by_key), *only_in("new", now.by_key, old.by_key)]
    alone = len(both) - len(changes)
    lines += [f"{alone} in both are baselines, have none, or were timed by another clock."] if alone else []
    limit = f"more than {100 * threshold:g} % slower, and beyond the spread"
    return "\n".join([*lines, f"{regressions} of {len(changes)} are regressions of ours ({limit})."]), regressions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--threshold", type=float, default=0.1, help="the change that counts, as a part (0.1)")
    parser.add_argument("--absolute", action="store_true", help="compare seconds, not parts of the dense convolution's")
    arguments = parser.parse_args()
    try:
        base, new = load(arguments.base), load(arguments.new)
        text, regressions = compare(base, new, arguments.threshold, arguments.absolute)
    except ResultsError as error:
        print(f"benchmarks.compare: {error}", file=sys.stderr)
        sys.exit(2)
    print(text)
    sys.exit(1 if regressions else 0)


if __name__ == "__main__":
    main()
