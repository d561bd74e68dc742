"""The public radial convolutions: a signature per method, a name per dimension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from operator import index
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from ..checks import IntOrInts, expect_one_of
from ..docstrings import fill
from ..functional import _SIGMA_FAMILIES
from ..problem import check_input
from ..profiles import FAMILIES
from .base import RadialConvNd

__all__ = [
    "GMRConv1d",
    "GMRConv2d",
    "GMRConv3d",
    "GMRConvTranspose1d",
    "GMRConvTranspose2d",
    "GMRConvTranspose3d",
    "LazyGMRConv1d",
    "LazyGMRConv2d",
    "LazyGMRConv3d",
    "LazyGMRConvTranspose1d",
    "LazyGMRConvTranspose2d",
    "LazyGMRConvTranspose3d",
    "LazyRadialConv1d",
    "LazyRadialConv2d",
    "LazyRadialConv3d",
    "LazyRadialConvTranspose1d",
    "LazyRadialConvTranspose2d",
    "LazyRadialConvTranspose3d",
    "LazySREConv1d",
    "LazySREConv2d",
    "LazySREConv3d",
    "LazySREConvTranspose1d",
    "LazySREConvTranspose2d",
    "LazySREConvTranspose3d",
    "RadialConv1d",
    "RadialConv2d",
    "RadialConv3d",
    "RadialConvTranspose1d",
    "RadialConvTranspose2d",
    "RadialConvTranspose3d",
    "SREConv1d",
    "SREConv2d",
    "SREConv3d",
    "SREConvTranspose1d",
    "SREConvTranspose2d",
    "SREConvTranspose3d",
]

_Class = TypeVar("_Class", bound=type)

_PLAIN_FAMILIES = tuple(name for name, family in FAMILIES.items() if not family.has_profile)


class _GMRConv(RadialConvNd):
    """Gaussian Mixture Ring convolution, {n}: `torch.nn.Conv{nd}` whose kernel is made of rings.

    {args}
        {family_gmr}
        {train_sigma}
        {init}
        {engine}

    {attributes}
        {log_sigma}

    {raises}

    Source: GMR-Conv, arXiv 2504.02819, Sec. 3.2, Eq. 1-3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts = 1,
        padding: IntOrInts | str = 0,
        dilation: IntOrInts = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        num_rings: int | None = None,
        circular: bool = True,
        family: str = "gaussian",
        train_sigma: bool = True,
        init: str = "effective",
        engine: str | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype, num_rings, circular, expect_one_of("family", family, _SIGMA_FAMILIES), train_sigma, init, engine,
        )  # fmt: skip


class _SREConv(RadialConvNd):
    """Symmetric Rotation-Equivariant (band-constant ring) convolution, {n}: `torch.nn.Conv{nd}` made of bands.

    {args}
        {init}
        {engine}

    {attributes}

    {raises}

    Source: SRE-Conv, arXiv 2501.09753, Sec. 2.1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts = 1,
        padding: IntOrInts | str = 0,
        dilation: IntOrInts = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        num_rings: int | None = None,
        circular: bool = True,
        init: str = "effective",
        engine: str | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype, num_rings, circular, "binary", False, init, engine,
        )  # fmt: skip


class _RadialConv(RadialConvNd):
    """Radially symmetric convolution, {n}, of any family or with a profile of the caller's.

    {args}
        {family}
        {train_sigma_radial}
        {profile}
        {init}
        {engine}

    {attributes}
        {log_sigma}

    {raises}

    Source: the form that all share; one weight per shell is Symm.-Conv (Dudar & Semenov 2019).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts = 1,
        padding: IntOrInts | str = 0,
        dilation: IntOrInts = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        num_rings: int | None = None,
        circular: bool = True,
        family: str | None = None,
        train_sigma: bool | None = None,
        profile: nn.Module | None = None,
        init: str = "effective",
        engine: str | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype, num_rings, circular, *_family_and_training(family, train_sigma, profile), init, engine, profile,
        )  # fmt: skip


class Transposed(RadialConvNd):
    """What the transposed modules add: an output size that a call may ask for."""

    transposed = True

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        padding = self.output_padding if output_size is None else self._padding_for(input, output_size)
        return self._convolve(input, padding)

    def _padding_for(self, x: Tensor, output_size: Sequence[int]) -> tuple[int, ...]:
        """Output padding that gives this spatial size."""
        if len(output_size) not in (self.ndim, x.dim()):
            raise ValueError(
                f"output_size: expected {self.ndim} sizes, one per spatial axis, or {x.dim()}, got {tuple(output_size)}"
            )
        found = []
        for axis in range(-self.ndim, 0):
            reach = self.dilation[axis] * (self.kernel_size[axis] - 1)
            least = (x.shape[axis] - 1) * self.stride[axis] + reach + 1 - 2 * int(self.padding[axis])
            extra = index(output_size[axis] - least)  # torch.compile specialises on it
            most = max(self.stride[axis], self.dilation[axis]) - 1
            if not 0 <= extra <= most:
                raise ValueError(
                    f"output_size: expected {least} to {least + most} along spatial axis {axis + self.ndim} of x "
                    f"{tuple(x.shape)}, got {tuple(output_size)}"
                )
            found.append(extra)
        return tuple(found)


class _GMRConvTranspose(Transposed):
    """Gaussian Mixture Ring convolution, {n}, transposed: `torch.nn.ConvTranspose{nd}` whose kernel is made of rings.

    {args_transposed}
        {family_gmr}
        {train_sigma}
        {init}
        {engine}

    {attributes_transposed}
        {log_sigma}

    {raises}

    Source: GMR-Conv, arXiv 2504.02819, Sec. 3.2, Eq. 1-3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts = 1,
        padding: IntOrInts = 0,
        output_padding: IntOrInts = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: IntOrInts = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        num_rings: int | None = None,
        circular: bool = True,
        family: str = "gaussian",
        train_sigma: bool = True,
        init: str = "effective",
        engine: str | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype, num_rings, circular, expect_one_of("family", family, _SIGMA_FAMILIES), train_sigma, init, engine,
            None, output_padding,
        )  # fmt: skip


class _SREConvTranspose(Transposed):
    """Symmetric Rotation-Equivariant (band-constant ring) convolution, {n}, transposed.

    {args_transposed}
        {init}
        {engine}

    {attributes_transposed}

    {raises}

    Source: SRE-Conv, arXiv 2501.09753, Sec. 2.1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts = 1,
        padding: IntOrInts = 0,
        output_padding: IntOrInts = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: IntOrInts = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        num_rings: int | None = None,
        circular: bool = True,
        init: str = "effective",
        engine: str | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype, num_rings, circular, "binary", False, init, engine, None, output_padding,
        )  # fmt: skip


class _RadialConvTranspose(Transposed):
    """Radially symmetric convolution, {n}, transposed, of any family or with a profile of the caller's.

    {args_transposed}
        {family}
        {train_sigma_radial}
        {profile}
        {init}
        {engine}

    {attributes_transposed}
        {log_sigma}

    {raises}

    Source: the form that all share; one weight per shell is Symm.-Conv (Dudar & Semenov 2019).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts = 1,
        padding: IntOrInts = 0,
        output_padding: IntOrInts = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: IntOrInts = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        num_rings: int | None = None,
        circular: bool = True,
        family: str | None = None,
        train_sigma: bool | None = None,
        profile: nn.Module | None = None,
        init: str = "effective",
        engine: str | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype, num_rings, circular, *_family_and_training(family, train_sigma, profile), init, engine, profile,
            output_padding,
        )  # fmt: skip


def _family_and_training(family: str | None, train_sigma: bool | None, profile: nn.Module | None) -> tuple[str, bool]:
    """The family, "custom" for a profile of the caller's, and whether its sigma is trained."""
    if profile is not None:
        if family is not None:
            raise ValueError(f"family: expected none beside profile, which takes its place, got {family!r}")
        name = "custom"
    else:
        name = "shell" if family is None else expect_one_of("family", family, _PLAIN_FAMILIES)
    if train_sigma is not None and not FAMILIES[name].has_sigma:
        raise ValueError(f"train_sigma: expected none, as family {name!r} has no sigma, got {train_sigma!r}")
    return name, train_sigma is not False


class _Lazy(LazyModuleMixin):
    """A module that learns `in_channels` from its first input, or from the checkpoint that is loaded into it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(None, *args, **kwargs)  # type: ignore[misc]

    def _save_to_state_dict(self: Any, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]
        destination[prefix + "_extra_state"] = self.get_extra_state()  # which a lazy module leaves out

    def initialize_parameters(self: Any, input: Tensor, *args: Any, **kwargs: Any) -> None:
        if self.has_uninitialized_params():
            check_input(self.ndim, input)
            self._materialize(input.shape[-1 - self.ndim])


# ---- docstrings ------------------------------------------------------------------------------------------------------

_CHANNELS = """in_channels: channels of the input, `C`.
    out_channels: channels of the output, `O`.
    kernel_size: taps along each axis, `k`: an int, or equal ones; families of bands take odd sizes only.
    stride: int or one per axis. Default: 1."""
_DILATION = "dilation: distance between taps, int or one per axis. Default: 1."
_GROUPS = "groups: blocks of channels that are convolved apart. Default: 1."
_BIAS = "bias: whether the layer adds a trainable bias. Default: True."
_RINGS = """device, dtype: of the parameters. Default: torch's.
    num_rings: rings of the kernel, `n`. Default: `k // 2 + 1`; one more for bands without circular support; one per
        shell for family "shell".
    circular: True for taps with `|d| < k/2` only, False for the whole {cube}. Default: True."""


def _arguments(*lines: str) -> str:
    return "\n    ".join(("Args:", *lines))


_PARTS = {
    "args": _arguments(
        _CHANNELS,
        'padding: int, one per axis, "same", "valid", or "full" (`dilation * (k - 1)`). Default: 0.',
        _DILATION,
        _GROUPS,
        _BIAS,
        'padding_mode: "zeros", "circular", "reflect" or "replicate". Default: "zeros".',
        _RINGS,
    ),
    "args_transposed": _arguments(
        _CHANNELS,
        "padding: int or one per axis, taken off the output as in torch. Default: 0.",
        "output_padding: int or one per axis, added to the output's far end. Default: 0.",
        _GROUPS,
        _BIAS,
        _DILATION,
        'padding_mode: "zeros" alone, as in torch. Default: "zeros".',
        _RINGS,
    ),
    "family_gmr": """family: "gaussian" (the paper's rings) or "banded" (what package GMR-Conv 1.0.3 computes).
        Default: "gaussian".""",
    "family": """family: "gaussian", "banded", "binary" or "shell". Default: "shell", one weight per distance.""",
    "train_sigma": """train_sigma: True for `log_sigma` as a parameter, False as a buffer. Default: True.""",
    "train_sigma_radial": """train_sigma: True for `log_sigma` as a parameter, False as a buffer; only for families with
        a sigma. Default: True where there is one.""",
    "profile": """profile: a module that, called without arguments, gives the profile `(n, D)`, ring by shell;
        takes the place of `family`. Default: None.""",
    "init": """init: fan that weights are drawn by, uniformly as in torch: "effective" (the output's variance is that
        of `torch.nn.Conv{nd}`, for every k, n and family), "paper" (from `(C, n)`), "package" (from the dense
        kernel). Default: "effective".""",
    "engine": """engine: "cpu", "cuda", "triton", "reference", "auto" (by problem), or None (that of
        `radconv_ext.use_engine`, else "auto"). Default: None.""",
    "attributes": """Shape:
    x `(B, C, {axes})` or `(C, {axes})`; output `(B, O, {outs})`, or without batch, as of `torch.nn.Conv{nd}`.

Attributes:
    weight: `(O, C/groups, n)`, ring weights.
    bias: `(O,)` or None.""",
    "attributes_transposed": """Shape:
    x `(B, C, {axes})` or `(C, {axes})`; output `(B, O, {outs})`, or without batch, as of
    `torch.nn.ConvTranspose{nd}`; a call takes `output_size` too.

Attributes:
    weight: `(C, O/groups, n)`, ring weights.
    bias: `(O,)` or None.""",
    "log_sigma": """log_sigma: `(n,)`, logarithm of the rings' widths in pixels (family "banded": in bands), or None;
        the widths are clamped to `[0.01, 2n]`.""",
    "raises": """Raises:
    ValueError: an option does not fit; the message names it, what was expected, what came.
    TypeError: an option of another type.""",
}


def _of(ndim: int) -> Callable[[_Class], _Class]:
    """Give a class its dimension, and fill in its method's docstring."""

    def publish(cls: _Class) -> _Class:
        cls.ndim = ndim  # type: ignore[attr-defined]
        cls.__doc__ = fill(cls.__mro__[1].__doc__, ndim, _PARTS)
        return cls

    return publish


def _lazy(cls: _Class) -> _Class:
    """Say which class a lazy module becomes, show its signature, and document it."""
    _, eager = cls.__bases__
    cls.cls_to_become = eager  # type: ignore[attr-defined]
    shown = signature(eager)
    arguments = [a for a in shown.parameters.values() if a.name != "in_channels"]
    cls.__signature__ = shown.replace(parameters=arguments)  # type: ignore[attr-defined]
    cls.__doc__ = f"`{eager.__name__}` that takes `in_channels` from its first input, or from a checkpoint."
    return cls


@_of(1)
class GMRConv1d(_GMRConv): ...


@_of(2)
class GMRConv2d(_GMRConv): ...


@_of(3)
class GMRConv3d(_GMRConv): ...


@_of(1)
class GMRConvTranspose1d(_GMRConvTranspose): ...


@_of(2)
class GMRConvTranspose2d(_GMRConvTranspose): ...


@_of(3)
class GMRConvTranspose3d(_GMRConvTranspose): ...


@_of(1)
class SREConv1d(_SREConv): ...


@_of(2)
class SREConv2d(_SREConv): ...


@_of(3)
class SREConv3d(_SREConv): ...


@_of(1)
class SREConvTranspose1d(_SREConvTranspose): ...


@_of(2)
class SREConvTranspose2d(_SREConvTranspose): ...


@_of(3)
class SREConvTranspose3d(_SREConvTranspose): ...


@_of(1)
class RadialConv1d(_RadialConv): ...


@_of(2)
class RadialConv2d(_RadialConv): ...


@_of(3)
class RadialConv3d(_RadialConv): ...


@_of(1)
class RadialConvTranspose1d(_RadialConvTranspose): ...


@_of(2)
class RadialConvTranspose2d(_RadialConvTranspose): ...


@_of(3)
class RadialConvTranspose3d(_RadialConvTranspose): ...


@_lazy
class LazyGMRConv1d(_Lazy, GMRConv1d): ...


@_lazy
class LazyGMRConv2d(_Lazy, GMRConv2d): ...


@_lazy
class LazyGMRConv3d(_Lazy, GMRConv3d): ...


@_lazy
class LazyGMRConvTranspose1d(_Lazy, GMRConvTranspose1d): ...


@_lazy
class LazyGMRConvTranspose2d(_Lazy, GMRConvTranspose2d): ...


@_lazy
class LazyGMRConvTranspose3d(_Lazy, GMRConvTranspose3d): ...


@_lazy
class LazySREConv1d(_Lazy, SREConv1d): ...


@_lazy
class LazySREConv2d(_Lazy, SREConv2d): ...


@_lazy
class LazySREConv3d(_Lazy, SREConv3d): ...


@_lazy
class LazySREConvTranspose1d(_Lazy, SREConvTranspose1d): ...


@_lazy
class LazySREConvTranspose2d(_Lazy, SREConvTranspose2d): ...


@_lazy
class LazySREConvTranspose3d(_Lazy, SREConvTranspose3d): ...


@_lazy
class LazyRadialConv1d(_Lazy, RadialConv1d): ...


@_lazy
class LazyRadialConv2d(_Lazy, RadialConv2d): ...


@_lazy
class LazyRadialConv3d(_Lazy, RadialConv3d): ...


@_lazy
class LazyRadialConvTranspose1d(_Lazy, RadialConvTranspose1d): ...


@_lazy
class LazyRadialConvTranspose2d(_Lazy, RadialConvTranspose2d): ...


@_lazy
class LazyRadialConvTranspose3d(_Lazy, RadialConvTranspose3d): ...
