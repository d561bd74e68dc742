"""The build: what the library links, what setup.py decides, and that every missing part is named with its reason."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

# `import radconv_ext.build_info` would give the function of that name where the package exports it.
from radconv_ext.build_info import build_info, native

info_module = sys.modules["radconv_ext.build_info"]

ROOT = Path(__file__).resolve().parent.parent
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
NO_NVCC = (
    "radconv_ext: RADCONV_CUDA=on, but no CUDA compiler was found "
    "(looked for $CUDACXX, nvcc on PATH, $CUDA_HOME/bin, $CUDA_PATH/bin)."
)
NO_CXX = "no C++ compiler was found (looked for $CXX, c++, g++, clang++)"


# ---- a reader of ELF files: tests must not depend on binutils -------------------------------------------------------

SHT_SYMTAB, SHT_DYNAMIC, SHT_DYNSYM = 2, 6, 11
DT_NEEDED, STB_LOCAL, STB_WEAK, STB_GNU_UNIQUE, SHN_UNDEF = 1, 0, 2, 10, 0


class Elf:
    """Names in a 64-bit little-endian ELF file."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        assert self.data[:6] == b"\x7fELF\x02\x01", f"{path} is not a 64-bit little-endian ELF file"
        (offset,) = struct.unpack_from("<Q", self.data, 40)
        size, count = struct.unpack_from("<HH", self.data, 58)
        # name, type, flags, address, offset, size, link, info, alignment, entry size
        self.sections = [struct.unpack_from("<IIQQQQIIQQ", self.data, offset + i * size) for i in range(count)]

    def rows(self, kind: int, form: str) -> list[tuple]:
        """(name, fields...) of each row of the sections of this type."""
        found = []
        for section in (s for s in self.sections if s[1] == kind):
            strings = self.sections[section[6]][4]
            for fields in struct.iter_unpack(form, self.data[section[4] : section[4] + section[5]]):
                start = strings + fields[1 if kind == SHT_DYNAMIC else 0]
                found.append((self.data[start : self.data.find(b"\0", start)].decode(errors="replace"), *fields))
        return found

    def needed(self) -> list[str]:
        return [name for name, tag, _ in self.rows(SHT_DYNAMIC, "<qQ") if tag == DT_NEEDED]

    def defined(self, table: int) -> dict[str, int]:
        """Name to binding of the defined, non-local symbols."""
        rows = self.rows(table, "<IBBHQQ")
        return {
            name: info >> 4 for name, _, info, _, section, *_ in rows if section != SHN_UNDEF and info >> 4 != STB_LOCAL
        }


def library() -> Path:
    module = native()
    assert module is not None, build_info()["native"]["reason"]
    assert module.__file__ is not None
    return Path(module.__file__)


@LINUX
def test_library_needs_no_torch_and_no_cuda_runtime():
    needed = Elf(library()).needed()
    assert any(name.startswith("libc.so") for name in needed), needed  # the reader works
    unwanted = ("libtorch", "libc10", "libcuda", "libnvrtc", "libpython")
    assert [name for name in needed if name.startswith(unwanted)] == []


@LINUX
def test_library_exports_its_entry_point_alone():
    assert list(Elf(library()).defined(SHT_DYNSYM)) == ["PyInit__C"]


@LINUX
def test_objects_of_special_instruction_sets_share_no_functions():
    """A weak symbol compiled for AVX-512 can be the copy that the linker keeps for every CPU."""
    loaded = library().read_bytes()
    builds = [path.parents[1] for path in ROOT.glob("build/native-*/module/_C*") if path.read_bytes() == loaded]
    if not builds:
        pytest.skip("the library was not built in this tree, so there are no objects to read")
    isas = [isa for isa in json.loads((builds[0] / "built.json").read_text())["isas"] if isa != "baseline"]
    for isa in isas:
        objects = list(builds[0].glob(f"CMakeFiles/radconv_isa_{isa}.dir/**/*.o"))
        assert objects, f"no objects for {isa} in {builds[0]}"
        for path in objects:
            symbols = Elf(path).defined(SHT_SYMTAB)
            assert symbols, f"{path} defines nothing"
            shared = [name for name, binding in symbols.items() if binding in (STB_WEAK, STB_GNU_UNIQUE)]
            data = [name for name in shared if name.startswith("DW.ref.")]  # addresses, no code
            assert sorted(set(shared) - set(data)) == [], f"{path.name} for {isa}"


# ---- build_info -----------------------------------------------------------------------------------------------------


def test_build_info_has_the_promised_keys():
    info = build_info()
    assert set(info) == {"versions", "native", "cuda", "missing"}
    assert set(info["versions"]) == {"radconv_ext", "python", "torch", "triton"}
    assert info["versions"]["torch"] == torch.__version__
    assert set(info["native"]) == {"built", "loads", "compiler", "isas", "reason"}
    assert set(info["cuda"]) == {
        *("built", "nvcc", "architectures", "reason"),
        *("runtime_version", "driver_version", "device_count"),
    }
    json.dumps(info)


def test_native_library_is_built_and_loads():
    part = build_info()["native"]
    assert part["built"], part["reason"]
    assert part["loads"], part["reason"]
    assert part["reason"] is None
    assert part["compiler"]
    assert part["isas"][0] == "baseline"


def test_cuda_part_is_usable_or_says_why_not():
    part = build_info()["cuda"]
    if not part["built"]:
        assert part["reason"].startswith("CUDA part: not built, ")
        return
    assert part["nvcc"]
    assert part["architectures"]
    assert part["runtime_version"] >= 11000
    if torch.version.cuda and torch.cuda.is_available() and part["reason"] is None:
        assert part["device_count"] == torch.cuda.device_count()
    if part["device_count"] == 0:
        assert part["reason"].startswith("CUDA part: built, but") or "driver serves" in part["reason"]


BUILT = {
    "version": "0.1.0",
    "native": {"built": True, "compiler": "GNU 12.2.0", "reason": None, "isas": ["baseline"]},
    "cuda": {"built": True, "nvcc": "13.0", "architectures": ["90"], "reason": None},
}
PURE = {
    "version": "0.1.0",
    "native": {"built": False, "compiler": None, "reason": NO_CXX, "isas": []},
    "cuda": {"built": False, "nvcc": None, "architectures": [], "reason": NO_CXX},
}


def module_with(driver: int, devices: int) -> SimpleNamespace:
    answer = {"runtime_version": 13000, "driver_version": driver, "device_count": devices}
    return SimpleNamespace(device_info=lambda: answer)


@dataclasses.dataclass
class Missing:
    id: str
    record: dict | None
    module: object  # what imports as radconv_ext._C, or the exception
    expected: list[str]


THIS_PYTHON = sys.implementation.cache_tag
ABSENT = ModuleNotFoundError("no _C", name="radconv_ext._C")
UPDATE = "update the driver or build with an older CUDA"
NEVER_BUILT = "running from a source tree that was never built: run `pip install -e .`"
MISSING = [
    Missing("all_there", BUILT, module_with(13000, 1), []),
    Missing("no_compiler", PURE, ABSENT, [f"native library: not built, {NO_CXX}", f"CUDA part: not built, {NO_CXX}"]),
    Missing("never_built", None, ABSENT, [f"native library: {NEVER_BUILT}", f"CUDA part: {NEVER_BUILT}"]),
    Missing(
        "does_not_load",
        BUILT,
        ImportError("GLIBCXX_3.4.99 not found"),
        [
            "native library: built, but it fails to load: GLIBCXX_3.4.99 not found",
            "CUDA part: built, but the native library that holds them does not load",
        ],
    ),
    Missing(
        "other_python",
        BUILT,
        ABSENT,
        [
            f"native library: built, but not for this Python ({THIS_PYTHON}): run `pip install` with it",
            "CUDA part: built, but the native library that holds them does not load",
        ],
    ),
    Missing("no_driver", BUILT, module_with(0, 0), ["CUDA part: built, but this machine has no NVIDIA driver"]),
    Missing(
        "old_driver",
        BUILT,
        module_with(12080, 0),
        [f"CUDA part: built with CUDA 13.0, but the driver serves CUDA 12.8 at most: {UPDATE}"],
    ),
    Missing("no_device", BUILT, module_with(13010, 0), ["CUDA part: built, but no CUDA device is visible"]),
]


@pytest.mark.parametrize("case", MISSING, ids=lambda case: case.id)
def test_every_missing_part_is_named_with_its_reason(case, monkeypatch, tmp_path):
    def import_module(name):
        assert name == "radconv_ext._C"
        if isinstance(case.module, Exception):
            raise case.module
        return case.module

    record = tmp_path / "_build.json"
    if case.record is not None:
        record.write_text(json.dumps(case.record))
    monkeypatch.setattr(info_module, "_RECORD", record)
    monkeypatch.setattr(
        info_module, "importlib", SimpleNamespace(**{**vars(importlib), "import_module": import_module})
    )
    monkeypatch.setattr(info_module, "_triton_version", lambda: "3.6.0")
    for cached in (info_module._record, info_module._load):
        monkeypatch.setattr(info_module, cached.__name__, cached.__wrapped__)
    assert build_info()["missing"] == case.expected


# ---- what setup.py decides ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def setup_py() -> ModuleType:
    spec = importlib.util.spec_from_file_location("radconv_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def program(folder: Path, name: str, text: str = "exit 0") -> str:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def tree(tmp_path) -> Path:
    """A copy of the parts of the project that setup.py needs before it compiles anything."""
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, copy)
    (copy / "README.md").write_text("radconv_ext\n")
    for package in ("radconv_ext", "triton_kernels"):
        (copy / package).mkdir()
        (copy / package / "__init__.py").touch()
    return copy


def run_setup(tree: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    names = ("CXX", "CUDACXX", "CUDA_HOME", "CUDA_PATH", "RADCONV_CUDA", "RADCONV_CUDA_ARCHS")
    env = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "setup.py", *arguments]
    return subprocess.run(command, cwd=tree, env=env | variables, capture_output=True, text=True, timeout=60)


def test_cuda_on_without_nvcc_fails_with_one_sentence(tree, tmp_path):
    program(tmp_path / "bin", "c++")
    done = run_setup(tree, "build_ext", RADCONV_CUDA="on", PATH=str(tmp_path / "bin"))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [NO_NVCC]
    assert not list(tree.rglob("_build.json"))


def test_no_compiler_gives_a_pure_python_build_and_its_reason(tree, tmp_path):
    (tmp_path / "empty").mkdir()
    done = run_setup(tree, "-q", "build", PATH=str(tmp_path / "empty"))
    assert done.returncode == 0, done.stderr
    (record,) = tree.glob("build/lib/radconv_ext/_build.json")  # build/lib, not build/lib.linux-...: pure
    written = json.loads(record.read_text())
    assert written["native"] == {"built": False, "compiler": None, "reason": NO_CXX, "isas": []}
    assert written["cuda"]["built"] is False
    assert (tree / "build/lib/radconv_ext/triton_kernels/__init__.py").exists()
    assert NO_CXX in done.stdout


def test_compilers_are_found_in_the_documented_order(setup_py, tmp_path):
    folder = tmp_path / "bin"
    assert setup_py.decide({"PATH": str(folder)}).cxx is None
    assert setup_py.decide({"PATH": str(folder)}).cxx_reason == NO_CXX
    for name in ("clang++", "g++", "c++"):
        path = program(folder, name)
        assert setup_py.decide({"PATH": str(folder)}).cxx == (path,)
    other = program(tmp_path / "other", "mycc")
    assert setup_py.decide({"PATH": str(folder), "CXX": f"{other} -m64"}).cxx == (other, "-m64")
    plan = setup_py.decide({"PATH": str(folder), "CXX": "nosuch"})
    assert plan.cxx is None
    assert plan.cxx_reason == "no C++ compiler was found ($CXX is 'nosuch', which does not exist)"


def test_nvcc_is_found_in_the_documented_places(setup_py, tmp_path):
    env = {"PATH": str(tmp_path / "path")}
    program(tmp_path / "path", "c++")
    assert setup_py.decide(env).nvcc is None
    for name, folder in (("CUDA_PATH", "b"), ("CUDA_HOME", "a")):
        (tmp_path / folder).mkdir()
        env[name] = str(tmp_path / folder)
        assert setup_py.decide(env).nvcc != program(tmp_path / folder / "bin", "nvcc")
        assert setup_py.decide(env).nvcc == str(tmp_path / folder / "bin" / "nvcc")
    on_path = program(tmp_path / "path", "nvcc")
    assert setup_py.decide(env).nvcc == on_path
    env["CUDACXX"] = program(tmp_path / "c", "nvcc")
    assert setup_py.decide(env).nvcc == env["CUDACXX"]
    plan = setup_py.decide(env | {"RADCONV_CUDA": "off"})
    assert (plan.nvcc, plan.cuda_reason) == (None, "switched off by RADCONV_CUDA=off")


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"RADCONV_CUDA": "yes"}, "radconv_ext: RADCONV_CUDA: expected one of auto, on, off, got 'yes'."),
        ({"RADCONV_CUDA": "ON"}, "radconv_ext: RADCONV_CUDA: expected one of auto, on, off, got 'ON'."),
        (
            {"RADCONV_CUDA_ARCHS": "80-real;hopper"},
            "radconv_ext: RADCONV_CUDA_ARCHS: expected targets such as \"80-real;90\", got 'hopper'.",
        ),
        ({"RADCONV_CUDA": "on"}, NO_NVCC),
        ({"RADCONV_CUDA": "on", "CUDACXX": "/bin/sh"}, f"radconv_ext: RADCONV_CUDA=on, but {NO_CXX}."),
    ],
    ids=["bad_value", "bad_case", "bad_architecture", "on_without_nvcc", "on_without_compiler"],
)
def test_bad_requests_are_one_sentence(setup_py, variables, sentence):
    with pytest.raises(SystemExit) as stop:
        setup_py.decide({"PATH": "", **variables})
    assert stop.value.code == sentence


def test_architectures_are_read_in_cmake_form(setup_py):
    assert setup_py.parse_architectures("80-real; 90a,100f-virtual") == ("80-real", "90a", "100f-virtual")
    assert setup_py.parse_architectures(" ") is None
    assert setup_py.gencode("80-real") == "arch=compute_80,code=sm_80"
    assert setup_py.gencode("90") == "arch=compute_90,code=[compute_90,sm_90]"


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ("8.6\n9.0\n9.0", ["86", "90"]),
        ("99.9", ["80-real", "90"]),  # newer than nvcc: served by the PTX of the default
        ("N/A", ["80-real", "90"]),
        ("", ["80-real", "90"]),
    ],
)
def test_default_targets_are_the_visible_cards_that_nvcc_knows(setup_py, monkeypatch, cards, expected):
    answers = {"nvidia-smi": cards, "nvcc": "sm_80\nsm_86\nsm_90\n"}
    monkeypatch.setattr(setup_py, "output_of", lambda command, *_: answers[command])
    assert setup_py.default_architectures("nvcc") == expected


def native_plan(setup_py: ModuleType, tmp_path: Path, mode: str) -> object:
    nvcc = program(
        tmp_path / "bin", "nvcc", "echo 'warning: old' >&2\necho 'error: unsupported host compiler.' >&2\nexit 1"
    )
    program(tmp_path / "bin", "c++")
    return setup_py.decide({"PATH": str(tmp_path / "bin"), "CUDACXX": nvcc, "RADCONV_CUDA": mode})


def test_an_nvcc_that_cannot_compile_is_an_error_when_insisted_on(setup_py, tmp_path, monkeypatch):
    monkeypatch.setattr(setup_py, "find_tool", lambda *_: "unused")
    monkeypatch.setattr(setup_py, "find_pybind11", lambda: "unused")
    plan = native_plan(setup_py, tmp_path, "on")
    with pytest.raises(SystemExit) as stop:
        setup_py.build_native(plan, tmp_path / "out", "0")
    assert stop.value.code == (
        f"radconv_ext: RADCONV_CUDA=on, but {plan.nvcc} can't compile a test kernel for 80-real;90: "
        "error: unsupported host compiler."
    )


def test_sources_that_do_not_compile_are_an_error_not_a_fallback(setup_py, tmp_path, monkeypatch, capfd):
    cmake = program(tmp_path / "bin", "cmake", 'echo "$@"; test "$1" != --build')
    monkeypatch.setattr(setup_py, "find_tool", lambda *_: cmake)
    monkeypatch.setattr(setup_py, "find_pybind11", lambda: "unused")
    plan = native_plan(setup_py, tmp_path, "auto")
    with pytest.raises(SystemExit, match="compiling the native library failed with status 1"):
        setup_py.build_native(plan, tmp_path / "out", "0")
    assert not (tmp_path / "out").exists()
    said = capfd.readouterr().out
    assert "building without the CUDA part" in said  # auto: an unusable nvcc is a reason, no error
    assert "-DRADCONV_CUDA=OFF" in said
