"""Machine code of NVIDIA GPUs as text: instructions, loops, and what one pass of a loop executes."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

Counts = Counter[str]  # opcodes with their modifiers; of several passes' average, not whole
Numbers = tuple[int, ...]


def tool(name: str, *arguments: str, cwd: str | None = None) -> str:
    """What one of NVIDIA's tools prints: the ones that Triton's wheel carries, so no CUDA toolkit is needed."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([str(path), *arguments], check=True, capture_output=True, text=True, cwd=cwd).stdout


@dataclass(frozen=True)
class Instruction:
    """`opcode` carries modifiers: "LDS.128"."""

    address: int
    opcode: str
    guarded: bool = False  # by a predicate, in front or as an operand of a branch
    never: bool = False  # by a predicate that is always false: ptxas puts such loads before asynchronous copies
    target: str | None = None  # label that it names

    @cached_property
    def name(self) -> str:
        return self.opcode.partition(".")[0]


_LABEL = re.compile(r"\s*(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"\s*/\*([0-9a-f]+)\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)([.\w]*)([^;]*);")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")


def instructions(disassembly: str) -> tuple[list[Instruction], dict[str, int]]:
    """Instructions as `nvdisasm -c` prints them, and the address of each label."""
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    waiting: list[str] = []
    for line in disassembly.splitlines():
        if named := _LABEL.match(line):
            waiting.append(named.group(1))
        elif found := _INSTRUCTION.match(line):
            address, guard, name, modifiers, operands = found.groups()
            labels.update((place, int(address, 16)) for place in waiting)
            waiting = []
            target = _TARGET.search(operands)
            guarded = guard is not None or re.match(r"\s*!?U?P\d", operands) is not None
            never = guard is not None and guard.strip() == "@!PT"
            label = None if target is None else target.group(1)
            code.append(Instruction(int(address, 16), name + modifiers, guarded, never, label))
    return code, labels


def functions(disassembly: str) -> dict[str, str]:
    """Mangled name and text of each function of a cubin."""
    parts = re.split(r"^\.text\.([\w$]+):$", disassembly, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def names(code: Iterable[Instruction]) -> Counter[str]:
    return Counter(instruction.name for instruction in code)


def hot_loop(disassembly: str) -> Counter[str]:
    """Opcodes of the loop over channels or tiles: the longest, or the one that makes up more than half of it (a float16
    tile may be done twice); of the whole kernel where there is none."""
    code, labels = instructions(disassembly)
    loops = []
    for i in code:
        if i.name == "BRA" and i.target is not None and labels.get(i.target, i.address) < i.address:
            loops.append([j for j in code if labels[i.target] <= j.address <= i.address])
    loops.sort(key=len, reverse=True)
    best = loops[0] if loops else code
    for loop in loops[1:]:
        if 2 * len(loop) > len(best) and best[0].address <= loop[0].address and loop[-1].address <= best[-1].address:
            best = loop
    return names(best)


# ---- passes of loops ------------------------------------------------------------------------------------------------


@dataclass
class Loop:
    """A strongly connected part of the control flow, or (the outermost) all of it."""

    head: int
    blocks: set[int]
    inner: list[Loop] = field(default_factory=list)


class Flow:
    """Basic blocks of a function, by index, and its loops.

    `off` tells which instructions a predicate switches off: they are issued, no more, and count as NOPs.  The lanes of
    a warp are taken to be together: what BRA.DIV branches to, and BRA.CONV passes by, is never executed.
    """

    def __init__(self, disassembly: str, off: Callable[[Instruction], bool] = lambda i: i.never) -> None:
        self.off = off
        code, labels = instructions(disassembly)
        starts = {code[0].address} | {labels[i.target] for i in code if i.target is not None and i.target in labels}
        jumps = ("BRA", "CALL", "EXIT", "RET", "BRX")
        self.blocks: list[list[Instruction]] = []
        for before, here in zip([None, *code], code, strict=False):
            if here.address in starts or (before is not None and before.name in jumps):
                self.blocks.append([])
            self.blocks[-1].append(here)
        at = {block[0].address: i for i, block in enumerate(self.blocks)}
        self.next: list[list[int]] = []
        for i, block in enumerate(self.blocks):
            last, after = block[-1], []
            apart = last.opcode.startswith("BRA.DIV")
            if last.name in ("BRA", "CALL") and last.target is not None and not apart:
                after.append(at[labels[last.target]])
            through = apart or last.name not in ("BRA", "EXIT", "RET", "BRX") or last.guarded
            if through and i + 1 < len(self.blocks):
                after.append(i + 1)
            self.next.append(after)
        self.whole = Loop(0, set(range(len(self.blocks))))
        self._find_loops(self.whole, self.whole.blocks)

    def count(self, blocks: Iterable[int], what: Callable[[Instruction], bool]) -> int:
        return sum(what(instruction) for b in blocks for instruction in self.blocks[b])

    def _find_loops(self, loop: Loop, blocks: set[int]) -> None:
        for part in self._components(blocks):
            if len(part) == 1 and next(iter(part)) not in self.next[next(iter(part))]:
                continue
            heads = {b for a in loop.blocks - part for b in self.next[a] if b in part}
            inner = Loop(min(heads or part), part)
            loop.inner.append(inner)
            self._find_loops(inner, part - {inner.head})

    def _components(self, blocks: set[int]) -> list[set[int]]:
        """Strongly connected components of these blocks."""
        order: list[int] = []
        seen: set[int] = set()
        for start in sorted(blocks):
            stack = [(start, False)]
            while stack:
                block, done = stack.pop()
                if done:
                    order.append(block)
                elif block not in seen:
                    seen.add(block)
                    stack.append((block, True))
                    stack.extend((b, False) for b in self.next[block] if b in blocks and b not in seen)
        before: dict[int, list[int]] = {b: [] for b in blocks}
        for a in blocks:
            for b in self.next[a]:
                if b in blocks:
                    before[b].append(a)
        parts, left = [], set(blocks)
        for start in reversed(order):
            if start not in left:
                continue
            part, waiting = set(), [start]
            while waiting:
                block = waiting.pop()
                if block in left:
                    left.remove(block)
                    part.add(block)
                    waiting.extend(before[block])
            parts.append(part)
        return parts

    def reaches(self, loop: Loop, start: Iterable[int]) -> set[int]:
        """Blocks that these lead to within one pass of the loop."""
        seen: set[int] = set()
        stack = list(start)
        while stack:
            for b in self.next[stack.pop()]:
                if b in loop.blocks and b != loop.head and b not in seen:
                    seen.add(b)
                    stack.append(b)
        return seen

    def longest_pass(
        self,
        loop: Loop,
        inner: Mapping[int, Counts],
        keys: Sequence[Callable[[Instruction], bool]] = (),
        weight: Callable[[int], float] = lambda block: 1,
    ) -> dict[Numbers, Way]:
        """What one pass of the loop executes along its longest way from head to head, for each combination of numbers
        of instructions on the way that the `keys` are true of, inner loops aside.

        `inner` gives, by their heads, what inner loops execute whenever they are met; no way leads through others.
        `weight` is how often a block is executed.
        """
        owner = {b: found for found in loop.inner for b in found.blocks}
        none = (0,) * len(keys)
        done: dict[int, dict[Numbers, Way]] = {}

        def ways(block: int) -> dict[Numbers, Way]:
            """From here to the head."""
            if block in done:
                return done[block]
            best: dict[Numbers, Way] = {}
            done[block] = best
            if block not in owner:
                opcodes = Counter("NOP" if self.off(i) else i.opcode for i in self.blocks[block])
                here = add(Counter(), opcodes, weight(block))
                numbers, after = tuple(self.count([block], key) for key in keys), self.next[block]
            elif owner[block].head in inner:
                here, numbers = inner[owner[block].head], none
                after = [b for a in owner[block].blocks for b in self.next[a] if b not in owner[block].blocks]
            else:
                return best
            length = here.total()
            for b in after:
                if b not in loop.blocks:
                    continue
                for counted, way in ({none: Way()} if b == loop.head else ways(b)).items():
                    both = tuple(map(sum, zip(numbers, counted, strict=True)))
                    if both not in best or length + way.length > best[both].length:
                        best[both] = Way(length + way.length, here, way)
            return best

        return ways(loop.head)


@dataclass(frozen=True)
class Way:
    """What is executed from a block to the end of a pass; `length` is the number of instructions."""

    length: float = 0
    here: Counts = field(default_factory=Counter)
    rest: Way | None = None

    def counts(self) -> Counts:
        total: Counts = Counter()
        way: Way | None = self
        while way is not None:
            total.update(way.here)
            way = way.rest
        return total


def add(a: Counts, b: Counts, times: float = 1) -> Counts:
    """a + times * b"""
    total = a.copy()
    for opcode, count in b.items():
        total[opcode] += times * count  # type: ignore[assignment]
    return total
