"""The Triton engine's autotuner, without a GPU: launches are recorded, times are invented."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import Case
from test_engines import largest_errors, outputs_of
from torch import Tensor

import radconv_ext
from radconv_ext.engines.triton import TritonEngine
from radconv_ext.problem import RadialConvProblem, build_problem, make_spec

pytest.importorskip("triton")

from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources

from radconv_ext.triton_kernels import configs, launch, plan, tune
from radconv_ext.triton_kernels.configs import Config

CARD = "NVIDIA H9/00 (test)"
TUNED = ("convolve", "weight_gradient")


class Card:
    """A card that launches nothing: what was launched and timed, and what shall fail."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.launched: list[tuple[str, Config]] = []
        self.timed: list[tuple[str, Config]] = []
        self.failing: dict[Config, Exception] = {}
        self.milliseconds: Callable[[Config], float] = lambda config: 1 / (config.pixels * config.warps)

    def launch(self, which: Any, *pointers: Tensor) -> None:
        if which.config in self.failing:
            raise self.failing[which.config]
        self.launched.append((which.kernel.fn.__name__, which.config))

    def measure(self, run: Callable[[], None]) -> float:
        run()
        self.timed.append(self.launched[-1])
        return self.milliseconds(self.launched[-1][1])

    def new_process(self) -> None:
        tune._choices.cache_clear()
        self.launched.clear()
        self.timed.clear()

    def used(self, kernel: str) -> Config:
        return next(config for name, config in reversed(self.launched) if name == kernel)

    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("*")) if path.name != "corrupt.json"]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Card]:
    found = Card(tmp_path / "below" / "cache")
    monkeypatch.setenv("RADCONV_TRITON_AUTOTUNE", "1")
    monkeypatch.setenv("RADCONV_CACHE_DIR", str(found.folder))
    monkeypatch.setattr(tune, "INTERPRETED", False)
    monkeypatch.setattr(tune, "_card_name", lambda device: CARD)
    monkeypatch.setattr(tune, "_measure", found.measure)
    monkeypatch.setattr(plan, "card_of", lambda device: "sm_90")
    monkeypatch.setattr(plan, "multiprocessors", lambda device: 132)
    monkeypatch.setattr(launch.Launch, "__call__", lambda self, *pointers: found.launch(self, *pointers))
    tune._choices.cache_clear()
    yield found
    tune._choices.cache_clear()


def problem_and_tensors(
    batch: int = 2, size: int = 12, k: int = 5, rings: int = 3, dtype: torch.dtype = torch.float16, last: bool = True
) -> tuple[RadialConvProblem, tuple[Tensor, ...]]:
    """A call with a state of its own, 64 channels to 128."""
    x = torch.zeros(batch, 64, size, size, dtype=dtype)
    x = x.to(memory_format=torch.channels_last) if last else x
    w, sigma = torch.zeros(128, 64, rings, dtype=dtype), radconv_ext.default_sigma(k, rings).to(dtype)
    spec, _ = make_spec("auto", 2, "gaussian", rings, None, k, 1, "same", 1, 1, "zeros", True, False, 0)
    return build_problem(spec, x, w, sigma, None), (x, w, sigma)


def step(**sizes: Any) -> RadialConvProblem:
    """Forward and backward."""
    problem, (x, w, sigma) = problem_and_tensors(**sizes)
    y = TritonEngine().forward(problem, x, w, sigma, None)
    TritonEngine().backward(problem, torch.zeros_like(y), x, w, sigma, (True, True, True, False))
    return problem


def steps() -> None:
    """Two, of different sizes."""
    step()
    step(batch=3)


def candidates_of(problem: RadialConvProblem, kernel: str) -> list[Config]:
    plans = {type(p): p for p in problem.engine_state.values()}
    return configs.candidates(plans[plan.Convolution].work if kernel == "convolve" else plans[plan.Backward].sums.work)


def choose_last(kernel: str) -> Config:
    """The last candidate for `step()`, which is not the default."""
    problem, (x, *_) = problem_and_tensors()
    y = torch.zeros(problem.output_shape, dtype=x.dtype).to(memory_format=torch.channels_last)
    forward = plan.Convolution(problem, False, x, y, "ieee", False)
    sums = plan.Backward(problem, x, y, None, (False, True, True, False), "ieee").sums
    found = configs.candidates(forward.work if kernel == "convolve" else sums.work)
    assert len(found) > 2
    return found[-1]


def never(run: Callable[[], None]) -> float:
    raise AssertionError("timed")


def test_the_fastest_candidate_is_timed_and_taken(card: Card) -> None:
    fastest = {kernel: choose_last(kernel) for kernel in TUNED}
    card.milliseconds = lambda config: 1.0 if config in fastest.values() else 2.0
    problem = step()
    for kernel in TUNED:
        candidates = candidates_of(problem, kernel)
        timed = [config for name, config in card.timed if name == kernel]
        directions = 2 if kernel == "convolve" else 1  # 64 channels to 128 is not 128 to 64
        assert timed[: len(candidates)] == candidates
        assert len(timed) <= directions * len(configs.CONVOLVE)
    assert card.used("weight_gradient") == fastest["weight_gradient"]
    kept = [plan for plan in problem.engine_state.values() if isinstance(plan, tune.Convolution)]
    assert [p.convolve.config for p in kept] == [fastest["convolve"]]
    assert card.launched[-1] == ("finish", configs.SMALL)


def test_the_kept_plan_is_not_timed_again(card: Card) -> None:
    problem, (x, w, sigma) = problem_and_tensors()
    TritonEngine().forward(problem, x, w, sigma, None)
    card.launched.clear()
    card.timed.clear()
    TritonEngine().forward(problem, x, w, sigma, None)
    assert not card.timed
    assert [name for name, _ in card.launched] == ["prepare", "convolve"]


@pytest.mark.parametrize("setting", ["1", "cached"])
def test_choices_are_reused_by_another_process(card: Card, setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    card.milliseconds = lambda config: 1.0 if config == choice else 2.0
    choice = choose_last("convolve")
    step()
    sums = card.used("weight_gradient")
    (document,) = card.documents()
    assert document["card"] == CARD
    assert len(document["choices"]) == 3  # forward, input gradient, weight gradient

    card.new_process()
    monkeypatch.setenv("RADCONV_TRITON_AUTOTUNE", setting)
    monkeypatch.setattr(tune, "_measure", never)
    step()
    assert next(config for name, config in card.launched if name == "convolve") == choice
    assert card.used("weight_gradient") == sums


@pytest.mark.parametrize("setting", [None, "", "cached"])
def test_nothing_is_timed_or_written_unless_asked_for(
    card: Card, setting: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if setting is None:
        monkeypatch.delenv("RADCONV_TRITON_AUTOTUNE")
    else:
        monkeypatch.setenv("RADCONV_TRITON_AUTOTUNE", setting)
    problem = step()
    assert not card.timed
    assert not card.folder.exists()
    for kernel in TUNED:
        assert candidates_of(problem, kernel)[0] in {config for name, config in card.launched if name == kernel}


def test_choices_on_disk_are_not_used_when_the_variable_is_unset(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = choose_last("weight_gradient")
    card.milliseconds = lambda config: 1.0 if config == choice else 2.0
    step()
    assert card.used("weight_gradient") == choice
    card.new_process()
    monkeypatch.delenv("RADCONV_TRITON_AUTOTUNE")
    step()
    assert card.used("weight_gradient") != choice


@pytest.mark.parametrize("value", ["0", "yes", "2"])
def test_any_other_setting_is_an_error(card: Card, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RADCONV_TRITON_AUTOTUNE", value)
    with pytest.raises(ValueError, match=f"RADCONV_TRITON_AUTOTUNE: expected '1', 'cached', or unset, got '{value}'"):
        step()


def test_the_interpreter_is_not_tuned(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "INTERPRETED", True)
    step()
    assert not card.timed
    assert not card.folder.exists()


@pytest.mark.parametrize(
    "change",
    [{"batch": 3}, {"size": 13}, {"k": 7}, {"rings": 2}, {"dtype": torch.bfloat16}, {"last": False}],
    ids=lambda change: next(iter(change)),
)
def test_every_size_is_timed_for_itself(card: Card, change: dict[str, Any]) -> None:
    step()
    card.timed.clear()
    step()
    assert not card.timed
    step(**change)
    assert {name for name, _ in card.timed} == set(TUNED)


CORRUPT = {
    "empty": b"",
    "cut": b'{"choices": {"a": ',
    "list": b"[]",
    "no-choices": b"{}",
    "no-table": b'{"choices": 3}',
    "no-entry": b'{"choices": {"a": 1}}',
    "other-fields": b'{"choices": {"a": {"config": {"tile": 1}, "ms": 1.0}}}',
    "not-text": b"\xff\xfe\xfd",
}


@pytest.mark.parametrize("content", CORRUPT.values(), ids=CORRUPT)
def test_a_corrupt_file_is_ignored_and_rewritten(card: Card, content: bytes) -> None:
    step()
    expected = card.documents()
    (path,) = card.folder.iterdir()
    path.write_bytes(content)
    card.new_process()
    with pytest.warns(RuntimeWarning, match=r"ignores .*\.json and will write it anew") as caught:
        step()
    assert len(caught) == 1
    assert card.timed
    assert card.documents() == expected


def test_an_unreadable_path_is_one_warning(card: Card) -> None:
    step()
    (path,) = card.folder.iterdir()
    path.unlink()
    path.mkdir()  # root, too, can neither read it nor put a file in its place
    card.new_process()
    with pytest.warns(RuntimeWarning) as caught:
        steps()
    assert sorted(str(w.message).split(" ")[1] for w in caught) == ["ignores", "keeps"]
    assert [p.name for p in card.folder.iterdir()] == [path.name]


def test_an_unwritable_folder_leaves_choices_in_memory(card: Card) -> None:
    card.folder.parent.mkdir()
    card.folder.write_text("a file, below which root can't make folders either")
    with pytest.warns(RuntimeWarning, match=r"in memory: .* can't be written") as caught:
        steps()
    assert len(caught) == 1
    card.timed.clear()
    step()
    assert not card.timed


def test_other_processes_entries_are_kept(card: Card) -> None:
    ours, theirs = (tune.Choices(card.folder, CARD) for _ in range(2))
    one, other = configs.CONVOLVE[:2]
    ours.add("a", one, 1.0, 2.0)
    theirs.add("b", other, 1.0, None)
    ours.add("c", other, 1.0, 1.0)
    assert [tune.Choices(card.folder, CARD).get(key) for key in "abcd"] == [one, other, other, None]
    assert ours.get("b") == other
    assert len(list(card.folder.iterdir())) == 1  # nothing temporary stays


def test_another_card_has_its_own_file(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    step()
    card.timed.clear()
    monkeypatch.setattr(tune, "_card_name", lambda device: "another")
    step()
    assert card.timed
    assert {d["card"] for d in card.documents()} == {CARD, "another"}


@pytest.mark.parametrize("field, value", [("block_o", 96), ("warps", 4.5), ("pixels", "64"), ("most_registers", 32)])
def test_a_choice_that_is_no_candidate_is_timed_again(card: Card, field: str, value: Any) -> None:
    step()
    (path,) = card.folder.iterdir()
    before = path.read_text()
    document = json.loads(before)
    for entry in document["choices"].values():
        entry["config"][field] = value
    path.write_text(json.dumps(document))
    card.new_process()
    step()
    assert {name for name, _ in card.timed} == set(TUNED)
    assert path.read_text() == before


def test_nothing_is_timed_while_a_graph_is_captured(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    capturing = True
    monkeypatch.setattr(tune, "_capturing", lambda device: capturing)
    choice = choose_last("convolve")
    card.milliseconds = lambda config: 1.0 if config == choice else 2.0
    problem, (x, w, sigma) = problem_and_tensors()
    TritonEngine().forward(problem, x, w, sigma, None)
    assert not card.timed
    assert not card.folder.exists()
    assert card.used("convolve") != choice
    assert not problem.engine_state
    capturing = False
    TritonEngine().forward(problem, x, w, sigma, None)
    assert card.timed
    assert card.used("convolve") == choice
    card.timed.clear()
    capturing = True
    TritonEngine().forward(problem_and_tensors()[0], x, w, sigma, None)
    assert not card.timed
    assert card.used("convolve") == choice


def test_only_cuda_is_asked_whether_it_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert tune._capturing(torch.device("cuda", 0))
    assert not tune._capturing(torch.device("xpu", 0))


ERRORS = {
    "resources": (OutOfResources(300000, 232448, "shared memory"), "OutOfResources: .* Required: 300000"),
    "compiler": (CompilationError(None, None, "no such layout."), "CompilationError: no such layout"),
    "passes": (RuntimeError("PassManager::run failed"), "RuntimeError: PassManager::run failed"),
}


@pytest.mark.parametrize("error, text", ERRORS.values(), ids=ERRORS)
def test_a_candidate_that_fails_is_left_out(card: Card, error: Exception, text: str) -> None:
    choice = choose_last("weight_gradient")
    card.milliseconds = lambda config: 1.0 if config == choice else 2.0
    card.failing = {choice: error}
    with pytest.warns(RuntimeWarning, match=rf"leaves out Config\(.*\) for weight_gradient: {text}[^\n]*\.$") as caught:
        problem = step()
    assert len([w for w in caught if "for weight_gradient" in str(w.message)]) == 1
    assert card.used("weight_gradient") == candidates_of(problem, "weight_gradient")[0]
    assert choice not in {config for _, config in card.timed}


def test_the_defaults_error_is_raised_when_all_fail(card: Card) -> None:
    problem, (x, w, sigma) = problem_and_tensors()
    default = configs.CONVOLVE[0]
    card.failing = {c: OutOfResources(1, 0, f"shared memory of {c.pixels}x{c.block_o}") for c in configs.CONVOLVE}
    with (
        pytest.warns(RuntimeWarning, match="leaves out"),
        pytest.raises(OutOfResources, match=f"of {default.pixels}x{default.block_o}"),
    ):
        TritonEngine().forward(problem, x, w, sigma, None)
    assert not card.folder.exists()


def test_an_error_of_the_timer_is_not_swallowed(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    def illegal(run: Callable[[], None]) -> float:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(tune, "_measure", illegal)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        step()


def test_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("RADCONV_CACHE_DIR", "/first")
    monkeypatch.setenv("XDG_CACHE_HOME", "/second")
    assert tune._folder() == Path("/first")
    monkeypatch.setenv("RADCONV_CACHE_DIR", "")
    assert tune._folder() == Path("/second/radconv_ext")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert tune._folder() == Path("/home/someone/.cache/radconv_ext")


def test_the_table_can_be_copied(card: Card, capsys: pytest.CaptureFixture[str]) -> None:
    step()
    (card.folder / "corrupt.json").write_text("{")
    tune.main()
    printed = capsys.readouterr().out
    assert CARD in printed
    assert "corrupt.json: " in printed
    literals = [line.partition(")")[0].strip() + ")" for line in printed.splitlines() if line.startswith("  Config(")]
    kept = [Config(**entry["config"]) for document in card.documents() for entry in document["choices"].values()]
    assert len(kept) == 3
    assert [eval(literal, {"Config": Config}) for literal in literals] == kept


INTERPRETED = [
    Case("mixing", (7, 6), channels=(2, 3), batch=1, k=3),
    Case("depthwise", (7, 6), channels=(8, 8), batch=1, k=3, options={"groups": 8}),
    Case("transpose", (5,), k=3, method="gmr_conv_transpose", options={"stride": 2}),
]


@pytest.mark.skipif(not launch.INTERPRETED, reason="needs Triton's interpreter")
@pytest.mark.parametrize("case", INTERPRETED, ids=lambda case: case.id)
def test_timing_leaves_results_alone(case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every candidate runs on the call's own tensors; what the last of them gives is compared."""
    times: list[float] = []

    def measure(run: Callable[[], None]) -> float:
        times.append(1000.0 - len(times))
        return times[-1]

    monkeypatch.setenv("RADCONV_TRITON_AUTOTUNE", "1")
    monkeypatch.setenv("RADCONV_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(radconv_ext.problem, "_problems", {})  # neither uses nor leaves plans of other tests
    monkeypatch.setattr(tune, "INTERPRETED", False)
    monkeypatch.setattr(tune, "_card_name", lambda device: "interpreter")
    monkeypatch.setattr(tune, "_measure", measure)
    monkeypatch.setattr(plan, "card_of", lambda device: "sm_90")
    found = outputs_of(case, case.tensors(torch.float32), "triton")
    expected = outputs_of(case, case.tensors(torch.float64), "reference")
    assert len(times) >= 8  # of three launches
    assert max(largest_errors(found, expected).values()) < 2e-6  # as untuned
