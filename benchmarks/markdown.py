"""Tables as Markdown, and the parts of a file that a command writes, between two marks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def marks(name: str, command: str) -> tuple[str, str]:
    """The comments before and behind what `command` writes."""
    return f"<!-- {name}: {command} -->", f"<!-- end of {name} -->"


def between(text: str, both: tuple[str, str], body: str) -> str:
    """`text` with `body` between the two marks, in place of what was there."""
    missing = [mark for mark in both if text.count(mark) != 1]
    if missing:
        raise ValueError(f"expected each mark once, got {text.count(missing[0])} times: {missing[0]}")
    begin, end = text.index(both[0]) + len(both[0]), text.index(both[1])
    return f"{text[:begin]}\n\n{body}\n\n{text[end:]}"
