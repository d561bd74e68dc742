"""The command line, the demo and the quickstart, each run as a user runs it: in a process of its own."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import radconv_ext
from radconv_ext.engines import ENGINES

PACKAGE_FOLDER = Path(radconv_ext.__file__).resolve().parent.parent
ROOT = Path(__file__).resolve().parent.parent
FIGURES = ("rings.png", "rotation_error.png", "digits.png")


def run(*arguments: str, folder: Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run this Python with the package on its path."""
    path = os.pathsep.join(filter(None, (str(PACKAGE_FOLDER), os.environ.get("PYTHONPATH"))))
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "PYTHONIOENCODING": "utf-8",
        "COLUMNS": "100",
        # OpenMP threads that spin while other processes want the processor make a step 30 times slower
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, timeout=timeout, encoding="utf-8", check=False
    )


def processor_seconds() -> float:
    """What the processes that this one has waited for have used: unlike wall time, little changed by a busy machine."""
    used = os.times()
    return used.children_user + used.children_system


def numbers_by_row(text: str, title: str) -> dict[str, list[float]]:
    """The body of the table below `title`: first cell -> the other cells' numbers."""
    rows: dict[str, list[float]] = {}
    table = text.split(title, 1)[1].splitlines()[1:]
    for line in table:
        if rows and not line.startswith("│"):
            break
        if line.startswith("│"):
            first, *rest = (cell.strip() for cell in line.strip("│").split("│"))
            assert first not in rows, f"{title}: two rows {first}"
            rows[first] = [float(re.sub(" of .*", "", cell)) for cell in rest]
    return rows


# ---- info ------------------------------------------------------------------------------------------------------------


def info_rows(text: str) -> dict[str, str]:
    return dict(re.split(r"  +", line, maxsplit=1) for line in text.splitlines() if line)


def test_info_names_versions_and_engines(tmp_path: Path) -> None:
    result = run("-m", "radconv_ext", "info", folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    rows = info_rows(result.stdout)
    assert rows["torch"] == torch.__version__
    assert rows["python"] == platform.python_version()
    for name, engine in ENGINES.items():
        assert rows[name] == (engine.why_missing() or "available")
    assert rows["reference"] == "available"


def test_info_names_the_instruction_set(tmp_path: Path) -> None:
    native = pytest.importorskip("radconv_ext._C")
    rows = info_rows(run("-m", "radconv_ext", "info", folder=tmp_path).stdout)
    assert rows["instruction set"].split()[0] == native.current_isa()


# ---- missing packages ------------------------------------------------------------------------------------------------

BLOCKED = """
import runpy, sys
for name in {names}:
    sys.modules[name] = None
sys.argv = ["radconv_ext", *{arguments}]
runpy.run_module("radconv_ext", run_name="__main__", alter_sys=True)
"""


def run_blocked(names: list[str], arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line where importing any of `names` fails."""
    return run("-c", BLOCKED.format(names=names, arguments=arguments), folder=folder)


@pytest.mark.parametrize(
    ("blocked", "named"),
    [(["matplotlib"], "matplotlib"), (["rich", "sklearn"], "rich, scikit-learn")],
    ids=["one", "two"],
)
def test_demo_names_missing_packages(blocked: list[str], named: str, tmp_path: Path) -> None:
    result = run_blocked(blocked, ["demo"], tmp_path)
    expected = f"The demo needs {named}, not installed here: run `pip install 'radconv_ext[demo]'`.\n"
    assert (result.returncode, result.stdout, result.stderr) == (1, "", expected)
    assert list(tmp_path.iterdir()) == []


def test_info_needs_none_of_the_extras(tmp_path: Path) -> None:
    result = run_blocked(["matplotlib", "rich", "sklearn", "scipy"], ["info"], tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "reference" in info_rows(result.stdout)


# ---- the demo --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Output and figure folder of one quick run."""
    for name in ("matplotlib", "rich", "sklearn"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("demo")
    before = processor_seconds()
    result = run("-m", "radconv_ext", "demo", "--quick", "--out", "figures", folder=folder, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    assert processor_seconds() - before < 25  # seen 9
    return result.stdout, folder / "figures"


def test_demo_saves_and_lists_figures(quick: tuple[str, Path]) -> None:
    from matplotlib import image

    output, folder = quick
    assert sorted(path.name for path in folder.iterdir()) == sorted(FIGURES)
    for name in FIGURES:
        pixels = (255 * image.imread(folder / name)).astype(np.uint8)  # (height, width, 4)
        assert min(pixels.shape[:2]) > 700
        assert len(np.unique(pixels.view(np.uint32))) > 1000  # colours; empty axes have 256 greys
    listed = output.split("Saved:\n")[1].split()
    assert listed == [str(Path("figures") / name) for name in FIGURES]


def test_demo_rings_table(quick: tuple[str, Path]) -> None:
    rows = numbers_by_row(quick[0], "Gaussian rings on an MRI slice")
    assert list(rows) == [str(k) for k in range(3, 16, 2)]
    for k, (rings, shells, taps, largest) in rows.items():
        assert rings == int(k) // 2 + 1
        assert shells == radconv_ext.shell_count(2, int(k))
        assert taps <= int(k) ** 2
        assert 0 < largest < 1


def test_demo_rotation_table(quick: tuple[str, Path]) -> None:
    rows = numbers_by_row(quick[0], "Rotation error")
    assert list(rows) == [str(angle) for angle in range(0, 361, 30)]
    for angle, (radial, plain) in rows.items():
        if int(angle) % 360 == 0:
            assert max(radial, plain) < 1e-6
        elif int(angle) % 90 == 0:
            assert radial < 1e-6  # seen 1.0e-7
            assert plain > 0.1
        else:
            assert radial < 0.02  # seen 7e-3
            assert plain > 10 * radial


def test_demo_speed_table(quick: tuple[str, Path]) -> None:
    rows = numbers_by_row(quick[0], "Milliseconds")
    assert list(rows) == ["3", "5", "7", "9", "11"]
    for forward, dense_forward, ratio, training, dense_training, training_ratio in rows.values():
        assert min(forward, dense_forward, training, dense_training) > 0
        assert ratio == pytest.approx(dense_forward / forward, rel=0.05, abs=0.06)
        assert training_ratio == pytest.approx(dense_training / training, rel=0.05, abs=0.06)
    assert torch.__version__ in quick[0].split("Milliseconds")[1]


def test_demo_digits_table(quick: tuple[str, Path]) -> None:
    rows = numbers_by_row(quick[0], "Accuracy on rotated digits")
    assert list(rows) == [str(angle) for angle in range(0, 360, 30)]
    for angle, (radial, plain) in rows.items():
        assert 0 <= plain <= 100
        # the whole network commutes with quarter turns; 450 digits, one may tie
        assert radial == pytest.approx(rows[str(int(angle) % 90)][0], abs=0.5)


# ---- examples --------------------------------------------------------------------------------------------------------


def test_quickstart(tmp_path: Path) -> None:
    script = ROOT / "examples" / "quickstart.py"
    result = run(str(script), folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    differences = [float(d) for d in re.findall(r"largest difference .*? (\d\.\de[-+]\d+)", result.stdout)]
    assert len(differences) == 4
    assert "commutes with flips and quarter turns: True" in result.stdout
    assert max(differences) < 1e-5  # seen 1.4e-6
    unexplained = [float(v) for v in re.findall(r"unexplained variance (\S+)", result.stdout)]
    assert len(unexplained) == 4
    assert unexplained[-1] < 0.2 * unexplained[0]
