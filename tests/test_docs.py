"""The documentation's code runs, its pages are all reached, and what it names exists. Sphinx itself: `make docs`."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import radconv_ext

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TEST = re.compile(r"`(tests/\w+\.py)::(\w+)(?:\[[^`]*\])?`")


def text(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


WITH_CODE = [page for page in PAGES if BLOCK.search(text(page))]


@pytest.mark.parametrize("page", WITH_CODE)
def test_code_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of a page, in order, as one program; an error shows the page and the line."""
    monkeypatch.chdir(tmp_path)  # for what it saves
    source = text(page)
    shared: dict[str, Any] = {"__name__": "page"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for block in BLOCK.finditer(source):
            lines_before = source.count("\n", 0, block.start(1))
            exec(compile("\n" * lines_before + block[1], str(DOCS / page), "exec"), shared)


def test_every_block_is_found() -> None:
    """No fence that a reader takes for Python escapes the pattern above, by indentation or another spelling."""
    for page in PAGES:
        fences = re.findall(r"^[ \t]*(?:```|~~~|:::)+ *\{?(?:code-block\}? *)?(?:python|py|pycon)\b", text(page), re.M)
        assert len(fences) == len(BLOCK.findall(text(page))), page
    assert len(WITH_CODE) >= 7


def test_pages_are_those_of_the_contents() -> None:
    (contents,) = re.findall(r"^```\{toctree\}\n(.*?)^```$", text("index.md"), re.MULTILINE | re.DOTALL)
    listed = [line.strip() for line in contents.splitlines() if line.strip() and not line.startswith(":")]
    assert sorted(f"{name}.md" for name in listed if name != "self") == [page for page in PAGES if page != "index.md"]


@pytest.mark.parametrize("module", ["", "nn", "equivariance", "export"])
def test_api_names_everything_public(module: str) -> None:
    package = getattr(radconv_ext, module) if module else radconv_ext
    named = set(re.findall(r"\w+", text("api.md")))
    assert sorted(set(package.__all__) - named) == []


@cache
def functions(file: str) -> set[str]:
    """Names of a test file's functions."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_facilities_name_tests_that_exist() -> None:
    rows = [line for line in text("facilities.md").splitlines() if line.startswith("|")]
    body = [row for i, row in enumerate(rows) if not is_head(rows, i)]
    assert body, "the table is missing"
    for row in body:
        tests = TEST.findall(row)
        assert tests, f"no test in the row {row}"
        for file, function in tests:
            assert (ROOT / file).is_file(), f"{file}, in the row {row}"
            assert function in functions(file), f"{file} has no {function}, in the row {row}"


def is_head(rows: list[str], i: int) -> bool:
    """A rule between head and body, or the line before one."""
    rule = lambda row: set(row) <= set("|-: ")
    return rule(rows[i]) or (i + 1 < len(rows) and rule(rows[i + 1]))
