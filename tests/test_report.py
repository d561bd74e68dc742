"""Benchmark results, from made-up ones: reading, condensing, the report, README.md's tables, comparing two runs."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare, markdown, readme, report, rows, tables
from benchmarks.problems import MODES
from benchmarks.rows import Results, ResultsError

ROOT = Path(__file__).parent.parent
MACHINES: dict[str, dict[str, Any]] = {
    "cpu": {"cpu": "A <fast> CPU", "threads": 2, "isa": "avx512", "omp_wait_policy": None},
    "cuda": {"card": "A card", "capability": "9.0", "driver": "1.2", "cache_bytes": 2**25},
}
VERSIONS = {"torch": "2.13.0", "radconv_ext": "0.1.0", "python": "3.11.7", "commit": "0123456789abcdef"}
CEILINGS = {"copy_bytes_per_second": 3e10, "matmul_flops": {"float32": 2e11}, "fma_per_second": 9.123456e10}
# Time over dense of each peer at Table S2; a larger k favours ours.
PEERS = {
    "radconv_cpu": 1.2, "radconv_reference": 1.05, "naive_gmr": 1.1, "unfused": 0.9, "released_gmr": 0.8,
    "symm_conv": 1.15, "e2_conv": 60.0, "e2_conv_width": 1.4, "group_conv_p4": 16.0,
}  # fmt: skip
FALLING = ("radconv_cpu", "radconv_cuda", "radconv_triton", "unfused", "released_gmr")


def benchmark(
    suite: str, problem: str, mode: str, peer: str, seconds: float, device: str = "cpu", **extra: Any
) -> dict[str, Any]:
    """One, as `pytest --benchmark-json` writes it, with quartiles 2 % from the median."""
    stats: dict[str, Any] = {"median": seconds, "q1": 0.98 * seconds, "q3": 1.02 * seconds, "rounds": 15}
    common = {
        "peer": peer, "problem": problem, "suite": suite, "mode": mode, "dtype": "float32", "layout": "contiguous",
        "device": device, "agrees_with_reference": True, "errors": {"output": 1.23e-7},
        "error_bounds": {"output": 1e-5},
        "kernel_size": 9, "ndim": 2, "batch": 2, "channels": 128, "outputs": 128, "size": [64, 64], "groups": 1,
        "parameters": 81920, "floor": None, "floor_fraction": None, "peak_bytes": None, "clock": "wall time",
        "machine": MACHINES[device] | VERSIONS, "ceilings": CEILINGS,
    }  # fmt: skip
    stats |= {"min": 0.95 * seconds, "max": 1.1 * seconds, "stddev": 0.0, "data": [seconds]}
    return {
        "group": f"{problem} {mode}",
        "name": f"{problem}-{mode}-{peer}",
        "stats": stats,
        "extra_info": common | extra,
    }


def of_suite(
    suite: str, problem: str, dense: float, device: str = "cpu", modes: tuple[str, ...] = MODES, **extra: Any
) -> list[dict[str, Any]]:
    """All peers at one problem; seconds of the dense forward."""
    found, k = [], extra.get("kernel_size", 9)
    peers = PEERS if device == "cpu" else {"radconv_cuda": 0.9, "radconv_triton": 1.3, "e2_conv": 30.0}
    for mode in modes:
        unit = dense * {"forward": 1, "inference": 0.97, "training": 3}[mode]
        for peer, over in {"torch_conv": 1.0, **peers}.items():
            seconds = unit * over * (3 / k if peer in FALLING else 1)
            parts = {"memory": 0.1, "rings": 0.2, "product": 0.4, "total": 0.6}
            floor = {name: part * seconds for name, part in parts.items()} if peer.startswith("radconv") else None
            peak = None if mode == "inference" else int(2**23 * over) + 1000 * k
            fraction = floor and floor["total"] / seconds
            own = {"floor": floor, "floor_fraction": fraction, "peak_bytes": peak, **extra}
            found.append(benchmark(suite, problem, mode, peer, seconds, device, **own))
    return found


def document(device: str = "cpu") -> dict[str, Any]:
    """A whole run on one device."""
    found = []
    for k in (3, 5, 7, 9, 11, 13, 15):
        found += of_suite("table-s2", f"table-s2-k{k}", 9e-4 * k * k, device, kernel_size=k)
    found += of_suite("table-s2", "table-s2-k9-channels-last", 0.07, device, layout="channels_last")
    for batch in (1, 2, 4, 8):
        found += of_suite(
            "batch-sweep", f"batch-{batch}-k9", 0.035 * batch, device, ("forward", "training"), batch=batch
        )
    for channels in (8, 32, 128, 256):
        size = {"channels": channels, "outputs": channels, "size": [32, 32]}
        seconds = 2e-6 * channels**1.8
        found += of_suite("channel-sweep", f"channels-{channels}-k9", seconds, device, ("forward", "training"), **size)
    for k in (3, 9):
        for peer, seconds in (("radconv_cpu", 3e-4 * k), ("mixing_alone", 2e-4 * k)):
            found.append(benchmark("mixing", f"mixing-k{k}", "forward", peer, seconds, device, kernel_size=k))
        found += of_suite("table-s2-bf16", f"table-s2-k{k}-bf16", 4e-4 * k * k, device, ("forward",), kernel_size=k)
    depthwise = {"kernel_size": 3, "channels": 192, "outputs": 192, "size": [56, 56], "groups": 192, "batch": 8}
    found += of_suite("convnext", "depthwise-k3", 5e-3, device, ("forward", "training"), **depthwise)
    found += of_suite("volume", "volume-k5", 0.028, device, kernel_size=5, ndim=3, channels=32, size=[32, 32, 32])
    for k in (3, 5, 9):
        tiny = {"kernel_size": k, "batch": 1, "channels": 1, "outputs": 1, "size": [8, 8]}
        found += of_suite("overhead", f"overhead-k{k}", 2e-5, device, ("forward", "training"), **tiny)
    for peer, seconds in (("gmr_conv2d", 1.3e-5), ("GMRConv2d", 1.5e-5)):
        found += [benchmark("module", "module-call", m, peer, seconds, device) for m in ("forward", "recording")]
    for peer, seconds in (("radconv_resnet", 0.02), ("conv_3x3_resnet", 0.01), ("released_gmr_resnet", 0.2)):
        network = {"kernel_size": None, "parameters": 11_173_962, "peak_bytes": 2**27, "batch": 32}
        found += [
            benchmark("network", "resnet18-32x32", m, peer, seconds, device, **network)
            for m in ("inference", "training")
        ]
    return {"machine_info": {"node": "x", "cpu": {}}, "datetime": "2025-01-02T03:04:05", "benchmarks": found}


def saved(folder: Path, made: Any, name: str = "out.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(made))
    return path


def small(*benchmarks: dict[str, Any]) -> dict[str, Any]:
    return {"machine_info": {}, "datetime": "2025-01-02T03:04:05", "benchmarks": list(benchmarks)}


def pair(ours: float, dense: float, **extra: Any) -> dict[str, Any]:
    peers = {"radconv_cpu": ours, "torch_conv": dense}
    return small(*(benchmark("odd", "odd-1", "forward", peer, seconds, **extra) for peer, seconds in peers.items()))


@pytest.fixture(scope="module")
def whole() -> Results:
    both = [report_rows for device in ("cpu", "cuda") for report_rows in flat(document(device))]
    return Results(both)


def flat(made: dict[str, Any]) -> list[rows.Row]:
    return [rows._flat(one, made, "here") for one in made["benchmarks"]]


# ---- reading and writing ---------------------------------------------------------------------------------------------


def test_rows_are_flat(tmp_path: Path) -> None:
    (ours, dense) = rows.load(saved(tmp_path, pair(0.002, 0.008)))
    assert (ours["peer"], ours["median"], ours["q3"], ours["kernel_size"]) == ("radconv_cpu", 0.002, 0.00204, 9)
    assert ours["machine"]["cpu"] == "A <fast> CPU"
    assert dense["ceilings"] == CEILINGS


def test_later_files_replace(tmp_path: Path) -> None:
    second = small(
        benchmark("odd", "odd-1", "forward", "radconv_cpu", 0.001), benchmark("odd", "new", "forward", "x", 1)
    )
    found = rows.load(saved(tmp_path, pair(0.002, 0.008), "a.json"), saved(tmp_path, second, "b.json"))
    assert [(row["problem"], row["median"]) for row in found] == [("odd-1", 0.001), ("odd-1", 0.008), ("new", 1)]


def test_condensed_is_the_same_but_for_digits(tmp_path: Path) -> None:
    made = document()
    made["benchmarks"][3]["extra_info"]["ceilings"] = {"copy_bytes_per_second": 1.0}  # one of another run keeps its own
    paths = [saved(tmp_path, made), saved(tmp_path, document("cuda"), "gpu.json")]
    out = tmp_path / "condensed.json"
    rows.condense(paths, out)
    assert rows.load(out) == rows.rounded(rows.load(*paths))
    lines = out.read_text().splitlines()
    assert sum('"peer"' in line for line in lines) == len(rows.load(*paths))
    assert max(line.count('"peer"') for line in lines) == 1
    assert rows.absent(out) == []
    assert sum('"machine"' in line for line in lines) == 2
    assert "stddev" not in out.read_text()
    assert json.loads(out.read_text())["machine_info"]["cpu"]["ceilings"]["fma_per_second"] == 9.1235e10
    rows.condense([out], tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == out.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.json", "condensed.json", "gpu.json", "out.json"]


@pytest.mark.parametrize("cut", [0, 1, 200])
def test_interrupted_run(tmp_path: Path, cut: int) -> None:
    made = pair(0.002, 0.008)["benchmarks"]
    text = "".join(json.dumps(one) + "\n" for one in made)
    path = tmp_path / "out.json.part"
    path.write_text(text[: len(text) - cut])
    assert [row["peer"] for row in rows.load(path)] == ["radconv_cpu", "torch_conv"][: 1 if cut > 1 else 2]


BAD = {
    "no JSON": ("out.json", "{", "expected JSON, got something else at line 1."),
    "another form": (
        "out.json",
        '{"speed": []}',
        "expected pytest-benchmark's results with a list `benchmarks`, got speed.",
    ),
    "a list": ("out.json", "[]", "with a list `benchmarks`, got list."),
    "no statistics": (
        "out.json",
        '{"benchmarks": [{}]}',
        "benchmark 0: expected a benchmark with stats and extra_info, got",
    ),
    "cut in the middle": ("out.json.part", '{"a\n{}\n', "line 1, got '{\"a'."),
}


@pytest.mark.parametrize("name, text, message", BAD.values(), ids=BAD)
def test_bad_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ResultsError, match=re.escape(message)) as caught:
        rows.load(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_bad_rows(tmp_path: Path) -> None:
    made = pair(0.002, 0.008)
    del made["benchmarks"][0]["extra_info"]["suite"], made["benchmarks"][0]["stats"]["q1"]
    with pytest.raises(ResultsError, match="expected suite, q1 in extra_info or stats"):
        rows.load(saved(tmp_path, made))
    made = pair(0.002, 0.008)
    del made["benchmarks"][0]["extra_info"]["machine"]
    with pytest.raises(ResultsError, match="expected the machine"):
        rows.load(saved(tmp_path, made))
    made = pair(0.002, 0.008)
    with pytest.raises(ResultsError, match="odd-1 forward radconv_cpu again"):
        rows.load(saved(tmp_path, small(*made["benchmarks"], made["benchmarks"][0])))
    with pytest.raises(ResultsError, match="expected a readable text file"):
        rows.load(tmp_path / "nothing.json")


# ---- the report ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(whole: Results) -> str:
    return report.html(report.parts_of(whole, []), "out.json")


def test_page_needs_nothing_from_elsewhere(page: str) -> None:
    loads = r"""(?:src|srcset|href)\s*=\s*(?!["']?#)[^>]{0,80}|url\((?!["']?#)[^)]*\)|@import|<script|<link|<!ENTITY"""
    assert re.findall(loads, page) == []


def test_page_shows_everything(page: str, whole: Results) -> None:
    assert page.count("<svg") == 2 * 4  # speed-up, growth, memory, roofline
    for name in [*whole.values("problem"), *whole.values("peer"), *whole.suites()]:
        assert name in page, name
    assert "A &lt;fast&gt; CPU" in page  # escaped
    assert "11,173,962" in page
    assert "3,200" in page or "3200" in page  # 32 images in 0.01 s


def test_reasons_are_kept_and_shown(tmp_path: Path) -> None:
    made = pair(0.002, 0.008)
    made["absent"] = [
        {"device": "cpu", "peer": "e2_conv", "reason": "has no <3D> form", "count": 7},
        {"device": "cuda", "peer": "torch_conv", "reason": "torch sees no CUDA device", "count": 3},
    ]
    out = saved(tmp_path, made)
    rows.condense([out], tmp_path / "kept.json")
    assert rows.absent(tmp_path / "kept.json") == made["absent"]
    cpu, card = report.parts_of(Results(rows.load(out)), rows.absent(out))
    text = report.html([cpu, card], "out.json")
    assert "has no &lt;3D&gt; form" in text
    assert [made.title for made in card.sections] == ["Not measured, and why"]
    assert "| torch_conv | torch sees no CUDA device | 3 |" in report.markdown([card])


def test_other_clocks_are_not_compared() -> None:
    made = pair(0.001, 0.008)["benchmarks"]
    made[0]["extra_info"]["clock"] = "replay of a CUDA graph"
    ours, dense = rows.Results(flat(small(*made))).rows
    assert Results([ours, dense]).speedup(ours) is None
    timed = [row | {"eager": seconds} for row, seconds in ((ours, 0.004), (dense, 0.012))]
    assert Results(timed).speedup(timed[0]) == pytest.approx(3)


def test_losing_shapes_are_flagged_and_listed(whole: Results) -> None:
    cpu = whole.select(device="cpu")
    engine = {(row["problem"], row["mode"]) for row in cpu.losing() if row["peer"] == "radconv_cpu"}
    assert ("table-s2-k3", "forward") in engine
    assert ("table-s2-k5", "forward") not in engine
    assert {row["problem"] for row in cpu.losing() if row["peer"] == "radconv_resnet"} == {"resnet18-32x32"}
    engines, dense_forms = tables.losing(cpu)
    assert engine <= {(cells[0].text, cells[1].text) for cells in engines.rows}
    assert {cells[2].text for cells in dense_forms.rows} == {"radconv_reference"}
    forward = tables.suite(cpu, "table-s2")[0]
    column = forward.head.index("radconv_cpu")
    flags = {cells[0].text: cells[column].bad for cells in forward.rows}
    assert (flags["table-s2-k3"], flags["table-s2-k5"]) == (True, False)
    assert not any(cells[forward.head.index("e2_conv")].bad for cells in forward.rows)


def test_losing_shapes_stand_out_in_both_files(page: str, whole: Results) -> None:
    text = report.markdown(report.parts_of(whole.select(device="cpu"), []))
    assert '<td class="bad">9.72 ms<small>0.83x' in page
    assert "**0.83**" in text
    assert "### Losing shapes" in text


def test_missing_data_says_so() -> None:
    one = Results(flat(pair(0.002, 0.008)))
    parts = report.parts_of(one, [])
    for text in (report.markdown(parts), report.html(parts, "out.json")):
        for said in ("Suite table-s2: not measured.", "Networks: not measured.", "Roofline: not measured.",
                     "Peak memory: not measured.", "Time against k, batch and channels: not measured.",
                     "Not measured in this run: "):  # fmt: skip
            assert said in text
    (part,) = parts
    assert part.title == "CPU"
    assert part.cards[0].text == "not measured"


def test_missing_mode_says_so() -> None:
    made = [one for one in document()["benchmarks"] if one["extra_info"]["mode"] != "inference"]
    text = report.markdown(report.parts_of(Results(flat(small(*made))), []))
    assert "Suite table-s2, inference: not measured." in text


def test_paper_beside_ours(whole: Results) -> None:
    made = tables.paper(whole, "cpu")
    lines = {tuple(cell.text for cell in cells[:3]): [*map(str, cells[3:])] for cells in made.rows}
    assert lines["training", "efficient GMR", "released_gmr"][0] == "0.80 (paper 1.2)"  # 1.194 / 0.974
    assert lines["inference", "E(2)-Conv", "e2_conv"][0] == "60.0 (paper 28.1)"  # 11.0 / 0.391
    assert lines["training", "E(2)-Conv", "e2_conv"][1] == "60.0"
    assert lines["training", "Group-Conv", "group_conv_p4m"][0] == "not measured (paper 24.6)"


def test_command_writes_all_files(tmp_path: Path) -> None:
    out = saved(tmp_path, pair(0.002, 0.008))
    command = [sys.executable, "-m", "benchmarks.report", str(out)]
    for option, name in (("--html", "a.html"), ("--markdown", "a.md"), ("--condense", "a.json")):
        command += [option, str(tmp_path / name)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.html").read_text().startswith("<!DOCTYPE html>")
    assert "odd-1" in (tmp_path / "a.md").read_text()
    assert rows.load(tmp_path / "a.json") == rows.rounded(rows.load(out))


# ---- README.md -------------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A folder of results: those of a CPU, and the compilers' tables as they are."""
    (tmp_path / "resources.json").write_text((readme.RESULTS / "resources.json").read_text())
    rows.condense([saved(tmp_path, document(), "run.json")], tmp_path / "cpu.json")
    return tmp_path


def test_readme_has_the_kept_results() -> None:
    text = readme.README.read_text(encoding="utf-8")
    assert readme.generate(text) == text, (
        "README.md isn't what the results in benchmarks/results give: run `make report`"
    )


def test_readme_tables(kept: Path) -> None:
    blocks = readme.blocks(kept)
    main = blocks["speed on a CPU"]
    assert main.startswith("A <fast> CPU, 2 threads, avx512, torch 2.13.0")
    assert "| table-s2-k3 | 9.72 | 8.10 | **0.83** | 1.2 (released_gmr) |" in main
    assert "table-s2-k3 forward (0.83)" in " ".join(main.split("Slower than dense")[1].split())
    assert all(len(line) <= 120 for line in main.splitlines() if not line.startswith("|"))
    assert "| k | avx512: ours, ms |" in blocks["beside the mixing alone"]
    unknown = " | ".join(["not measured yet"] * 3)
    assert f"| 9 | 2.70 | 1.80 | 1.5 | {unknown} |" in blocks["beside the mixing alone"]
    assert "| 9 | 13.0 | 2.2 | 32.4 | 2.5 |" in blocks["bfloat16"]
    assert "| e2_conv | 60.0 |" in blocks["peers"]
    assert "| overhead-k9 forward | 8.0 | 20.0 | 0.40 |" in blocks["overhead"]
    assert "| module-call forward | 15.0 | 13.0 | 1.2 |" in blocks["overhead"]
    assert (
        "| resnet18-32x32 | radconv_resnet | **1600** | **1600** | 128.0 | 128.0 | 11,173,962 |" in blocks["networks"]
    )
    assert "| table-s2-k9 | 9.6 |" in blocks["peak memory"]
    assert blocks["Triton kernels"].count("| forward |") == len(readme.TRITON_PROBLEMS)


def test_readme_without_results(kept: Path) -> None:
    (kept / "cpu.json").unlink()
    blocks = readme.blocks(kept)
    for name in (
        "speed on a CPU",
        "speed with AVX-512",
        "beside the mixing alone",
        "bfloat16",
        "peers",
        "overhead",
        "peak memory",
        "networks",
        "speed on a GPU",
    ):
        lines = [line for line in blocks[name].splitlines() if line.startswith("|")]
        bodies = [
            line
            for line in lines
            if not line.startswith(
                ("|---", "| call", "| k |", "| bfloat16", "| problem", "| time", "| training", "| network")
            )
        ]
        assert bodies, name
        for line in bodies:
            assert re.fullmatch(r"\|( [\w+-]+( \w+)? \|){1,2}( not measured yet \|)+", line), line


def test_marks() -> None:
    both = markdown.marks("name", "make report")
    text = f"before\n{both[0]}\nold\n{both[1]}\nafter\n"
    new = markdown.between(text, both, "| a |")
    assert new == f"before\n{both[0]}\n\n| a |\n\n{both[1]}\nafter\n"
    assert markdown.between(new, both, "| a |") == new
    with pytest.raises(ValueError, match="expected each mark once, got 0 times: <!-- name"):
        markdown.between("nothing", both, "| a |")


# ---- comparing -------------------------------------------------------------------------------------------------------


def compared(base: dict[str, Any], new: dict[str, Any], absolute: bool = False) -> tuple[str, int]:
    return compare.compare(flat(base), flat(new), 0.1, absolute)


def test_a_slower_machine_is_no_regression() -> None:
    text, regressions = compared(pair(0.002, 0.008), pair(0.003, 0.012))
    assert (regressions, "WARNING" in text) == (0, False)
    text, regressions = compared(pair(0.002, 0.008), pair(0.003, 0.012), absolute=True)
    assert (regressions, text.count("REGRESSION"), text.count("| slower |")) == (1, 1, 1)  # the peer's is none of ours


def test_a_regression() -> None:
    text, regressions = compared(pair(0.002, 0.008), pair(0.0025, 0.008))
    assert regressions == 1
    assert "| cpu | odd-1 | forward | radconv_cpu | 0.25 | 0.3125 | +25.0 % | REGRESSION |" in text
    text, regressions = compared(pair(0.0025, 0.008), pair(0.002, 0.008))
    assert (regressions, "faster" in text) == (0, True)


def test_what_is_within_threshold_or_spread_is_none() -> None:
    assert compared(pair(0.002, 0.008), pair(0.00218, 0.008))[1] == 0
    noisy = pair(0.0025, 0.008)
    noisy["benchmarks"][0]["stats"]["q1"] = 0.002  # below the base's upper quartile, 0.00204
    assert compared(pair(0.002, 0.008), noisy)[1] == 0


def test_times_of_different_clocks_are_no_change() -> None:
    replayed, eager = pair(0.002, 0.008, clock="replay"), pair(0.02, 0.008, clock="replay")
    eager["benchmarks"][0]["extra_info"]["clock"] = "wall time"
    eager["benchmarks"].append(benchmark("odd", "odd-2", "forward", "radconv_cpu", 1.0))
    replayed["benchmarks"].append(benchmark("odd", "odd-2", "forward", "radconv_cpu", 1.0))
    text, regressions = compared(replayed, eager, absolute=True)
    assert (regressions, "odd-1 | forward | radconv_cpu" in text) == (0, False)
    assert "1 in both are baselines, have none, or were timed by another clock." in text
    with pytest.raises(rows.ResultsError, match="none in common"):
        compared(replayed, eager)


def test_rows_in_one_file_are_listed() -> None:
    new = pair(0.002, 0.008)
    new["benchmarks"].append(benchmark("odd", "odd-2", "forward", "radconv_cpu", 1.0))
    text, _ = compared(pair(0.002, 0.008), new)
    assert "1 only in new:\n  cpu odd-2 forward radconv_cpu" in text
    text, _ = compared(new, pair(0.002, 0.008))
    assert "1 only in base:" in text


def test_another_machine_is_a_warning() -> None:
    other = copy.deepcopy(pair(0.002, 0.008))
    for one in other["benchmarks"]:
        one["extra_info"]["machine"] |= {"cpu": "B", "commit": "f", "sm_clock": "345 MHz"}
    text, _ = compared(pair(0.002, 0.008), other)
    assert text.startswith("WARNING: not the same machine (cpu): cpu A <fast> CPU / B\n")


@pytest.mark.parametrize(
    "new, status",
    [(pair(0.002, 0.008), 0), (pair(0.004, 0.008), 1), (small(benchmark("odd", "else", "forward", "a", 1.0)), 2)],
    ids=["same", "regression", "nothing in common"],
)
def test_compare_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    new: dict[str, Any],
    status: int,
) -> None:
    base = saved(tmp_path, pair(0.002, 0.008), "base.json")
    monkeypatch.setattr(sys, "argv", ["compare", str(base), str(saved(tmp_path, new, "new.json"))])
    with pytest.raises(SystemExit) as caught:
        compare.main()
    assert caught.value.code == status
    said = capsys.readouterr()
    if status == 2:
        what = "a measurement with its baseline in both files, got 1 and 0 and none in common."
        assert said.err == f"benchmarks.compare: expected {what}\n"
        assert said.out == ""
