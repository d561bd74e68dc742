"""Options of the benchmarks, the order of work, progress, and results that are written as they come.

    pytest benchmarks --quick --benchmark-json=out.json     under two minutes on two cores
    pytest benchmarks --benchmark-json=out.json             everything that this machine can run

Two threads, as the figures in README.md were measured; RADCONV_BENCH_THREADS changes that.  What was measured so far is
in out.json.part, one line each, until out.json is complete.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .measure import Bench, Device, Result, extra_info, release
from .peers import PEERS
from .problems import DEVICES, PROBLEMS
from .timing import FULL, QUICK, Limits

torch.set_num_threads(int(os.environ.get("RADCONV_BENCH_THREADS", "2")))

BY_ID = {problem.id: problem for problem in PROBLEMS}
Group = tuple[str, str, str]  # device, problem, mode


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("radconv_ext")
    group.addoption("--quick", action="store_true", help="small problems with every peer, a few rounds")
    group.addoption("--device", choices=DEVICES, help="one device; default: all that are there")
    group.addoption("--seconds", type=float, help="no problem and mode begins later than this after the first")
    group.addoption("--longest-step", type=float, help="leave out what is predicted to take longer, in seconds")


def limits_of(config: pytest.Config, device: str) -> Limits:
    limits = QUICK if config.getoption("quick") else FULL[device]
    longest = config.getoption("longest_step")
    return limits if longest is None else replace(limits, step=longest)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every problem by every peer that is meant for it; what a peer can't do is skipped with its reason."""
    if "peer" not in metafunc.fixturenames:
        return
    quick, device = metafunc.config.getoption("quick"), metafunc.config.getoption("device")
    cases = [
        (where, problem.id, mode, peer.name)
        for where in (DEVICES if device is None else (device,))
        for problem in PROBLEMS
        if where in problem.devices and (problem.quick or not quick)
        for mode in problem.modes
        for peer in PEERS.values()
        if mode in peer.modes and peer.concerns(problem)
    ]
    metafunc.parametrize(("device", "problem", "mode", "peer"), cases, ids=["-".join(case) for case in cases])


def part_of(out: str | os.PathLike[str] | IO[bytes] | None) -> Path | None:
    """Where results go while they come; pytest-benchmark before 5.3 gives an open file."""
    return out and Path(f"{out if isinstance(out, (str, os.PathLike)) else out.name}.part")


class Campaign:
    """Which peers each problem has among the tests that were collected, and what they showed."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.limits = {name: limits_of(config, name) for name in DEVICES}
        self.devices = {name: Device(name) for name in DEVICES}
        self.peers: dict[Group, list[str]] = {}
        self.results: dict[Group, dict[str, Result] | str] = {}
        self.absent: Counter[tuple[str, str, str]] = Counter()  # device, peer, reason
        self.bench: Bench | None = None
        self.started = 0.0
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=Console(stderr=True), auto_refresh=False,
        )  # fmt: skip
        self.part = part_of(config.getoption("benchmark_json", None))

    def begin(self, items: list[pytest.Item]) -> None:
        for item in items:
            group, peer = split(item)
            if group is not None:
                self.peers.setdefault(group, []).append(peer)
        if self.part:
            self.part.unlink(missing_ok=True)
        self.started = time.monotonic()
        self.task = self.progress.add_task("", total=len(self.peers))
        if self.progress.console.is_terminal:
            self.progress.start()

    def show(self, group: Group) -> None:
        """What comes next; pytest captures the tests' output, so this is called between them."""
        done = sum(1 for known in self.peers if known in self.results)
        self.progress.update(self.task, completed=done, description=" ".join(group), refresh=True)
        if not self.progress.console.is_terminal:
            total = len(self.peers)
            left = (time.monotonic() - self.started) / done * (total - done) if done else None
            rest = "" if left is None else f", about {left:.0f} s left"
            self.progress.console.print(f"[{done + 1}/{total}{rest}] {' '.join(group)}", highlight=False, markup=False)

    def why_not(self, group: Group, peer: str) -> str | None:
        name, problem_id, mode = group
        device, problem = self.devices[name], BY_ID[problem_id]
        return (
            device.why_not()
            or device.why_too_long(problem.dense_flops, mode, problem, self.limits[name])
            or PEERS[peer].why_not(problem, name)
            or device.why_too_long(PEERS[peer].flops(problem), mode, problem, self.limits[name])
        )

    def result(self, group: Group, peer: str) -> Result:
        """All peers of a group are measured when the first is asked for; pytest's skip where there is no figure."""
        why = self.why_not(group, peer)
        if group not in self.results:
            self.results[group] = self._measure(group)
        found = self.results[group]
        if why is not None or isinstance(found, str):
            self.absent[group[0], peer, why or str(found)] += 1
            pytest.skip(why or str(found))
        return found[peer]

    def _measure(self, group: Group) -> dict[str, Result] | str:
        seconds = self.config.getoption("seconds")
        if seconds is not None and time.monotonic() - self.started > seconds:
            return f"not begun, {seconds:g} s had passed"
        live = [peer for peer in self.peers[group] if self.why_not(group, peer) is None]
        if not live:
            return {}
        name, problem_id, mode = group
        if self.bench is None or (self.bench.device, self.bench.problem.id) != (name, problem_id):
            self.bench = None
            release()
            self.bench = Bench(BY_ID[problem_id], self.devices[name], self.limits[name])
        try:
            return self.bench.measure(mode, live)
        except Exception as error:  # or every peer's test would measure all of them again
            return dict.fromkeys(live, Result(failure=f"{type(error).__name__} while all were timed: {error}"))

    def info(self, group: Group, peer: str, result: Result) -> dict[str, Any]:
        name, problem_id, mode = group
        return extra_info(peer, BY_ID[problem_id], mode, self.devices[name], result)

    def write(self, row: dict[str, Any]) -> None:
        if self.part:
            with self.part.open("a") as lines:
                lines.write(json.dumps(row) + "\n")


def split(item: pytest.Item) -> tuple[Group | None, str]:
    """Group and peer of a test."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    if "peer" not in params:
        return None, ""
    return (params["device"], params["problem"], params["mode"]), params["peer"]


CAMPAIGN = pytest.StashKey[Campaign]()


def pytest_configure(config: pytest.Config) -> None:
    if not any(argument.startswith("--benchmark-columns") for argument in config.invocation_params.args):
        config.option.benchmark_columns = ["median", "iqr", "rounds"]
    config.stash[CAMPAIGN] = Campaign(config)


def pytest_collection_finish(session: pytest.Session) -> None:
    if not session.config.getoption("collectonly"):
        session.config.stash[CAMPAIGN].begin(session.items)


def pytest_runtest_setup(item: pytest.Item) -> None:
    campaign, (group, _) = item.config.stash[CAMPAIGN], split(item)
    if group is not None and group not in campaign.results:
        with item.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            campaign.show(group)


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """No letter for each test: the progress bar shows where the run is."""
    if report.failed or (report.when != "call" and not report.skipped):
        return None
    return report.outcome, "", report.outcome.upper()


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    """Why figures are missing, and how many."""
    absent = config.stash[CAMPAIGN].absent
    names = ("device", "peer", "reason")
    output_json["absent"] = [dict(zip(names, what, strict=True)) | {"count": n} for what, n in sorted(absent.items())]


def pytest_unconfigure(config: pytest.Config) -> None:
    campaign = config.stash[CAMPAIGN]
    campaign.progress.stop()
    if campaign.part and campaign.part.exists() and campaign.part.with_suffix("").exists():
        campaign.part.unlink()


@pytest.fixture
def campaign(request: pytest.FixtureRequest) -> Campaign:
    return request.config.stash[CAMPAIGN]
