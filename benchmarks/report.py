"""One page and one Markdown file about benchmark results: `python -m benchmarks.report out.json [more.json ...]`.

The page (`--html`, report.html) needs no network and no other file. `--condense FILE` also writes the results in the
form that results/ keeps. `--publish` writes the tables of README.md anew from results/ instead.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from . import charts, readme, tables
from .peers import PEERS
from .problems import DEVICES, MODES
from .rows import DENSE, ENGINES, Results, ResultsError, Row, absent, condense, is_ours, load, write
from .tables import K_SUITES, NOT_MEASURED, Cell, Table

TEMPLATE = Path(__file__).parent / "report.html.j2"
TITLES = {"cpu": "CPU", "cuda": "GPU"}


@dataclass(frozen=True)
class Section:
    title: str
    text: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Part:
    """What was found on one device."""

    id: str
    title: str
    machine: str
    cards: list[Cell]
    sections: list[Section]


def section(title: str, text: list[str], figures: list[Figure | None], found: list[Table | None]) -> Section:
    """A section that says so where nothing of it was measured."""
    drawn, filled = [f for f in figures if f is not None], [t for t in found if t is not None and t.rows]
    return Section(title, text, drawn, filled, [] if drawn or filled else [f"{title}: {NOT_MEASURED}."])


# ---- the sections; results of one device -----------------------------------------------------------------------------


def headline(results: Results, device: str) -> list[Cell]:
    """Speed-ups of our engines at one kernel size, and how much of everything is slower."""
    cards = []
    suite = next((name for name in K_SUITES if results.select(suite=name).rows), K_SUITES[0])
    problems = tables.of_k(results.select(suite=suite))
    k = 9 if 9 in problems else max(problems, default=9)
    engine = next((e for e in ENGINES[device] if results.select(peer=e).rows), ENGINES[device][0])
    for mode in MODES:
        row = results.get(device, problems.get(k, ""), mode, engine)
        speedup = results.speedup(row) if row else None
        text = NOT_MEASURED if speedup is None else f"{tables.ratio(speedup)}x"
        note = f"{mode}, k = {k}, {suite}: {engine} against {DENSE}"
        cards.append(Cell(text, note, row is not None and results.is_slower(row)))
    ours = [row for row in results.rows if row["peer"] in ENGINES[device] and results.speedup(row)]
    slower = sum(map(results.is_slower, ours))
    note = "problems and modes where our engines are slower than dense"
    return [*cards, Cell(f"{slower} of {len(ours)}", note, slower > 0)]


def about_speed(results: Results) -> Section:
    suites = {name: results.select(suite=name) for name in K_SUITES}
    there = {name: found for name, found in suites.items() if found.rows}
    missing = [] if "table-s2" in there else [f"Suite table-s2: {NOT_MEASURED}."]
    for name, found in there.items():
        lacking = [mode for mode in MODES if mode not in found.modes()]
        missing += [f"Suite {name}, {' and '.join(lacking)}: {NOT_MEASURED}."] if lacking else []
    text = f"Time of {DENSE} over the peer's."
    drawn = [figure for figure in map(charts.speedup, there.values()) if figure is not None]
    return Section("Speed-up over the dense convolution", [text] if there else [], drawn, [], missing)


def about_growth(results: Results) -> Section:
    made = section("Time against k, batch and channels", [], [charts.growth(results)], [])
    names = [name for name, *_ in charts.SWEEPS if not results.select(suite=name).rows]
    missing = [f"Suite {name}: {NOT_MEASURED}." for name in names] if made.figures else made.missing
    return Section(made.title, made.text, made.figures, made.tables, missing)


def about_paper(results: Results, device: str) -> Section:
    text = (
        "Time over that of torch's dense convolution: the GMR-Conv paper's Table S2 (arXiv 2504.02819; 1,000 calls on "
        "(2, 128, 64, 64) to 128 channels, RTX A5000) and this run. The machines differ, so only ratios compare. Below "
        "1 is faster than dense. The group of the paper's Group-Conv isn't known here: two stand beside it."
    )
    return section("Beside the paper's Table S2", [text], [], [tables.paper(results, device)])


def about_losing(results: Results) -> Section:
    found = tables.losing(results)
    text = "Everything of ours that took longer than its baseline, the worst first." if found else "None."
    return Section("Losing shapes", [text], tables=found)


def about_memory(results: Results) -> Section:
    suites = ("table-s2", "table-s2-modern")
    figures = [charts.memory(results.select(suite=name)) for name in suites]
    text = ["Largest memory that one call adds to what is there before it."]
    made = section("Peak memory", text, figures, [*tables.memory(results)])
    if made.tables and not made.figures:
        made.missing.append(f"Against k, suites {' and '.join(suites)}: {NOT_MEASURED}.")
    return made


def about_roofline(results: Results) -> Section:
    text = (
        "The floor is the radial operator's own: bytes of input and output, ring sums and mixing product at the rates "
        "that the same run measured, whoever computes it."
    )
    return section("Roofline", [text], [charts.roofline(results)], [tables.roofline(results)])


def about_machine(results: Results) -> Section:
    text = [f"How it was timed: {clock}" for clock in dict.fromkeys(row.get("clock") for row in results.rows) if clock]
    return section("Machine, versions, ceilings", text, [], [*tables.machine(results)])


def about_peers(results: Results) -> Section:
    labels = {name: peer.label for name, peer in PEERS.items()}
    known = tables.table(["peer", "what it is"], [[name, labels.get(name, "–")] for name in results.peers()])
    lacking = [name for name in labels if name not in results.peers()]
    missing = [f"Not measured in this run: {', '.join(lacking)}."] if lacking else []
    return Section("Peers and agreement", [], tables=[known, tables.agreement(results)], missing=missing)


def about_absent(reasons: list[Row]) -> Section:
    lines = [[row["peer"], row["reason"], row["count"]] for row in reasons]
    found = tables.table(["peer", "why", "problems and modes"], lines, "Reasons", closed=True)
    return section("Not measured, and why", [], [], [found])


def part(results: Results, device: str, reasons: list[Row]) -> Part:
    found = results.select(device=device)
    if not found.rows:
        return Part(device, TITLES[device], tables.names_machine(found), [], [about_absent(reasons)])
    network = section("Networks", ["A ResNet-18 with each kind of layer."], [], [tables.networks(found)])
    suites = [section(f"Suite {name}", [], [], [*tables.suite(found, name)]) for name in found.suites()]
    sections = [
        about_speed(found),
        about_paper(found, device),
        about_losing(found),
        about_growth(found),
        about_memory(found),
        about_roofline(found),
        network,
        about_machine(found),
        about_peers(found),
        about_absent(reasons),
        *suites,
    ]
    return Part(device, TITLES[device], tables.names_machine(found), headline(found, device), sections)


# ---- what is written -------------------------------------------------------------------------------------------------


def parts_of(results: Results, reasons: list[Row]) -> list[Part]:
    """A part for each device that was measured, or that was to be."""
    made = []
    for device in DEVICES:
        why = [row for row in reasons if row["device"] == device]
        if why or device in results.values("device"):
            made.append(part(results, device, why))
    return made


def html(parts: list[Part], sources: str) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(parts=parts, sources=sources, svg=charts.svg, is_ours=is_ours)


def markdown(parts: list[Part]) -> str:
    """All tables; bold: ours is slower."""
    lines = ["# Benchmark report", "", "Bold: ours is slower than dense. In brackets: quartiles.", ""]
    for one in parts:
        lines += [f"## {one.title}", "", one.machine, ""]
        lines += [*(f"- {card.text}: {card.note}" for card in one.cards), ""]
        for made in one.sections:
            blocks = [f"### {made.title}", *made.text, *made.missing, *(t.markdown() for t in made.tables)]
            lines += [block + "\n" for block in blocks]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="*", type=Path, help="results; a later file's row replaces an earlier one")
    parser.add_argument("--html", type=Path, default=Path("report.html"), help="the page (report.html)")
    parser.add_argument("--markdown", type=Path, default=Path("report.md"), help="the tables as Markdown (report.md)")
    parser.add_argument("--condense", type=Path, help="the results as results/ keeps them")
    parser.add_argument("--publish", action="store_true", help="the tables of README.md from results/, and no more")
    arguments = parser.parse_args()
    if arguments.publish == bool(arguments.results):
        parser.error("expected files of results, or --publish alone")
    try:
        if arguments.publish:
            readme.publish()
            return
        results = Results(load(*arguments.results))
        if not results.rows:
            raise ResultsError(f"{', '.join(map(str, arguments.results))}: expected benchmarks, got none.")
        if arguments.condense:
            condense(arguments.results, arguments.condense)
    except ResultsError as error:
        sys.exit(f"benchmarks.report: {error}")
    parts = parts_of(results, absent(*arguments.results))
    write(arguments.html, html(parts, ", ".join(path.name for path in arguments.results)))
    write(arguments.markdown, markdown(parts))
    print(f"wrote {arguments.html} and {arguments.markdown}")


if __name__ == "__main__":
    main()
