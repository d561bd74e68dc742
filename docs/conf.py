"""Sphinx configuration. Nothing is loaded over a network, neither by the build nor by a reader's browser."""

from __future__ import annotations

import re
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import figures  # noqa: E402

import radconv_ext  # noqa: E402

project = "radconv_ext"
author = "the radconv_ext authors"
project_copyright = author
version = release = radconv_ext.__version__
language = "en-GB"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_generated"]
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(torch|nn|collections|matplotlib|module|optional)\b.*"),
    ("py:.*", "Any|Tensor|Figure"),
]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Docstrings are Google style, with single backticks for code.
default_role, smartquotes_action = "code", "D"
napoleon_google_docstring, napoleon_numpy_docstring = True, False
# Returns: text as it stands, not "type: description"
napoleon_custom_sections = ["Shape", "Returns", ("Attributes", "params_style")]
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 100
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"radconv_ext {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = html_show_sphinx = False
html_math_renderer = "mathml"


# ---- formulas: MathML, which browsers draw by themselves -------------------------------------------------------------


def inline_math(translator: Any, node: nodes.math) -> None:
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def block_math(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="formula">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


# ---- docstrings: what reads well in help() and isn't reStructuredText ------------------------------------------------


def as_restructured_text(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Escape the star of `*S` outside code, and turn Markdown tables into directives."""
    rewritten: list[str] = []
    for is_table, block in groupby(lines, lambda line: line.lstrip().startswith("|")):
        found = list(block)
        rewritten += table(found) if is_table else map(escaped, found)
    # without an empty comment first, napoleon takes the start of a property's text, up to a colon, for its type
    lines[:] = ["..", "", *rewritten] if what == "property" else rewritten


def escaped(line: str) -> str:
    parts = re.split("(`[^`]*`)", line)
    return "".join(part if part.startswith("`") else re.sub(r"\*(?=S\b)", r"\*", part) for part in parts)


def table(block: list[str]) -> list[str]:
    """A list-table of the rows of a Markdown table, its second row left out."""
    indent = " " * (len(block[0]) - len(block[0].lstrip()))
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block]
    found = [".. list-table::", "   :header-rows: 1", ""]
    for row in (rows[0], *rows[2:]):
        found += [f"   {'* -' if i == 0 else '  -'} {cell}" for i, cell in enumerate(row)]
    return [(indent + line).rstrip() for line in ["", *found, ""]]


def setup(app: Sphinx) -> None:
    figures.draw(HERE / "_generated")
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)  # before napoleon
