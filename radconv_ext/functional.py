"""The functional API: thin typed names over one core function, one per method and dimension.

Every convolution is a cross-correlation with exactly the semantics of `torch.nn.functional.convNd` for the dense kernel
`K[o, c, d] = sum_i w[o, c, i] * P[i, shell(d)]`; only the profile `P` differs between the methods.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from operator import index
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference
from .checks import IntOrInts, expect_one_of
from .docstrings import fill
from .engines import resolve_engine
from .ops import conv as _conv_op
from .ops import conv_decomposed, conv_transformed, differentiating
from .problem import (
    check_explicit_padding,
    check_kernel,
    check_tensors,
    check_weights,
    make_spec,
    parse_spec,
)
from .profiles import FAMILIES

_Function = TypeVar("_Function", bound=Callable[..., Tensor])
_SIGMA_FAMILIES = tuple(name for name, family in FAMILIES.items() if family.has_sigma)


@torch.compiler.assume_constant_result
def _spec(engine: str | None, *options: Any) -> tuple[str, tuple[int, ...] | None]:
    """The spec, a constant to torch.compile: a compiled function keeps the engine in force when it was traced."""
    return make_spec(resolve_engine(engine), *options)


_decomposing: ContextVar[bool] = ContextVar("radconv_ext_decomposing", default=False)


@torch.compiler.assume_constant_result
def _decomposes() -> bool:
    """Whether what is traced is to have torch's operators in place of ours: see `export.decomposed`."""
    return _decomposing.get()


def _radial_conv(
    ndim: int,
    family: str,
    x: Tensor,
    w: Tensor,
    p: Tensor | None,
    bias: Tensor | None,
    kernel_size: IntOrInts | None,
    stride: IntOrInts,
    padding: IntOrInts | str,
    dilation: IntOrInts,
    groups: int,
    padding_mode: str,
    circular: bool,
    engine: str | None,
    transposed: bool = False,
    output_padding: IntOrInts = 0,
) -> Tensor:
    """The core function: check, build the spec, call."""
    check_tensors(ndim, "profile" if family == "custom" else "sigma", x, w, p, bias)
    # index(): torch.compile must specialise on the ring count, which decides the geometry
    rings = index(w.shape[2])
    shells = index(p.shape[1]) if family == "custom" and p is not None else None
    spec, pad = _spec(
        engine, ndim, family, rings, shells, kernel_size, stride, padding, dilation, groups, padding_mode, circular,
        transposed, output_padding,
    )  # fmt: skip
    return _call(ndim, x, w, p, bias, spec, pad, padding_mode)


def _call(
    ndim: int,
    x: Tensor,
    w: Tensor,
    p: Tensor | None,
    bias: Tensor | None,
    spec: str,
    pad: tuple[int, ...] | None,  # before the operator, as F.pad takes it
    padding_mode: str,
) -> Tensor:
    """The operator, on an input of a checked rank."""
    if unbatched := x.dim() == ndim + 1:
        x = x.unsqueeze(0)
    if pad is not None:
        check_explicit_padding(x, pad, padding_mode)
        x = F.pad(x, pad, mode=padding_mode)
    if torch.compiler.is_compiling():
        # torch.compile looks into torch.func's transforms, but into no operator
        if torch._C._are_functorch_transforms_active() or _decomposes():
            y = conv_decomposed(x, w, p, bias, spec)
        else:
            y = _conv_op(x, w, p, bias, spec)
    elif torch._C._are_functorch_transforms_active():
        y = conv_transformed(x, w, p, bias, spec)
    elif torch.is_grad_enabled() or differentiating():
        y = _conv_op(x, w, p, bias, spec)
    else:
        # nothing is recorded: enter the dispatcher below autograd, which would only pass the call on
        with torch._C._AutoDispatchBelowAutograd():
            y = _conv_op(x, w, p, bias, spec)
    return y.squeeze(0) if unbatched else y


def _sigma_family(family: str) -> str:
    return expect_one_of("family", family, _SIGMA_FAMILIES)


def _radial_kernel(
    ndim: int, family: str, w: Tensor, p: Tensor | None, kernel_size: IntOrInts | None, circular: bool
) -> Tensor:
    """Dense kernel in w's dtype, differentiable."""
    check_weights("profile" if family == "custom" else "sigma", w, p)
    rings = index(w.shape[2])
    shells = index(p.shape[1]) if family == "custom" and p is not None else None
    spec, _ = _spec("reference", ndim, family, rings, shells, kernel_size, 1, 0, 1, 1, "zeros", circular, False, 0)
    options = parse_spec(spec)
    check_kernel(options, w, p)
    return reference.dense_kernel(options, w, p).to(w.dtype)


# Parts of the docstrings that all functions share; `_publish` fills them in.
_PARTS = {
    "x": "x: `(B, C, {axes})`, or `(C, {axes})` without batch; floating point.",
    "w": "w: `(O, C/groups, n)`, ring weights.",
    "w_transposed": "w: `(C, O/groups, n)`, ring weights.",
    "sigma": """sigma: `(n,)`, width of each ring in pixels (family "banded": in bands), clamped to `[0.01, 2n]`; or
        w's shape for channel-wise sigma (reference engine only).""",
    "profile": """profile: `(n, D)`, value of each ring on each of the `D` shells (distances in the support, ascending);
        None for one free weight per shell (`n = D`).""",
    "bias": "bias: `(O,)`, or None. Default: None.",
    "size": "kernel_size: taps along each axis. Default: the odd size that the ring count implies, `2n - 1`",
    "size_gmr": "(banded without circular support: `2n - 3`).",
    "size_sre": "(without circular support: `2n - 3`).",
    "size_shells": "kernel_size: taps along each axis. Default: the odd size that has `D` shells.",
    "padding": """padding: int, one per axis, "same", "valid", or "full" (`dilation * (k - 1)`: every kernel value
        meets every input value). Default: 0.""",
    "steps": """stride: int or one per axis. Default: 1.
    dilation: distance between taps, int or one per axis. Default: 1.
    groups: blocks of channels that are convolved apart. Default: 1.""",
    "padding_mode": 'padding_mode: "zeros", "circular", "reflect" or "replicate". Default: "zeros".',
    "padding_transposed": """padding: int or one per axis, taken off the output as in torch. Default: 0.
    output_padding: int or one per axis, added to the output's far end; less than stride or dilation. Default: 0.""",
    "circular": "circular: True for taps with `|d| < k/2` only, False for the whole {cube}. Default: True.",
    "family": """family: "gaussian" (the paper's rings) or "banded" (what package GMR-Conv 1.0.3 computes; odd
        sizes only). Default: "gaussian".""",
    "engine": """engine: "cpu", "cuda", "triton", "reference" or "auto" (by problem); one that can't serve the call is
        an error. Default: that of `radconv_ext.use_engine`, else "auto".""",
    "returns": """Returns:
    `(B, O, {outs})`, or without batch as x; x's dtype; channels_last where x is.

Raises:
    ValueError: a shape, size, device or option does not fit; the message names it, what was expected, what came.
    TypeError: not a tensor, or a dtype that does not fit: all have x's dtype, or float32 beside a half-precision x.""",
    "kernel_returns": """Returns:
    `(O, C/groups{ks})`, w's dtype, differentiable.

Raises:
    ValueError, TypeError: as the convolution.""",
    "gmr": "Source: GMR-Conv, arXiv 2504.02819, Sec. 3.2, Eq. 1-3.",
    "sre": "Source: SRE-Conv, arXiv 2501.09753, Sec. 2.1.",
    "radial": "Source: the form that all share; one weight per shell is Symm.-Conv (Dudar & Semenov 2019).",
}


def _publish(function: _Function, name: str, ndim: int) -> _Function:
    """Give a closure its public name and fill in its docstring."""
    function.__name__ = function.__qualname__ = name.format(ndim)
    function.__doc__ = fill(function.__doc__, ndim, _PARTS)
    return function


def _make_gmr_conv(ndim: int) -> Callable[..., Tensor]:
    def conv(
        x: Tensor,  # (B, C, *S)
        w: Tensor,  # (O, C/groups, n)
        sigma: Tensor,  # (n,)
        bias: Tensor | None = None,  # (O,)
        *,
        kernel_size: IntOrInts | None = None,
        stride: IntOrInts = 1,
        padding: IntOrInts | str = 0,
        dilation: IntOrInts = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        circular: bool = True,
        family: str = "gaussian",
        engine: str | None = None,
    ) -> Tensor:
        """Gaussian Mixture Ring convolution, {n}.

        Args:
            {x}
            {w}
            {sigma}
            {bias}
            {size}
                {size_gmr}
            {padding}
            {steps}
            {padding_mode}
            {circular}
            {family}
            {engine}

        {returns}

        {gmr}
        """
        return _radial_conv(
            ndim, _sigma_family(family), x, w, sigma, bias, kernel_size, stride, padding, dilation, groups,
            padding_mode, circular, engine,
        )  # fmt: skip

    return _publish(conv, "gmr_conv{}d", ndim)


def _make_gmr_conv_transpose(ndim: int) -> Callable[..., Tensor]:
    def conv_transpose(
        x: Tensor,  # (B, C, *S)
        w: Tensor,  # (C, O/groups, n)
        sigma: Tensor,  # (n,)
        bias: Tensor | None = None,  # (O,)
        *,
        kernel_size: IntOrInts | None = None,
        stride: IntOrInts = 1,
        padding: IntOrInts = 0,
        output_padding: IntOrInts = 0,
        dilation: IntOrInts = 1,
        groups: int = 1,
        circular: bool = True,
        family: str = "gaussian",
        engine: str | None = None,
    ) -> Tensor:
        """Gaussian Mixture Ring convolution, {n}, transposed.

        Args:
            {x}
            {w_transposed}
            {sigma}
            {bias}
            {size}
                {size_gmr}
            {padding_transposed}
            {steps}
            {circular}
            {family}
            {engine}

        {returns}

        {gmr}
        """
        return _radial_conv(
            ndim, _sigma_family(family), x, w, sigma, bias, kernel_size, stride, padding, dilation, groups, "zeros",
            circular, engine, True, output_padding,
        )  # fmt: skip

    return _publish(conv_transpose, "gmr_conv_transpose{}d", ndim)


def _make_gmr_kernel(ndim: int) -> Callable[..., Tensor]:
    def kernel(
        w: Tensor,  # (O, C/groups, n)
        sigma: Tensor,  # (n,)
        *,
        kernel_size: IntOrInts | None = None,
        circular: bool = True,
        family: str = "gaussian",
    ) -> Tensor:
        """Dense kernel of the Gaussian Mixture Ring convolution, {n}.

        Args:
            {w}
            {sigma}
            {size}
                {size_gmr}
            {circular}
            {family}

        {kernel_returns}

        {gmr}
        """
        return _radial_kernel(ndim, _sigma_family(family), w, sigma, kernel_size, circular)

    return _publish(kernel, "gmr_kernel{}d", ndim)


def _make_sre_conv(ndim: int) -> Callable[..., Tensor]:
    def conv(
        x: Tensor,  # (B, C, *S)
        w: Tensor,  # (O, C/groups, n)
        bias: Tensor | None = None,  # (O,)
        *,
        kernel_size: IntOrInts | None = None,
        stride: IntOrInts = 1,
        padding: IntOrInts | str = 0,
        dilation: IntOrInts = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        circular: bool = True,
        engine: str | None = None,
    ) -> Tensor:
        """Symmetric Rotation-Equivariant (band-constant ring) convolution, {n}.

        Args:
            {x}
            {w}
            {bias}
            {size}
                {size_sre}
            {padding}
            {steps}
            {padding_mode}
            {circular}
            {engine}

        {returns}

        {sre}
        """
        return _radial_conv(
            ndim, "binary", x, w, None, bias, kernel_size, stride, padding, dilation, groups, padding_mode,
            circular, engine,
        )  # fmt: skip

    return _publish(conv, "sre_conv{}d", ndim)


def _make_sre_conv_transpose(ndim: int) -> Callable[..., Tensor]:
    def conv_transpose(
        x: Tensor,  # (B, C, *S)
        w: Tensor,  # (C, O/groups, n)
        bias: Tensor | None = None,  # (O,)
        *,
        kernel_size: IntOrInts | None = None,
        stride: IntOrInts = 1,
        padding: IntOrInts = 0,
        output_padding: IntOrInts = 0,
        dilation: IntOrInts = 1,
        groups: int = 1,
        circular: bool = True,
        engine: str | None = None,
    ) -> Tensor:
        """Symmetric Rotation-Equivariant (band-constant ring) convolution, {n}, transposed.

        Args:
            {x}
            {w_transposed}
            {bias}
            {size}
                {size_sre}
            {padding_transposed}
            {steps}
            {circular}
            {engine}

        {returns}

        {sre}
        """
        return _radial_conv(
            ndim, "binary", x, w, None, bias, kernel_size, stride, padding, dilation, groups, "zeros",
            circular, engine, True, output_padding,
        )  # fmt: skip

    return _publish(conv_transpose, "sre_conv_transpose{}d", ndim)


def _make_sre_kernel(ndim: int) -> Callable[..., Tensor]:
    def kernel(
        w: Tensor,  # (O, C/groups, n)
        *,
        kernel_size: IntOrInts | None = None,
        circular: bool = True,
    ) -> Tensor:
        """Dense kernel of the Symmetric Rotation-Equivariant (band-constant ring) convolution, {n}.

        Args:
            {w}
            {size}
                {size_sre}
            {circular}

        {kernel_returns}

        {sre}
        """
        return _radial_kernel(ndim, "binary", w, None, kernel_size, circular)

    return _publish(kernel, "sre_kernel{}d", ndim)


def _make_radial_conv(ndim: int) -> Callable[..., Tensor]:
    def conv(
        x: Tensor,  # (B, C, *S)
        w: Tensor,  # (O, C/groups, n)
        profile: Tensor | None = None,  # (n, D)
        bias: Tensor | None = None,  # (O,)
        *,
        kernel_size: IntOrInts | None = None,
        stride: IntOrInts = 1,
        padding: IntOrInts | str = 0,
        dilation: IntOrInts = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        circular: bool = True,
        engine: str | None = None,
    ) -> Tensor:
        """Radially symmetric convolution, {n}.

        Args:
            {x}
            {w}
            {profile}
            {bias}
            {size_shells}
            {padding}
            {steps}
            {padding_mode}
            {circular}
            {engine}

        {returns}

        {radial}
        """
        return _radial_conv(
            ndim, "shell" if profile is None else "custom", x, w, profile, bias, kernel_size, stride, padding,
            dilation, groups, padding_mode, circular, engine,
        )  # fmt: skip

    return _publish(conv, "radial_conv{}d", ndim)


def _make_radial_conv_transpose(ndim: int) -> Callable[..., Tensor]:
    def conv_transpose(
        x: Tensor,  # (B, C, *S)
        w: Tensor,  # (C, O/groups, n)
        profile: Tensor | None = None,  # (n, D)
        bias: Tensor | None = None,  # (O,)
        *,
        kernel_size: IntOrInts | None = None,
        stride: IntOrInts = 1,
        padding: IntOrInts = 0,
        output_padding: IntOrInts = 0,
        dilation: IntOrInts = 1,
        groups: int = 1,
        circular: bool = True,
        engine: str | None = None,
    ) -> Tensor:
        """Radially symmetric convolution, {n}, transposed.

        Args:
            {x}
            {w_transposed}
            {profile}
            {bias}
            {size_shells}
            {padding_transposed}
            {steps}
            {circular}
            {engine}

        {returns}

        {radial}
        """
        return _radial_conv(
            ndim, "shell" if profile is None else "custom", x, w, profile, bias, kernel_size, stride, padding,
            dilation, groups, "zeros", circular, engine, True, output_padding,
        )  # fmt: skip

    return _publish(conv_transpose, "radial_conv_transpose{}d", ndim)


def _make_radial_kernel(ndim: int) -> Callable[..., Tensor]:
    def kernel(
        w: Tensor,  # (O, C/groups, n)
        profile: Tensor | None = None,  # (n, D)
        *,
        kernel_size: IntOrInts | None = None,
        circular: bool = True,
    ) -> Tensor:
        """Dense kernel of the radially symmetric convolution, {n}.

        Args:
            {w}
            {profile}
            {size_shells}
            {circular}

        {kernel_returns}

        {radial}
        """
        return _radial_kernel(ndim, "shell" if profile is None else "custom", w, profile, kernel_size, circular)

    return _publish(kernel, "radial_kernel{}d", ndim)


gmr_conv1d, gmr_conv2d, gmr_conv3d = map(_make_gmr_conv, (1, 2, 3))
gmr_conv_transpose1d, gmr_conv_transpose2d, gmr_conv_transpose3d = map(_make_gmr_conv_transpose, (1, 2, 3))
gmr_kernel1d, gmr_kernel2d, gmr_kernel3d = map(_make_gmr_kernel, (1, 2, 3))
sre_conv1d, sre_conv2d, sre_conv3d = map(_make_sre_conv, (1, 2, 3))
sre_conv_transpose1d, sre_conv_transpose2d, sre_conv_transpose3d = map(_make_sre_conv_transpose, (1, 2, 3))
sre_kernel1d, sre_kernel2d, sre_kernel3d = map(_make_sre_kernel, (1, 2, 3))
radial_conv1d, radial_conv2d, radial_conv3d = map(_make_radial_conv, (1, 2, 3))
radial_conv_transpose1d, radial_conv_transpose2d, radial_conv_transpose3d = map(_make_radial_conv_transpose, (1, 2, 3))
radial_kernel1d, radial_kernel2d, radial_kernel3d = map(_make_radial_kernel, (1, 2, 3))

__all__ = [
    "gmr_conv1d",
    "gmr_conv2d",
    "gmr_conv3d",
    "gmr_conv_transpose1d",
    "gmr_conv_transpose2d",
    "gmr_conv_transpose3d",
    "gmr_kernel1d",
    "gmr_kernel2d",
    "gmr_kernel3d",
    "radial_conv1d",
    "radial_conv2d",
    "radial_conv3d",
    "radial_conv_transpose1d",
    "radial_conv_transpose2d",
    "radial_conv_transpose3d",
    "radial_kernel1d",
    "radial_kernel2d",
    "radial_kernel3d",
    "sre_conv1d",
    "sre_conv2d",
    "sre_conv3d",
    "sre_conv_transpose1d",
    "sre_conv_transpose2d",
    "sre_conv_transpose3d",
    "sre_kernel1d",
    "sre_kernel2d",
    "sre_kernel3d",
]
