"""The demo behind `python -m radconv_ext demo`; needs the extra packages of `pip install 'radconv_ext[demo]'`.

One module per part, each with one function `run(demo)`; `parts.run_all` runs them in order. This file imports none of
the extra packages, so that `why_missing` can name those that are absent.
"""

from __future__ import annotations

import importlib.util

__all__ = ["why_missing"]

# distribution: name under which it is imported
_EXTRAS = {"matplotlib": "matplotlib", "numpy": "numpy", "rich": "rich", "scikit-learn": "sklearn"}


def why_missing() -> str | None:
    """One sentence that names the extra packages that are absent, or None."""
    absent = [name for name, module in _EXTRAS.items() if importlib.util.find_spec(module) is None]
    if not absent:
        return None
    return f"The demo needs {', '.join(absent)}, not installed here: run `pip install 'radconv_ext[demo]'`."
