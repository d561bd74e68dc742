"""The benchmarks' own promises: peers compute what they say, disagreement is seen, turns and results are kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.conftest import part_of
from benchmarks.measure import Bench, Device
from benchmarks.peers import PEERS, GroupConv
from benchmarks.problems import MODES, PROBLEMS, NetworkProblem, Problem
from benchmarks.roofline import counts, floor, ring_work
from benchmarks.third_party import Absent, import_e2cnn, reason, released_module
from benchmarks.timing import QUICK, Limits, interleaved, settings
from benchmarks.work import Work, corner, disagreements, recording, step_of

ROOT = Path(__file__).resolve().parents[1]
NAMED = (
    "torch_conv", "naive_gmr", "unfused", "released_gmr", "released_sre", "symm_conv", "e2_conv", "group_conv_p4",
    "group_conv_p4m",
)  # fmt: skip
FLAT = Problem("flat", "test", 5, channels=8, outputs=16, size=(13, 12), peers="all")
DEEP = Problem("deep", "test", 3, channels=3, outputs=4, size=(5, 6, 7), peers="all")
GROUPED = Problem("grouped", "test", 7, channels=6, outputs=6, size=(9, 8), groups=6)
ENTIRE = 1e12  # FLOPs that leave nothing out


def live(problem: Problem) -> list[str]:
    return [name for name, peer in PEERS.items() if peer.concerns(problem) and not peer.why_not(problem, "cpu")]


@pytest.mark.parametrize("problem", [FLAT, DEEP, GROUPED], ids=lambda problem: problem.id)
def test_peers_agree_with_their_definitions(problem: Problem) -> None:
    for name in live(problem):
        peer = PEERS[name]
        work = peer.build(problem, "cpu")
        for mode in peer.modes:
            work.enter(mode)
            errors = peer.errors(work, problem, mode, "cpu", ENTIRE)
            assert all(error < 5e-6 for error in errors.values()), (name, mode, errors)  # worst seen 1.1e-6
            trained = {"output", "gradient of x"} if mode == "training" else {"output"}
            assert errors.keys() >= trained, name


def test_named_peers_are_live() -> None:
    assert set(NAMED) <= set(live(FLAT))
    assert {"radconv_cpu", "radconv_reference", "radconv_folded"} <= set(live(FLAT))


def test_the_mixing_alone_is_a_convolution_of_ring_maps() -> None:
    peer, rings = PEERS["mixing_alone"], FLAT.channels * FLAT.rings
    work = peer.build(FLAT, "cpu")
    assert (work.channels, tuple(work.parameters["w"].shape)) == (rings, (FLAT.outputs, rings, 1, 1))
    assert peer.errors(work, FLAT, "training", "cpu", ENTIRE).keys() == {"output", "gradient of x", "gradient of w"}
    assert max(peer.errors(work, FLAT, "training", "cpu", ENTIRE).values()) < 5e-6  # worst seen 3.6e-7
    assert not peer.concerns(FLAT)


def test_ring_weights_are_compared_too() -> None:
    for name in ("radconv_cpu", "naive_gmr", "unfused", "unfused_compiled"):
        work = PEERS[name].build(FLAT, "cpu")
        errors = disagreements(work, FLAT, "training", "cpu", corner(FLAT, FLAT.dense_flops, ENTIRE))
        assert errors.keys() == {"output", "gradient of x", "gradient of w", "gradient of sigma"}


@pytest.mark.parametrize("space, name", [("c8", "e2_conv"), ("p4", "group_conv_p4"), ("p4m", "group_conv_p4m")])
def test_group_convolutions_commute_with_a_quarter_turn(space: str, name: str) -> None:
    peer = PEERS[name]
    assert isinstance(peer, GroupConv)
    layer, of, _ = peer.layer(replace(FLAT, size=(13, 13)), "cpu")
    geometric, element = import_e2cnn()[1].GeometricTensor, {"c8": 2, "p4": 1, "p4m": (0, 1)}[space]
    x = geometric(torch.randn(1, of.size, 13, 13, generator=torch.Generator().manual_seed(0)), of)
    with torch.no_grad():
        a, b = layer(x.transform(element)).tensor, layer(x).transform(element).tensor
    assert float((a - b).abs().max() / b.abs().max()) < 1e-5


def off_by(work: Work, error: float) -> Work:
    """The same with the last output pixel wrong, in the output alone."""

    def call(x: Tensor) -> Tensor:
        y = work.call(x)
        wrong = torch.zeros_like(y)
        wrong[-1, -1, -1, -1] = error
        return y + wrong

    return replace(work, call=call)


def test_disagreement_is_a_failure_and_leaves_the_others() -> None:
    bench = Bench(FLAT, Device("cpu"), QUICK)
    bench.works["torch_conv"] = off_by(PEERS["torch_conv"].build(FLAT, "cpu"), 0.1)
    results = bench.measure("forward", ["torch_conv", "radconv_cpu"])
    assert "disagrees with the definition, relative errors: output" in (results["torch_conv"].failure or "")
    assert not results["torch_conv"].times
    assert results["radconv_cpu"].failure is None
    assert len(results["radconv_cpu"].times) >= QUICK.rounds[0]


def test_a_gradient_that_is_not_finite_is_a_failure() -> None:
    work = PEERS["naive_gmr"].build(FLAT, "cpu")
    with torch.no_grad():
        work.parameters["sigma"][0] = float("nan")
    errors = disagreements(work, FLAT, "training", "cpu", corner(FLAT, FLAT.dense_flops, ENTIRE))
    assert list(errors.values()) == [float("inf")]


def test_a_corner_is_compared_where_the_whole_is_too_much() -> None:
    at = corner(FLAT, FLAT.dense_flops, FLAT.dense_flops / FLAT.pixels * 16)
    assert at == (slice(9, 13), slice(8, 12))
    work = PEERS["radconv_cpu"].build(FLAT, "cpu")
    assert max(disagreements(work, FLAT, "training", "cpu", at).values()) < 5e-6
    assert disagreements(off_by(work, 0.1), FLAT, "forward", "cpu", at)["output"] > 1e-3


def test_networks_agree_with_their_copies_in_float64() -> None:
    problem = NetworkProblem("net", "network", 9, 4, 3, 10, (16, 16), width=8)
    peer = PEERS["radconv_resnet"]
    work = peer.build(problem, "cpu")
    for mode in peer.modes:
        work.enter(mode)
        errors = peer.errors(work, problem, mode, "cpu", ENTIRE)
        assert all(error < problem.bound(quantity) for quantity, error in errors.items()), errors


def test_absent_packages_say_how_to_get_them() -> None:
    with pytest.raises(Absent, match=r"nowhere 1\.0 is not installed: `pip install"):
        released_module("nowhere", "1.0", "nowhere.py")
    assert reason(lambda: released_module("torch", "0.0", "torch/x.py")).startswith("torch: expected version 0.0, ins")


def test_reasons_why_not() -> None:
    why = lambda name, problem, device="cpu": PEERS[name].why_not(problem, device)
    assert why("radconv_cuda", FLAT) == "serves GPUs"
    assert why("radconv_cpu", FLAT, "cuda") == "serves CPUs"
    assert why("e2_conv", DEEP) == "has no 3D form"
    assert why("released_gmr", GROUPED) == "has no form with groups"
    assert why("e2_conv_width", replace(FLAT, channels=9)) == "9 to 16 channels are no whole fields of 8"


# ---- problems --------------------------------------------------------------------------------------------------------


def test_problems_are_different_and_cover_what_is_promised() -> None:
    assert len({p.id for p in PROBLEMS}) == len(PROBLEMS)
    assert all(set(p.modes) <= {*MODES, "recording"} for p in PROBLEMS)
    sizes = lambda ndim: {p.kernel_size for p in PROBLEMS if p.ndim == ndim}
    assert sizes(2) >= {3, 5, 7, 9, 11, 13, 15}
    assert sizes(3) >= {3, 5, 7, 9}
    assert {p.precision for p in PROBLEMS if "cuda" in p.devices} == {"float32", "tf32", "float16", "bfloat16"}
    assert any((p.batch, p.channels, *p.size) == (24, 64, 224, 224) for p in PROBLEMS)
    quick = [p for p in PROBLEMS if p.quick]
    assert any(p.peers == "all" for p in quick)
    for name in ("paper-protocol-k9", "table-s2-k9", "mri-k5", "medmnist-k3", "modelnet-k3"):
        assert name in {p.id for p in PROBLEMS}


def test_operation_counts() -> None:
    assert [ring_work(replace(FLAT, kernel_size=k)).shells for k in (3, 5, 7, 9, 11)] == [3, 5, 8, 13, 16]
    k9 = ring_work(replace(FLAT, kernel_size=9))
    # by hand: 4 pairs in a row, 17 pairs of rows, 22 sums into 13 shells; 5 rings of them
    assert (k9.additions, k9.combination) == (4 + 17 + 22 - 13, 65)
    assert ring_work(replace(DEEP, kernel_size=5)).shells == 7
    moved, operations, product = counts(FLAT, "forward")
    assert moved == 2 * 13 * 12 * (8 + 16) * 4
    assert operations == 2 * 13 * 12 * 8 * (10 + 15)
    assert product == 2 * 2 * 13 * 12 * 16 * 8 * 3
    assert counts(GROUPED, "forward")[2] == 0


def test_floor_is_the_sum_on_a_cpu_and_the_largest_on_a_gpu() -> None:
    rates: dict[str, Any] = {
        "copy_bytes_per_second": 1e9, "fma_per_second": 1e9, "matmul_flops": {"float32": 1e9},
    }  # fmt: skip
    cpu, gpu = (floor(FLAT, "training", device, rates) for device in ("cpu", "cuda"))
    assert cpu is not None
    assert gpu is not None
    assert cpu["total"] == max(cpu["memory"], cpu["rings"] + cpu["product"])
    assert gpu["total"] == max(gpu["memory"], gpu["rings"], gpu["product"])
    assert floor(FLAT, "training", "cpu", rates | {"fma_per_second": None}) is None


# ---- timing ----------------------------------------------------------------------------------------------------------


def test_peers_take_turns_and_slow_ones_fewer() -> None:
    order = []

    def turn(name: str, seconds: float) -> timing.Turn:
        def run(calls: int) -> float:
            order.append((name, calls))
            return seconds

        return run

    limits = Limits(turn=0.01, group=0.3, rounds=(5, 9), step=1.0, reference_flops=1.0)
    first = {"fast": 0.001, "even": 0.002, "slow": 2.0}
    turns = {name: turn(name, seconds) for name, seconds in first.items()}
    times = interleaved(turns | {"broken": turn("broken", 0.001)}, first, limits)
    assert {name: len(found) for name, found in times.items()} == {"fast": 9, "even": 9, "slow": 5}
    assert set(order) == {("fast", 10), ("even", 5), ("slow", 1)}
    assert interleaved({}, {}, limits) == {}
    short = [name for name, _ in order if name != "slow"]
    pairs = set(zip(short[::2], short[1::2], strict=True))
    assert pairs == {("fast", "even"), ("even", "fast")}  # once each in a round, and not always in the same order


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident memory of Linux")
def test_peak_memory_counts_what_a_step_holds_at_once() -> None:
    mebi = 2**20

    def step() -> None:
        first, second = (torch.ones(16 * mebi, dtype=torch.uint8) for _ in range(2))
        del first, second

    step()
    found = timing.peak_bytes(step, "cpu")
    if found is None:
        pytest.skip("the kernel doesn't let a process reset its own high-water mark")
    assert 31 * mebi < found < 36 * mebi


def test_settings_are_the_same_for_all_peers_and_put_back() -> None:
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic
    with settings(replace(FLAT, protocol="paper")):
        assert (cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic) == (False, False, True)
    with settings(replace(FLAT, precision="tf32")):
        assert (cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, cudnn.benchmark) == (True, True, True)
    assert (cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic) == before


def test_training_step_gives_all_gradients() -> None:
    work = PEERS["radconv_cpu"].build(FLAT, "cpu")
    with recording("training"):
        y, *gradients = step_of(work, "training", *FLAT.data(8, 16, "cpu"))()
    assert [tuple(g.shape) for g in gradients] == [(2, 8, 13, 12), (16, 8, 3), (3,)]
    assert y.shape == (2, 16, 13, 12)


def test_inputs_exceed_the_cache_twice() -> None:
    moved = FLAT.pixels * (8 + 16) * 4
    assert timing.input_sets(FLAT, 8, 16, cache_bytes=5 * moved) == 11
    assert timing.input_sets(FLAT, 8, 16, cache_bytes=1) == 2
    assert timing.input_sets(FLAT, 8, 16, cache_bytes=10**12) == timing.MOST_SETS


def test_a_failure_outside_the_turns_is_the_peers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(FLAT, Device("cpu"), QUICK)

    def broken(step: timing.Step, device: str) -> int:
        raise MemoryError("no room")

    monkeypatch.setattr("benchmarks.measure.peak_bytes", broken)
    result = bench.measure("forward", ["torch_conv"])["torch_conv"]
    assert result.failure == "MemoryError: no room"


def test_a_first_turn_that_fails_leaves_the_others_times(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(FLAT, Device("cpu"), QUICK)
    turn = bench._turn

    def broken(calls: int) -> float:
        raise MemoryError("no room")

    own = lambda peer, steps, result: broken if peer == "torch_conv" else turn(peer, steps, result)
    monkeypatch.setattr(bench, "_turn", own)
    found = bench.measure("forward", ["torch_conv", "radconv_cpu"])
    assert (found["torch_conv"].failure, found["torch_conv"].times) == ("MemoryError: no room", [])
    assert (found["radconv_cpu"].failure, found["radconv_cpu"].times != []) == (None, True)


def test_replays_are_compared_with_eager_calls() -> None:
    x, half = torch.linspace(1, 2, 5), replace(FLAT, precision="bfloat16")
    assert timing.is_same(x, x.clone(), FLAT)
    assert timing.is_same((x, x, x), (x, x * 1.00005, x), FLAT)
    assert not timing.is_same((x, x, x), (x, x * 1.001, x), FLAT)
    assert timing.is_same((x, x, x), (x, x * 1.001, x), half)
    assert not timing.is_same((x, x), (x * 1.001, x), FLAT)
    assert not timing.is_same((x, x), (x, x * 1.03), half)
    assert not timing.is_same(x * float("nan"), x, half)
    assert not timing.is_same((x, x, x), (x, x, x * float("nan")), half)
    network = next(p for p in PROBLEMS if isinstance(p, NetworkProblem) and p.precision == "bfloat16")
    assert timing.is_same((x, x, 1e-9 * x), (x, x, 2e-9 * x), network)
    assert not timing.is_same((x, x, x), (x, x, x * 1.05), network)


# ---- the run itself --------------------------------------------------------------------------------------------------


def run(tmp_path: Path, *arguments: str) -> tuple[str, Path]:
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "pytest", "benchmarks", "--quick", "--device", "cpu", f"--benchmark-json={out}"]
    # pytest-benchmark measures nothing in a process that it takes for one of xdist's
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, env=environment)
    return done.stdout + done.stderr, out


def test_quick_run_of_one_problem(tmp_path: Path) -> None:
    said, out = run(tmp_path, "-rs", "-k", "overhead-k3-forward or (cpu-quick-k3-forward and (radconv or torch_conv))")
    assert "8 passed" in said, said
    assert "serves GPUs" in said
    assert "[2/2" in said
    rows = [b for b in json.loads(out.read_text())["benchmarks"] if b["extra_info"]["problem"] == "quick-k3"]
    assert {b["extra_info"]["peer"] for b in rows} == {"radconv_cpu", "radconv_reference", "torch_conv"}
    output_bytes = 2 * 32 * 32 * 32 * 4
    for b in rows:
        info, stats = b["extra_info"], b["stats"]
        assert info["agrees_with_reference"] is True
        assert info["errors"]["output"] < info["error_bounds"]["output"] == 1e-5
        assert info["machine"]["torch"] == torch.__version__
        assert info["ceilings"]["copy_bytes_per_second"] > 1e8
        assert info["floor_fraction"] == pytest.approx(info["floor"]["total"] / stats["median"], rel=1e-3)
        if info["peak_bytes"] is not None:  # where the kernel counts it: in pages, some of them resident before
            assert output_bytes / 2 < info["peak_bytes"] < 2**27
        assert 1e-6 < stats["min"] <= stats["median"] <= stats["max"]
        assert stats["median"] < 1
    assert not out.with_name("out.json.part").exists()


def test_results_go_beside_the_file_that_was_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    with out.open("wb") as file:
        assert {part_of(out), part_of(str(out)), part_of(file)} == {tmp_path / "out.json.part"}
    assert part_of(None) is None


def test_an_interrupted_run_keeps_what_it_has(tmp_path: Path) -> None:
    plugin = tmp_path / "stop.py"
    plugin.write_text(
        "import os\n"
        "def pytest_runtest_logfinish(nodeid):\n"
        "    if 'overhead-k3-forward-radconv_reference' in nodeid: os._exit(9)\n"
    )
    environment = ["-p", "stop", "-k", "overhead-k3-forward", "-o", f"pythonpath=. {tmp_path}"]
    _, out = run(tmp_path, *environment)
    lines = out.with_name("out.json.part").read_text().splitlines()
    assert [json.loads(line)["extra_info"]["peer"] for line in lines] == [
        "torch_conv",
        "radconv_cpu",
        "radconv_reference",
    ]
