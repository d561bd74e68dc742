"""Wrong inputs are errors that say what was expected and what came.

Every error is a ValueError or a TypeError of one line that names the tensor or option.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from support import ENGINES, FAMILIES, Operands, call, operands
from torch import Tensor

import radconv_ext

# --- wrong inputs -----------------------------------------------------------------------------------------------------

X, W, SIGMA = torch.ones(2, 4, 9, 9), torch.ones(6, 4, 3), torch.ones(3)  # k = 5
W_TRANSPOSED = torch.ones(4, 6, 3)
PROFILE = torch.ones(3, 5)
DOUBLES = {"x": X.double(), "w": W.double(), "sigma": SIGMA.double()}


def gmr(x: Any = X, w: Any = W, sigma: Any = SIGMA, bias: Any = None, **options: Any) -> Tensor:
    return radconv_ext.gmr_conv2d(x, w, sigma, bias, **options)


def gmr_transpose(x: Any = X, bias: Any = None, **options: Any) -> Tensor:
    return radconv_ext.gmr_conv_transpose2d(x, W_TRANSPOSED, SIGMA, bias, **options)


def sre(x: Any = X, w: Any = W, bias: Any = None, **options: Any) -> Tensor:
    return radconv_ext.sre_conv2d(x, w, bias, **options)


def radial(x: Any = X, w: Any = W, profile: Any = PROFILE, bias: Any = None, **options: Any) -> Tensor:
    return radconv_ext.radial_conv2d(x, w, profile, bias, **options)


def gmr_kernel(w: Any = W, sigma: Any = SIGMA, **options: Any) -> Tensor:
    return radconv_ext.gmr_kernel2d(w, sigma, **options)


@dataclass(frozen=True)
class Wrong:
    """A call, the error that it must raise, and what the message must say."""

    id: str
    wrong: Callable[[], Any]
    error: type[Exception] | tuple[type[Exception], ...]
    says: tuple[str, ...]  # regular expressions, each found in the message


def value(id: str, wrong: Callable[[], Any], *says: str) -> Wrong:
    return Wrong(id, wrong, ValueError, says)


def kind(id: str, wrong: Callable[[], Any], *says: str) -> Wrong:
    return Wrong(id, wrong, TypeError, says)


SHAPES = [
    value("x-rank-2", lambda: gmr(torch.ones(4, 9)), "^x: ", "4 dimensions", "3 without batch", r"\(4, 9\)"),
    value("x-rank-5", lambda: gmr(torch.ones(1, 2, 4, 9, 9)), "^x: ", "4 dimensions", r"\(1, 2, 4, 9, 9\)"),
    value("x-channels", lambda: gmr(torch.ones(2, 5, 9, 9)), "^x: ", "4 channels", r"\(6, 4, 3\)", r"\(2, 5, 9, 9\)"),
    value("x-channels-groups", lambda: gmr(groups=2), "^x: ", "8 channels", "groups = 2", r"\(2, 4, 9, 9\)"),
    value("x-channels-transposed", lambda: gmr_transpose(X[:, :3]), "^x: ", "4 channels", r"\(2, 3, 9, 9\)"),
    value("x-no-channels", lambda: gmr(X[:, :0], W[:, :0]), "^x", "at least one channel", r"\(2, 0, 9, 9\)"),
    value("x-no-rows", lambda: gmr(X[:, :, :0]), "^x: ", "at least one element", r"\(2, 4, 0, 9\)"),
    value("x-no-columns-full", lambda: gmr(X[..., :0], padding="full"), "^x: ", "at least one", r"\(2, 4, 9, 0\)"),
    value("x-no-rows-transposed", lambda: gmr_transpose(X[:, :, :0]), "^x: ", "at least one", r"\(2, 4, 0, 9\)"),
    value("w-rank-2", lambda: gmr(w=W[0]), "^w: ", "3 dimensions", r"\(4, 3\)"),
    value("w-rank-4", lambda: gmr(w=torch.ones(6, 4, 5, 5)), "^w: ", "3 dimensions", r"\(6, 4, 5, 5\)"),
    value("w-no-rings", lambda: gmr(w=W[..., :0], sigma=SIGMA[:0]), "^w: ", "rings", "at least 1", "got 0"),
    value("w-no-rings-sized", lambda: gmr(w=W[..., :0], sigma=SIGMA[:0], kernel_size=5), "^w: ", "rings", "got 0"),
    value("w-no-outputs", lambda: gmr(w=W[:0]), "w", "at least one channel", r"\(0, 4, 3\)"),
    value("w-groups", lambda: gmr(w=W[:5, :2], groups=2), "^groups: ", "divisor", "O = 5", "got 2"),
    value("w-groups-transposed", lambda: gmr_transpose(groups=3), "^groups: ", "divisor", "C = 4", "got 3"),
    value(
        "w-shell-rings", lambda: radial(profile=None, kernel_size=5), "^w: ", "5 rings", "size 5", "circular", "got 3"
    ),
    value(
        "w-shell-rings-full-support",
        lambda: radial(w=torch.ones(6, 4, 5), profile=None, kernel_size=5, circular=False),
        "^w: ",
        "6 rings",
        "full support",
        "got 5",
    ),
    value(
        "w-shell-rings-implied",
        lambda: radial(w=torch.ones(6, 4, 4), profile=None),
        "^kernel_size: ",
        "4 rings",
        "shell",
    ),
    value("w-band-full-support", lambda: sre(w=W[..., :1], kernel_size=3, circular=False), "^w: ", "2 rings", "got 1"),
    value(
        "sigma-shape", lambda: gmr(sigma=torch.ones(4)), "^sigma: ", r"expected \(3,\)", r"\(6, 4, 3\)", r"got \(4,\)"
    ),
    value("sigma-scalar", lambda: gmr(sigma=torch.tensor(1.0)), "^sigma: ", r"expected \(3,\)", r"got \(\)"),
    value("sigma-rank-2", lambda: gmr(sigma=torch.ones(4, 3)), "^sigma: ", r"expected \(3,\)", r"got \(4, 3\)"),
    value("sigma-channels", lambda: gmr(sigma=torch.ones(6, 1, 3)), "^sigma: ", r"\(6, 4, 3\)", r"got \(6, 1, 3\)"),
    value("sigma-banded", lambda: gmr(sigma=torch.ones(2), family="banded"), "^sigma: ", r"\(3,\)", r"got \(2,\)"),
    value("sigma-missing", lambda: gmr(sigma=None), "^sigma: ", r"expected \(3,\)", "got none"),
    value("profile-rank-1", lambda: radial(profile=torch.ones(3)), "^profile: ", "2 dimensions", r"got \(3,\)"),
    value("profile-rank-3", lambda: radial(profile=torch.ones(1, 3, 5)), "^profile: ", "2 dimensions", r"\(1, 3, 5\)"),
    value(
        "profile-rows", lambda: radial(profile=torch.ones(4, 5)), "^profile: ", r"expected \(3, 5\)", r"got \(4, 5\)"
    ),
    value(
        "profile-columns",
        lambda: radial(profile=torch.ones(3, 6), kernel_size=5),
        "^profile: ",
        r"expected \(3, 5\)",
        "size 5",
        "circular",
        r"got \(3, 6\)",
    ),
    value(
        "profile-columns-full-support",
        lambda: radial(kernel_size=5, circular=False),
        "^profile: ",
        r"expected \(3, 6\)",
        "full support",
        r"got \(3, 5\)",
    ),
    value(
        "profile-columns-implied", lambda: radial(profile=torch.ones(3, 4)), "^kernel_size: ", "4 columns", "profile"
    ),
    value("bias-length", lambda: gmr(bias=torch.ones(4)), "^bias: ", r"expected \(6,\)", r"got \(4,\)"),
    value("bias-rank", lambda: gmr(bias=torch.ones(6, 1)), "^bias: ", r"expected \(6,\)", r"got \(6, 1\)"),
    value("bias-scalar", lambda: gmr(bias=torch.tensor(1.0)), "^bias: ", r"expected \(6,\)", r"got \(\)"),
    value("bias-transposed", lambda: gmr_transpose(bias=torch.ones(4)), "^bias: ", r"expected \(6,\)", r"got \(4,\)"),
    value("kernel-w-rank", lambda: gmr_kernel(W[0]), "^w: ", "3 dimensions", r"\(4, 3\)"),
    value("kernel-sigma-shape", lambda: gmr_kernel(sigma=torch.ones(2)), "^sigma: ", r"expected \(3,\)", r"got \(2,\)"),
    value("kernel-sigma-missing", lambda: gmr_kernel(sigma=None), "^sigma: ", r"expected \(3,\)", "got none"),
    value(
        "kernel-profile-columns",
        lambda: radconv_ext.radial_kernel2d(W, torch.ones(3, 6), kernel_size=5),
        "^profile: ",
        r"expected \(3, 5\)",
        r"got \(3, 6\)",
    ),
]

TENSORS = [
    kind("x-is-array", lambda: gmr(np.ones((2, 4, 9, 9))), "^x: ", "torch.Tensor", "ndarray"),
    kind("x-is-none", lambda: gmr(None), "^x: ", "torch.Tensor", "NoneType"),
    kind("w-is-list", lambda: gmr(w=[[[1.0]]]), "^w: ", "torch.Tensor", "list"),
    kind("sigma-is-float", lambda: gmr(sigma=1.0), "^sigma: ", "torch.Tensor", "float"),
    kind("profile-is-str", lambda: radial(profile="gaussian"), "^profile: ", "torch.Tensor", "str"),
    kind("bias-is-bool", lambda: gmr(bias=True), "^bias: ", "torch.Tensor", "bool"),
    kind("kernel-w-is-none", lambda: gmr_kernel(None), "^w: ", "torch.Tensor", "NoneType"),
    kind("kernel-sigma-is-float", lambda: gmr_kernel(sigma=0.5), "^sigma: ", "torch.Tensor", "float"),
    *(
        kind(f"x-{str(dtype)[6:]}", lambda dtype=dtype: gmr(X.to(dtype)), "^x: ", "floating", str(dtype))
        for dtype in (torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64)
    ),
    kind("all-int", lambda: gmr(X.int(), W.int(), SIGMA.int()), "^x: ", "floating", "torch.int32"),
    kind(
        "all-complex",
        lambda: gmr(X.to(torch.complex64), W.to(torch.complex64), SIGMA.to(torch.complex64)),
        "^x: ",
        "floating",
        "torch.complex64",
    ),
    kind(
        "all-float8",
        lambda: sre(X.to(torch.float8_e4m3fn), W.to(torch.float8_e4m3fn)),
        "^x: ",
        "torch.float8_e4m3fn",
    ),
    *(
        kind(
            f"w-{str(dtype)[6:]}", lambda dtype=dtype: gmr(w=W.to(dtype)), "^w: ", "expected torch.float32", str(dtype)
        )
        for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.complex64)
    ),
    kind("sigma-float64", lambda: gmr(sigma=SIGMA.double()), "^sigma: ", "expected torch.float32", "got torch.float64"),
    kind("sigma-int", lambda: gmr(sigma=SIGMA.int()), "^sigma: ", "expected torch.float32", "got torch.int32"),
    kind("bias-float64", lambda: gmr(bias=torch.ones(6).double()), "^bias: ", "torch.float32", "got torch.float64"),
    kind("bias-half", lambda: gmr(bias=torch.ones(6).half()), "^bias: ", "torch.float32", "got torch.float16"),
    kind("profile-float64", lambda: radial(profile=PROFILE.double()), "^profile: ", "torch.float32", "torch.float64"),
    kind("x-float64", lambda: gmr(X.double()), "^w: ", "expected torch.float64", "got torch.float32"),
    kind(
        "x-half-w-bfloat16", lambda: gmr(X.half(), W.bfloat16()), "^w: ", "torch.float16 or torch.float32", "bfloat16"
    ),
    kind(
        "x-half-sigma-float64", lambda: gmr(X.half(), sigma=SIGMA.double()), "^sigma: ", "float16", "got torch.float64"
    ),
    kind("kernel-w-int", lambda: gmr_kernel(W.int(), SIGMA), "^w: ", "floating", "torch.int32"),
    kind("kernel-w-complex", lambda: radconv_ext.sre_kernel2d(W.to(torch.complex64)), "^w: ", "floating", "complex64"),
    kind("kernel-sigma-int", lambda: gmr_kernel(sigma=SIGMA.int()), "^sigma: ", "int32"),
    kind("kernel-sigma-complex", lambda: gmr_kernel(sigma=SIGMA.to(torch.complex64)), "^sigma: ", "complex64"),
    value("x-meta", lambda: gmr(X.to("meta")), "^w: ", "expected on meta", "where x is", "got cpu"),
    value("w-meta", lambda: gmr(w=W.to("meta")), "^w: ", "expected on cpu", "where x is", "got meta"),
    value("sigma-meta", lambda: gmr(sigma=SIGMA.to("meta")), "^sigma: ", "expected on cpu", "got meta"),
    value("profile-meta", lambda: radial(profile=PROFILE.to("meta")), "^profile: ", "expected on cpu", "got meta"),
    value("bias-meta", lambda: gmr(bias=torch.ones(6, device="meta")), "^bias: ", "expected on cpu", "got meta"),
    value("kernel-sigma-meta", lambda: gmr_kernel(sigma=SIGMA.to("meta")), "^sigma: ", "cpu", "meta"),
    Wrong("x-sparse", lambda: gmr(X.to_sparse()), (ValueError, TypeError), ("^x: ", "sparse")),
    Wrong("w-sparse", lambda: gmr(w=W.to_sparse()), (ValueError, TypeError), ("^w: ", "sparse")),
]


def not_an_int(option: str, function: Callable[..., Tensor], given: Any, shown: str) -> Wrong:
    wrong = lambda: function(**{option: given})
    return kind(f"{option}-{shown.replace(' ', '-')}", wrong, f"^{option}: ", "expected an int", re.escape(shown))


OPTIONS = [
    *(
        value(f"{option}-0", lambda option=option: gmr(**{option: 0}), f"^{option}: ", "at least 1", "got 0")
        for option in ("kernel_size", "stride", "dilation", "groups")
    ),
    *(
        value(f"{option}-negative", lambda option=option: gmr(**{option: -2}), f"^{option}: ", "at least", "got -2")
        for option in ("kernel_size", "stride", "dilation", "groups", "padding")
    ),
    *(
        value(
            f"{option}-negative-in-tuple",
            lambda option=option: gmr(**{option: (2, -1)}),
            f"^{option}: ",
            "at least",
            "-1",
        )
        for option in ("stride", "dilation", "padding")
    ),
    *(
        value(
            f"{option}-three-for-2d",
            lambda option=option: gmr(**{option: (1, 1, 1)}),
            f"^{option}: ",
            "2 of them",
            "1, 1, 1",
        )
        for option in ("stride", "dilation", "padding", "kernel_size")
    ),
    *(
        value(f"{option}-empty", lambda option=option: gmr(**{option: ()}), f"^{option}: ", "2 of them", r"\(\)")
        for option in ("stride", "dilation", "padding", "kernel_size")
    ),
    *(not_an_int(option, gmr, 1.5, "1.5") for option in ("kernel_size", "stride", "dilation", "groups", "padding")),
    *(not_an_int(option, gmr, (1, 2.5), "2.5") for option in ("stride", "dilation", "padding")),
    *(not_an_int(option, gmr, None, "None") for option in ("stride", "dilation", "groups", "padding")),
    *(not_an_int(option, gmr, "2", "'2'") for option in ("kernel_size", "stride", "dilation", "groups")),
    *(not_an_int(option, gmr, ([1, 1], [1, 1]), "[1, 1]") for option in ("stride", "dilation", "padding")),
    kind("groups-list", lambda: gmr(groups=[1]), "^groups: ", "expected an int", r"[\[(]1"),
    kind("stride-array", lambda: gmr(stride=np.array([1.5, 1.5])), "^stride: ", "expected an int", r"1\.5"),
    value(
        "kernel-size-anisotropic",
        lambda: gmr(kernel_size=(5, 3)),
        "^kernel_size: ",
        "one size for all axes",
        r"\(5, 3\)",
    ),
    value(
        "kernel-size-even-banded",
        lambda: gmr(kernel_size=4, family="banded"),
        "^kernel_size: ",
        "odd",
        "banded",
        "got 4",
    ),
    value("kernel-size-even-binary", lambda: sre(kernel_size=4), "^kernel_size: ", "odd", "binary", "got 4"),
    value(
        "kernel-size-even-binary-kernel", lambda: radconv_ext.sre_kernel2d(W, kernel_size=4), "^kernel_size: ", "odd"
    ),
    value(
        "kernel-size-even-binary-transposed", lambda: radconv_ext.sre_conv_transpose2d(X, W[:4], kernel_size=6), "odd"
    ),
    value(
        "kernel-size-unknown-banded",
        lambda: gmr(w=W[..., :1], sigma=SIGMA[:1], family="banded", circular=False),
        "^kernel_size: ",
        "1 rings",
        "banded",
    ),
    value("padding-unknown", lambda: gmr(padding="valide"), "^padding: ", "'same', 'valid', 'full'", "got 'valide'"),
    value("padding-empty-text", lambda: gmr(padding=""), "^padding: ", "'same'", "got ''"),
    value("padding-case", lambda: gmr(padding="SAME"), "^padding: ", "'same'", "got 'SAME'"),
    value(
        "padding-same-strided", lambda: gmr(padding="same", stride=2), "^padding: ", "'same'", "stride 1", r"\(2, 2\)"
    ),
    value("padding-same-strided-1", lambda: gmr(padding="same", stride=(1, 2)), "^padding: ", "stride 1", r"\(1, 2\)"),
    value("padding-same-transposed", lambda: gmr_transpose(padding="same"), "^padding: ", "transposed", "got 'same'"),
    value("padding-full-transposed", lambda: gmr_transpose(padding="full"), "^padding: ", "transposed", "got 'full'"),
    value("padding-unknown-transposed", lambda: gmr_transpose(padding="none"), "^padding: ", "got 'none'"),
    value(
        "padding-mode-unknown", lambda: gmr(padding_mode="zero"), "^padding_mode: ", "'zeros', 'circular'", "got 'zero'"
    ),
    value("padding-mode-none", lambda: gmr(padding_mode=None), "^padding_mode: ", "'zeros'", "got None"),
    value("padding-mode-unused", lambda: gmr(padding_mode="mirror", padding=0), "^padding_mode: ", "got 'mirror'"),
    Wrong(
        "padding-mode-list", lambda: gmr(padding_mode=["zeros"]), (ValueError, TypeError), ("^padding_mode: ", "zeros")
    ),
    value("family-unknown", lambda: gmr(family="gauss"), "^family: ", "'gaussian', 'banded'", "got 'gauss'"),
    value("family-without-sigma", lambda: gmr(family="binary"), "^family: ", "'gaussian', 'banded'", "got 'binary'"),
    value("family-none", lambda: gmr(family=None), "^family: ", "'gaussian'", "got None"),
    value("family-kernel", lambda: gmr_kernel(family="custom"), "^family: ", "'gaussian'", "got 'custom'"),
    Wrong("family-list", lambda: gmr(family=["gaussian"]), (ValueError, TypeError), ("^family: ", "gaussian")),
    value("engine-unknown", lambda: gmr(engine="gpu"), "^engine: ", "'cpu'", "'reference'", "'auto'", "got 'gpu'"),
    value("engine-case", lambda: gmr(engine="CPU"), "^engine: ", "'cpu'", "got 'CPU'"),
    Wrong("engine-int", lambda: gmr(engine=0), (ValueError, TypeError), ("^engine: ", "got 0")),
    Wrong("engine-list", lambda: gmr(engine=["cpu"]), (ValueError, TypeError), ("^engine: ", r"\['cpu'\]")),
    value("use-engine-unknown", lambda: radconv_ext.use_engine("gpu").__enter__(), "^engine: ", "'cpu'", "got 'gpu'"),
    kind("circular-text", lambda: gmr(circular="no"), "^circular: ", "bool", "'no'"),
    kind("circular-none", lambda: gmr(circular=None), "^circular: ", "bool", "None"),
    kind("circular-text-kernel", lambda: gmr_kernel(circular="full"), "^circular: ", "bool", "'full'"),
    kind("circular-text-count", lambda: radconv_ext.shell_count(2, 5, "full"), "^circular: ", "bool", "'full'"),
    value(
        "output-padding-too-large",
        lambda: gmr_transpose(stride=2, output_padding=2),
        "^output_padding: ",
        "less than",
        "stride 2",
        "got 2",
    ),
    value(
        "output-padding-no-stride", lambda: gmr_transpose(output_padding=1), "^output_padding: ", "stride 1", "got 1"
    ),
    value(
        "output-padding-one-axis",
        lambda: gmr_transpose(stride=(3, 2), output_padding=(2, 2)),
        "^output_padding: ",
        "stride 2",
        "got 2",
    ),
    value("output-padding-negative", lambda: gmr_transpose(stride=2, output_padding=-1), "^output_padding: ", "got -1"),
    not_an_int("output_padding", gmr_transpose, 0.5, "0.5"),
    value("shell-count-0", lambda: radconv_ext.shell_count(2, 0), "^kernel_size: ", "at least 1", "got 0"),
    value("shell-count-negative", lambda: radconv_ext.shell_count(2, -3), "^kernel_size: ", "at least 1", "got -3"),
    kind("shell-count-float", lambda: radconv_ext.shell_count(2, 4.5), "^kernel_size: ", "int", r"4\.5"),
    value("default-sigma-0", lambda: radconv_ext.default_sigma(0), "^kernel_size: ", "at least 1", "got 0"),
    value("default-sigma-no-rings", lambda: radconv_ext.default_sigma(5, 0), "^rings: ", "at least 1", "got 0"),
]

GEOMETRY = [
    value("output-empty", lambda: gmr(X[..., :4]), "^x: ", "empty", r"\(9, 4\)", "5"),
    value("output-empty-dilated", lambda: gmr(dilation=3), "^x: ", "empty", "dilation", r"\(9, 9\)"),
    value("output-empty-unbatched", lambda: gmr(X[0, :, :2]), "^x: ", "empty", r"\(2, 9\)"),
    value("output-empty-1d", lambda: radconv_ext.gmr_conv1d(torch.ones(1, 4, 4), W, SIGMA), "^x: ", "empty", r"\(4,\)"),
    value(
        "output-empty-3d",
        lambda: radconv_ext.gmr_conv3d(torch.ones(1, 4, 9, 4, 9), W, SIGMA),
        "^x: ",
        "empty",
        "9, 4, 9",
    ),
    value("output-empty-transposed", lambda: gmr_transpose(X[..., :1], padding=3), "^x: ", "empty", "padding"),
    value("output-empty-batch-0", lambda: gmr(X[:0, :, :4]), "^x: ", "empty", r"\(4, 9\)"),
    value("reflect-too-large", lambda: gmr(padding=9, padding_mode="reflect"), "^padding: ", "reflect", "of 9", "9, 9"),
    value(
        "reflect-too-large-axis",
        lambda: gmr(X[..., :3], padding=(0, 3), padding_mode="reflect"),
        "^padding: ",
        "reflect",
        "of 3",
        r"\(2, 4, 9, 3\)",
        "axis 1",
    ),
    value(
        "reflect-full-too-large",
        lambda: gmr(X[:, :, :4], padding="full", padding_mode="reflect"),
        "^padding: ",
        "reflect",
        "of 4",
        r"\(2, 4, 4, 9\)",
        "axis 0",
    ),
    value(
        "replicate-nothing",
        lambda: gmr(X[..., :0], padding=4, padding_mode="replicate"),
        "replicate",
        r"\(2, 4, 9, 0\)",
    ),
    value(
        "circular-too-large", lambda: gmr(padding=10, padding_mode="circular"), "^padding: ", "circular", "10", "size 9"
    ),
    value(
        "circular-too-large-axis",
        lambda: gmr(X[:, :, :3], padding=4, padding_mode="circular"),
        "^padding: ",
        "circular",
        "of 4",
        "size 3",
        "axis 0",
    ),
    value(
        "circular-same-too-large",
        lambda: gmr(X[..., :1], padding="same", padding_mode="circular"),
        "^padding: ",
        "circular",
        "of 2",
        "size 1",
        "axis 1",
    ),
]

ENGINE = [
    value("cpu-float64", lambda: gmr(**DOUBLES, engine="cpu"), "^engine: ", "'cpu'", "float32 and bfloat16", "float64"),
    value("cpu-float16", lambda: gmr(X.half(), engine="cpu"), "^engine: ", "'cpu'", "float32 and bfloat16", "float16"),
    value(
        "cpu-channel-wise", lambda: gmr(sigma=torch.ones_like(W), engine="cpu"), "^engine: ", "'cpu'", "channel-wise"
    ),
]


@pytest.mark.parametrize("case", [*SHAPES, *TENSORS, *OPTIONS, *GEOMETRY, *ENGINE], ids=lambda case: case.id)
@pytest.mark.parametrize("recording", [False, True], ids=["inference", "training"])
def test_error(case: Wrong, recording: bool) -> None:
    with torch.set_grad_enabled(recording), pytest.raises(case.error) as caught:
        case.wrong()
    message = str(caught.value)
    assert type(caught.value) in (ValueError, TypeError)
    assert "\n" not in message
    for fragment in case.says:
        assert re.search(fragment, message), f"{fragment!r} not in {message!r}"


def test_error_ids_are_unique() -> None:
    ids = [case.id for case in (*SHAPES, *TENSORS, *OPTIONS, *GEOMETRY, *ENGINE)]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("ndim", [1, 2, 3], ids="{}d".format)
@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transposed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_function_checks(family: str, transposed: bool, ndim: int) -> None:
    """All the public functions stand on the same checks."""
    given = operands(family, ndim, 3, (5,) * ndim, in_channels=2, out_channels=2, bias=True, dtype=torch.float32)
    assert call(family, ndim, given, transposed=transposed).isfinite().all()
    wrong: list[tuple[type[Exception], str, Operands, dict[str, Any]]] = [
        (ValueError, "x: ", given._replace(x=given.x[:, :1]), {}),
        (ValueError, "bias: ", given._replace(bias=given.bias[:1]), {}),
        (TypeError, "w: ", given._replace(w=given.w.double()), {}),
        (TypeError, "x: ", given._replace(x=None), {}),
        (ValueError, "stride: ", given, {"stride": 0}),
        (ValueError, "padding: ", given, {"padding": -1}),
        (ValueError, "dilation: ", given, {"dilation": (1,) * (ndim + 2)}),
        (ValueError, "groups: ", given, {"groups": -1}),
        (ValueError, "engine: ", given, {"engine": "fastest"}),
        (ValueError, "kernel_size: ", given, {"kernel_size": 0}),
    ]
    if given.p is not None:
        name = "profile: " if family == "custom" else "sigma: "
        wrong.append((ValueError, name, given._replace(p=given.p[:-1]), {"kernel_size": 3}))
    for error, start, tensors, options in wrong:
        with pytest.raises(error, match=f"^{start}"):
            call(family, ndim, tensors, transposed=transposed, **options)


# --- nothing is ignored -----------------------------------------------------------------------------------------------

# A valid value first: an error must not depend on what was asked before.
LOOKALIKES = [
    pytest.param(option, right, wrong, id=f"{option}-{wrong}")
    for option, right, wrong in (
        ("kernel_size", 5, 5.0),
        ("stride", 1, 1.0),
        ("stride", 1, True),
        ("stride", (2, 2), (2.0, 2)),
        ("dilation", 1, 1.0),
        ("dilation", 1, True),
        ("groups", 1, 1.0),
        ("groups", 1, True),
        ("padding", 0, 0.0),
        ("padding", 0, False),
        ("padding", (1, 1), (True, 1)),
        ("kernel_size", 1, True),
    )
]


@pytest.mark.parametrize("option, right, wrong", LOOKALIKES)
def test_lookalikes_are_type_errors(option: str, right: Any, wrong: Any) -> None:
    """1.0 and True equal 1, yet torch's convolutions take neither."""
    given = {"kernel_size": 5} | {option: right}
    gmr(**given)
    shown = re.escape(repr(wrong[0] if isinstance(wrong, tuple) else wrong))
    with pytest.raises(TypeError, match=f"^{option}: .*{shown}"):
        gmr(**given | {option: wrong})


UNKNOWN = [
    pytest.param(lambda: gmr(output_padding=1), "output_padding", id="output-padding-without-transposed"),
    pytest.param(lambda: gmr_transpose(padding_mode="zeros"), "padding_mode", id="padding-mode-transposed"),
    pytest.param(lambda: sre(sigma=SIGMA), "sigma", id="sigma-of-sre"),
    pytest.param(lambda: sre(family="binary"), "family", id="family-of-sre"),
    pytest.param(lambda: radial(family="shell"), "family", id="family-of-radial"),
    pytest.param(lambda: gmr_kernel(stride=2), "stride", id="stride-of-kernel"),
    pytest.param(lambda: gmr(pading=2), "pading", id="misspelt"),
]


@pytest.mark.parametrize("wrong, name", UNKNOWN)
def test_unknown_options(wrong: Callable[[], Any], name: str) -> None:
    with pytest.raises(TypeError, match=name):
        wrong()


def test_meta_tensors() -> None:
    """All tensors on meta: shapes alone, with the same checks."""
    x, w, sigma = X.to("meta"), W.to("meta"), SIGMA.to("meta")
    y = gmr(x, w, sigma, stride=2)
    assert y.is_meta
    assert y.shape == (2, 6, 3, 3)
    with pytest.raises(ValueError, match=r"^x: expected 4 channels"):
        gmr(x[:, :3], w, sigma)


EFFECTS = {"stride": 2, "padding": 1, "dilation": 2, "kernel_size": 3, "circular": False, "family": "banded"}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("option", EFFECTS)
def test_options_have_an_effect(option: str, engine: str) -> None:
    given = operands("gaussian", 2, 5, (9, 9), in_channels=4, dtype=torch.float32)
    plain = call("gaussian", 2, given, engine=engine)
    other = radconv_ext.gmr_conv2d(*given[:3], engine=engine, **{option: EFFECTS[option]})
    assert plain.shape != other.shape or not torch.allclose(plain, other, rtol=1e-2)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_padding_modes_have_an_effect(mode: str, engine: str) -> None:
    given = operands("gaussian", 2, 5, (9, 9), dtype=torch.float32)
    plain = call("gaussian", 2, given, padding=2, engine=engine)
    other = call("gaussian", 2, given, padding=2, padding_mode=mode, engine=engine)
    assert torch.allclose(plain[..., 2:-2, 2:-2], other[..., 2:-2, 2:-2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain[..., 0, :], other[..., 0, :], rtol=1e-2)


@pytest.mark.parametrize("engine", ENGINES)
def test_use_engine_insists(engine: str) -> None:
    """An engine asked for by the block is insisted on as one asked for by the call, which has the last word."""
    assert radconv_ext.current_engine() == "auto"
    with radconv_ext.use_engine(engine):
        assert radconv_ext.current_engine() == engine
        if engine == "cpu":
            with pytest.raises(ValueError, match=r"^engine: 'cpu'.*float64"):
                gmr(**DOUBLES)
        assert gmr(**DOUBLES, engine="reference").dtype is torch.float64
        with pytest.raises(ValueError, match=r"^engine: "), radconv_ext.use_engine("nothing"):
            pass
        assert radconv_ext.current_engine() == engine
    assert radconv_ext.current_engine() == "auto"
