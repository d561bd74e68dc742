"""The one place where shapes, dtypes and options are checked.

`make_spec` turns the caller's static options into a canonical text such as
`2d k=9 n=5 gaussian disk stride=1,1 low=4,4 high=4,4 dilation=1,1 groups=1 zeros out=0,0 engine=auto`; it is the only
non-tensor argument of the registered operators (one string crosses the dispatcher in a fraction of the time of eight
integer lists, and an exported graph stays readable).  `RadialConvProblem` joins it with the tensors' metadata, checks
everything, and derives the geometry that every engine works from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from .checks import (
    HALF,
    IntOrInts,
    expect_dense,
    expect_flag,
    expect_floating,
    expect_integer,
    expect_one_of,
    expect_tensor,
    per_axis,
)
from .geometry import Geometry, shell_count
from .precision import product_precision
from .profiles import FAMILIES, Family, sigma_max

__all__ = ["PADDING_MODES", "Core", "Options", "RadialConvProblem", "make_spec", "parse_spec", "problem_of"]

PADDING_MODES = ("zeros", "circular", "reflect", "replicate")
_PADDING_STRINGS = ("same", "valid", "full")


@dataclass(frozen=True)
class Options:
    """Everything about one call that does not depend on its tensors."""

    ndim: int
    kernel_size: int
    rings: int
    family: str
    circular: bool  # circular support: taps with |d| < k/2 only
    stride: tuple[int, ...]  # (ndim,)
    low: tuple[int, ...]  # (ndim,) padding before the first element of each axis
    high: tuple[int, ...]  # (ndim,) padding behind the last one
    dilation: tuple[int, ...]  # (ndim,)
    groups: int
    padding_mode: str  # "zeros" or "circular"; reflect and replicate are padded before the operator
    transposed: bool
    output_padding: tuple[int, ...]  # (ndim,), transposed only
    engine: str  # an engine's name, or "auto"
    log_sigma: bool  # calls give sigma by its logarithm

    @property
    def profile_family(self) -> Family:
        return FAMILIES[self.family]

    @property
    def geometry(self) -> Geometry:
        return _geometry(self.family, self.ndim, self.kernel_size, self.rings, self.circular)

    @property
    def reach(self) -> tuple[int, ...]:
        """Distance between the first and the last tap, per axis: dilation * (k - 1)."""
        return tuple(d * (self.kernel_size - 1) for d in self.dilation)


@torch.compiler.assume_constant_result  # or torch.compile would trace its cache
def _geometry(family: str, ndim: int, kernel_size: int, rings: int, circular: bool) -> Geometry:
    return FAMILIES[family].geometry(ndim, kernel_size, rings, circular)


def _join(values: Sequence[int]) -> str:
    return ",".join(map(str, values))


def _format(o: Options) -> str:
    words = [
        f"{o.ndim}d k={o.kernel_size} n={o.rings} {o.family} {'disk' if o.circular else 'cube'}",
        f"stride={_join(o.stride)} low={_join(o.low)} high={_join(o.high)} dilation={_join(o.dilation)}",
        f"groups={o.groups} {o.padding_mode}{' transposed' if o.transposed else ''}{' log' if o.log_sigma else ''}",
        f"out={_join(o.output_padding)} engine={o.engine}",
    ]
    return " ".join(words)


def parse_spec(spec: str) -> Options:
    """Options of a text made by `make_spec`."""
    words = spec.split(" ")
    value = dict(word.split("=") for word in words if "=" in word)
    plain = [word for word in words if "=" not in word]

    def ints(key: str) -> tuple[int, ...]:
        return tuple(map(int, value[key].split(",")))

    return Options(
        ndim=int(plain[0][0]),
        kernel_size=int(value["k"]),
        rings=int(value["n"]),
        family=plain[1],
        circular=plain[2] == "disk",
        stride=ints("stride"),
        low=ints("low"),
        high=ints("high"),
        dilation=ints("dilation"),
        groups=int(value["groups"]),
        padding_mode=plain[3],
        transposed="transposed" in plain,
        output_padding=ints("out"),
        engine=value["engine"],
        log_sigma="log" in plain,
    )


# --- static options -----------------------------------------------------------------------------------------------


def _kernel_size(ndim: int, family: Family, value: Any, rings: int, shells: int | None, circular: bool) -> int:
    """Kernel size as given, or the one that the ring count (for a custom profile: its shell count) implies."""
    if value is None:
        count = rings if shells is None else shells
        size = family.kernel_size_for(ndim, count, circular)
        if size is None:
            what = f"{rings} rings of w" if shells is None else f"{shells} columns of profile"
            raise ValueError(
                f"kernel_size: no odd {ndim}D size of family {family.name!r} belongs to the {what}; pass kernel_size"
            )
        return size
    sizes = per_axis("kernel_size", value, ndim, 1)
    if len(set(sizes)) > 1:
        raise ValueError(f"kernel_size: expected one size for all axes, as a radial kernel has, got {sizes}")
    if family.odd_only and sizes[0] % 2 == 0:
        raise ValueError(
            f"kernel_size: expected an odd size, family {family.name!r} has no bands otherwise, got {sizes[0]}"
        )
    return sizes[0]


def _padding(
    value: Any, ndim: int, stride: Sequence[int], reach: Sequence[int], transposed: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if isinstance(value, str):
        expect_one_of("padding", value, _PADDING_STRINGS)
        if transposed:
            raise ValueError(f"padding: expected an int or {ndim} of them for a transposed convolution, got {value!r}")
        if value == "same":
            if any(s != 1 for s in stride):
                raise ValueError(f"padding: 'same' needs stride 1, got stride {tuple(stride)}")
            low = tuple(r // 2 for r in reach)
            return low, tuple(r - a for r, a in zip(reach, low, strict=True))
        low = tuple(reach) if value == "full" else (0,) * ndim
        return low, low
    low = per_axis("padding", value, ndim, 0)
    return low, low


@lru_cache(maxsize=4096)
def _make_spec(
    engine: str,
    ndim: int,
    family_name: str,
    rings: int,
    shells: int | None,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    padding_mode: str,
    circular: bool,
    transposed: bool,
    output_padding: Any,
    log_sigma: bool,
) -> tuple[str, tuple[int, ...] | None]:
    family = FAMILIES[family_name]
    rings = expect_integer("w: number of rings (its last size)", rings, 1)
    size = _kernel_size(ndim, family, kernel_size, rings, shells, circular)
    if family.name == "shell" and rings != (expected := shell_count(ndim, size, circular)):
        raise ValueError(
            f"w: expected {expected} rings, one per shell of a {ndim}D kernel of size {size} "
            f"({'circular' if circular else 'full'} support), got {rings}"
        )
    if family.one_hot and not circular and rings < 2 <= size:
        raise ValueError(f"w: expected at least 2 rings, bands without circular support need them, got {rings}")
    strides = per_axis("stride", stride, ndim, 1)
    dilations = per_axis("dilation", dilation, ndim, 1)
    reach = [d * (size - 1) for d in dilations]
    low, high = _padding(padding, ndim, strides, reach, transposed)
    outs = per_axis("output_padding", output_padding, ndim, 0)
    if transposed:
        for o, s, d in zip(outs, strides, dilations, strict=True):
            if o >= max(s, d):
                raise ValueError(f"output_padding: expected less than stride {s} or dilation {d}, got {o}")
    expect_one_of("padding_mode", padding_mode, PADDING_MODES)
    explicit = padding_mode in ("reflect", "replicate")
    zero = (0,) * ndim
    options = Options(
        ndim=ndim,
        kernel_size=size,
        rings=rings,
        family=family.name,
        circular=circular,
        stride=strides,
        low=zero if explicit else low,
        high=zero if explicit else high,
        dilation=dilations,
        groups=expect_integer("groups", groups, 1),
        padding_mode="zeros" if explicit else padding_mode,
        transposed=transposed,
        output_padding=outs,
        engine=engine,
        log_sigma=log_sigma,
    )
    # torch.nn.functional.pad's order: last axis first
    before = tuple(v for axis in reversed(range(ndim)) for v in (low[axis], high[axis])) if explicit else None
    return _format(options), before


def _plain(name: str, value: Any) -> Any:
    """Ints and tuples of ints as they are; 1.0 and True, which a cache can't tell from 1, and lists are not."""
    if isinstance(value, (list, tuple)):
        # any int: the minimum is checked with the rest
        return tuple(expect_integer(name, v, v) for v in value)
    return value if isinstance(value, str) else expect_integer(name, value, value)


def make_spec(
    engine: str,
    ndim: int,
    family: str,
    rings: int,
    shells: int | None,
    kernel_size: int | Sequence[int] | None,
    stride: IntOrInts,
    padding: IntOrInts | str,
    dilation: IntOrInts,
    groups: int,
    padding_mode: str,
    circular: bool,
    transposed: bool,
    output_padding: IntOrInts,
    log_sigma: bool = False,
) -> tuple[str, tuple[int, ...] | None]:
    """Canonical text of the options, and the explicit padding (`F.pad` order) that reflect and replicate need first.

    Raises ValueError or TypeError, naming the option, what was expected and what came.
    """
    if not (type(stride) is type(padding) is type(dilation) is type(groups) is type(output_padding) is int):
        stride, padding, dilation = _plain("stride", stride), _plain("padding", padding), _plain("dilation", dilation)
        groups, output_padding = expect_integer("groups", groups, 1), _plain("output_padding", output_padding)
    if kernel_size is not None and type(kernel_size) is not int:
        kernel_size = _plain("kernel_size", kernel_size)
    if type(padding_mode) is not str or type(circular) is not bool:
        expect_flag("circular", circular)
        expect_one_of("padding_mode", padding_mode, PADDING_MODES)
    return _make_spec(
        engine,
        ndim,
        family,
        rings,
        shells,
        kernel_size,
        stride,
        padding,
        dilation,
        groups,
        padding_mode,
        circular,
        transposed,
        output_padding,
        log_sigma,
    )


def check_explicit_padding(x: Tensor, pad: Sequence[int], mode: str) -> None:
    """Reflect padding stays inside the input; replicate needs something to repeat."""
    ndim = len(pad) // 2
    for axis in range(ndim):
        size, margin = x.shape[x.dim() - ndim + axis], max(pad[2 * (ndim - 1 - axis) : 2 * (ndim - axis)])
        if size <= (margin if mode == "reflect" else 0):
            raise ValueError(
                f"padding: {mode} padding of {margin} needs a larger input, got x {tuple(x.shape)} (axis {axis})"
            )


# --- the problem ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Core:
    """Index arithmetic of one convolution, without channels; always correlation with a kernel that needs no flip.

    Output element `j` meets tap `t` at virtual position `v = stride * j + dilation * t - low`.  With `upsample == u`
    the input sits at every `u`-th virtual position; elsewhere, and outside `0 <= v / u < in_size`, there are zeros (or,
    with `wrap`, the input repeats).  `low` may be negative: a crop.
    """

    in_size: tuple[int, ...]
    out_size: tuple[int, ...]
    stride: tuple[int, ...]
    upsample: tuple[int, ...]
    dilation: tuple[int, ...]
    low: tuple[int, ...]
    wrap: bool

    def adjoint(self, kernel_size: int) -> Core:
        """The operator that maps output gradients to input gradients (radial kernels are their own mirror image)."""
        reach = [d * (kernel_size - 1) for d in self.dilation]
        return Core(
            in_size=self.out_size,
            out_size=self.in_size,
            stride=self.upsample,
            upsample=self.stride,
            dilation=self.dilation,
            low=tuple(r - a for r, a in zip(reach, self.low, strict=True)),
            wrap=self.wrap,
        )


@dataclass(frozen=True)
class RadialConvProblem:
    """One checked call: options, sizes, dtypes, device and memory format.  Immutable; cached by `problem_of`."""

    options: Options
    batch: int
    in_channels: int
    out_channels: int
    in_size: tuple[int, ...]
    out_size: tuple[int, ...]
    dtype: torch.dtype  # of x and of the output
    device: torch.device
    x_strides: tuple[int, ...]
    channels_last: bool  # memory format of the output and of x's gradient
    channelwise: bool  # sigma per output and input channel: (O, C/groups, n)
    precision: str  # of float32 products on matrix units: "tf32" where torch allows it, else "ieee"
    engine_state: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)  # plans its engine keeps

    @cached_property
    def output_shape(self) -> tuple[int, ...]:
        return (self.batch, self.out_channels, *self.out_size)

    @cached_property
    def input_shape(self) -> tuple[int, ...]:
        return (self.batch, self.in_channels, *self.in_size)

    @cached_property
    def sum_dtype(self) -> torch.dtype:
        """Dtype of sums over pixels: x's, or float32 beside a half-precision x."""
        return torch.float32 if self.dtype in HALF else self.dtype

    @property
    def memory_format(self) -> torch.memory_format:
        if not self.channels_last:
            return torch.contiguous_format
        return torch.channels_last if self.options.ndim == 2 else torch.channels_last_3d

    @cached_property
    def output_is_like_x(self) -> bool:
        """Same shape, and x's strides are just those of a new tensor: `empty_like` will do."""
        return self.output_shape == self.input_shape and self.x_strides == self.output_strides

    @cached_property
    def core(self) -> Core:
        """Forward index arithmetic."""
        o = self.options
        ones = (1,) * o.ndim
        if o.transposed:
            low = tuple(r - p for r, p in zip(o.reach, o.low, strict=True))
            return Core(self.in_size, self.out_size, ones, o.stride, o.dilation, low, False)
        return Core(self.in_size, self.out_size, o.stride, ones, o.dilation, o.low, o.padding_mode == "circular")

    @cached_property
    def folds_gradient(self) -> bool:
        """Whether the gradient by x comes with the margins of circular padding, to be added back to their origin."""
        core = self.core
        return core.wrap and (core.in_size != core.out_size or any(s != 1 for s in core.stride))

    @cached_property
    def gradient_shape(self) -> tuple[int, ...]:
        """Shape of the gradient by x before `reference.folded_gradient`."""
        if not self.folds_gradient:
            return self.input_shape
        low, high = self.options.low, self.options.high
        return (*self.input_shape[:2], *(n + a + b for n, a, b in zip(self.in_size, low, high, strict=True)))

    @cached_property
    def output_strides(self) -> tuple[int, ...]:
        """Strides of an output, and, mostly, of its gradient."""
        return torch.empty(self.output_shape, device="meta", memory_format=self.memory_format).stride()

    @cached_property
    def adjoint_core(self) -> Core:
        """Index arithmetic of the gradient by x, of `gradient_shape`."""
        core = self.core
        if self.folds_gradient:
            core = replace(core, in_size=self.gradient_shape[2:], low=(0,) * len(core.low), wrap=False)
        return core.adjoint(self.options.kernel_size)

    def sigma(self, p: Tensor | None) -> Tensor | None:
        """What engines take: sigma, where a call gives its logarithm; else p as it is."""
        return p.exp() if self.options.log_sigma and p is not None else p

    def differentiable_sigma(self, p: Tensor | None) -> Tensor | None:
        """As `sigma`, but never infinite: beyond the bound where sigma is clamped, 0 * inf would be a NaN gradient."""
        if p is None or not self.options.log_sigma:
            return p
        return p.clamp_max(math.log(sigma_max(self.options.rings)) + 1).exp()

    def sigma_gradient(self, p: Tensor | None, grad: Tensor | None) -> Tensor | None:
        """The gradient by p from that by `sigma(p)`."""
        if grad is None or not self.options.log_sigma:
            return grad
        sigma = self.differentiable_sigma(p)
        assert sigma is not None
        return grad * sigma

    @cached_property
    def engine(self) -> Any:
        """The engine that serves this problem; ValueError when the one asked for can't."""
        from .engines import choose

        return choose(self)

    def __str__(self) -> str:
        o = self.options
        return f"{_format(o)} x={self.input_shape} -> {self.output_shape} {str(self.dtype)[6:]} on {self.device}"


def check_weights(parameter: str, w: Any, p: Any) -> None:
    """Tensors, and ranks of w and the profile: what a spec needs before it can be built."""
    expect_tensor("w", w)
    if p is not None:
        expect_tensor(parameter, p)
    if w.dim() != 3:
        raise ValueError(f"w: expected 3 dimensions (O, C/groups, n rings), got {tuple(w.shape)}")
    if parameter == "profile" and p is not None and p.dim() != 2:
        raise ValueError(f"profile: expected 2 dimensions (n rings, D shells), got {tuple(p.shape)}")


def check_tensors(ndim: int, parameter: str, x: Any, w: Any, p: Any, bias: Any) -> None:
    """What the functional layer needs before it can build a spec: tensors, and their ranks."""
    expect_tensor("x", x)
    check_weights(parameter, w, p)
    if bias is not None:
        expect_tensor("bias", bias)
    _check_rank(ndim, x)


def check_input(ndim: int, x: Any) -> None:
    """What a layer needs to learn its channels."""
    expect_tensor("x", x)
    expect_floating("x", x)
    _check_rank(ndim, x)


def _check_rank(ndim: int, x: Tensor) -> None:
    if x.dim() not in (ndim + 1, ndim + 2):
        raise ValueError(
            f"x: expected {ndim + 2} dimensions (B, C, {ndim} spatial), or {ndim + 1} without batch, "
            f"got {tuple(x.shape)}"
        )


def _check_dtypes(main: str, x: Tensor, named: dict[str, Tensor | None]) -> None:
    """Every tensor is on x's device and has its dtype, or float32 beside a half-precision x."""
    expect_floating(main, x)
    allowed = (x.dtype, torch.float32) if x.dtype in HALF else (x.dtype,)
    for name, t in named.items():
        if t is None:
            continue
        if t.dtype not in allowed:
            raise TypeError(f"{name}: expected {' or '.join(map(str, allowed))}, as {main} is {x.dtype}, got {t.dtype}")
        if t.device != x.device:
            raise ValueError(f"{name}: expected on {x.device}, where {main} is, got {t.device}")


def check_kernel(o: Options, w: Tensor, p: Tensor | None) -> None:
    """What a dense kernel alone needs."""
    expect_dense("w", w)
    _check_dtypes("w", w, {_parameter_name(o): p})
    check_parameter(o, w, p)


def _parameter_name(o: Options) -> str:
    return "profile" if o.profile_family.has_profile else "sigma"


def check_parameter(o: Options, w: Tensor, p: Tensor | None) -> bool:
    """Sigma's or the profile's shape; True for channel-wise sigma."""
    family = o.profile_family
    if family.has_profile:
        expected = (o.rings, o.geometry.buckets)
        if p is None or tuple(p.shape) != expected:
            got = "none" if p is None else tuple(p.shape)
            raise ValueError(
                f"profile: expected {expected}, rings of w {tuple(w.shape)} by shells of a {o.ndim}D kernel of size "
                f"{o.kernel_size} ({'circular' if o.circular else 'full'} support), got {got}"
            )
        return False
    if not family.has_sigma:
        if p is not None:
            raise ValueError(f"sigma: family {o.family!r} has none, got a tensor of shape {tuple(p.shape)}")
        return False
    if p is None or tuple(p.shape) not in ((o.rings,), tuple(w.shape)):
        got = "none" if p is None else tuple(p.shape)
        raise ValueError(
            f"sigma: expected ({o.rings},), one per ring of w {tuple(w.shape)}, or w's shape for channel-wise sigma, "
            f"got {got}"
        )
    return p.dim() != 1


def _output_size(o: Options, in_size: Sequence[int]) -> tuple[int, ...]:
    if o.transposed:
        return tuple(
            (n - 1) * s + r + 1 - a - b + extra
            for n, s, r, a, b, extra in zip(in_size, o.stride, o.reach, o.low, o.high, o.output_padding, strict=True)
        )
    return tuple(
        (n + a + b - r - 1) // s + 1 for n, a, b, r, s in zip(in_size, o.low, o.high, o.reach, o.stride, strict=True)
    )


def _is_channels_last(ndim: int, x: Tensor) -> bool:
    """Convolution's rule: an input that is dense in channels_last, and not in the contiguous format too, keeps it."""
    if ndim == 1 or x.is_contiguous():
        return False
    return x.is_contiguous(memory_format=torch.channels_last if ndim == 2 else torch.channels_last_3d)


def build_problem(spec: str, x: Tensor, w: Tensor, p: Tensor | None, bias: Tensor | None) -> RadialConvProblem:
    """Check everything that involves a tensor; sizes may be symbolic."""
    o = parse_spec(spec)
    for name, t in (("x", x), ("w", w), (_parameter_name(o), p), ("bias", bias)):
        if t is not None:
            expect_dense(name, t)
    _check_dtypes("x", x, {"w": w, _parameter_name(o): p, "bias": bias})
    if x.dim() != o.ndim + 2:
        raise ValueError(f"x: expected {o.ndim + 2} dimensions (B, C, {o.ndim} spatial), got {tuple(x.shape)}")
    if w.dim() != 3 or w.shape[2] != o.rings:
        raise ValueError(f"w: expected (O, C/groups, {o.rings} rings), got {tuple(w.shape)}")
    first, second = w.shape[0], w.shape[1]
    channels = x.shape[1]
    if channels == 0 or first == 0 or second == 0:
        raise ValueError(f"x, w: expected at least one channel, got x {tuple(x.shape)} and w {tuple(w.shape)}")
    in_name = "C" if o.transposed else "O"
    if first % o.groups:
        raise ValueError(f"groups: expected a divisor of {in_name} = {first} (w {tuple(w.shape)}), got {o.groups}")
    expected = first if o.transposed else second * o.groups
    if channels != expected:
        how = "its first size" if o.transposed else f"C/groups = {second} times groups = {o.groups}"
        raise ValueError(f"x: expected {expected} channels from w {tuple(w.shape)} ({how}), got x {tuple(x.shape)}")
    out_channels = second * o.groups if o.transposed else first
    channelwise = check_parameter(o, w, p)
    if bias is not None and tuple(bias.shape) != (out_channels,):
        raise ValueError(f"bias: expected ({out_channels},), one per output channel, got {tuple(bias.shape)}")
    in_size = tuple(x.shape[2:])
    for axis, n in enumerate(in_size):
        if n < 1:
            raise ValueError(f"x: expected at least one element along each spatial axis, got {tuple(x.shape)}")
        if o.padding_mode == "circular" and max(o.low[axis], o.high[axis]) > n:
            raise ValueError(
                f"padding: circular padding of {max(o.low[axis], o.high[axis])} would wrap more than once around "
                f"size {n}, got x {tuple(x.shape)} (spatial axis {axis})"
            )
    out_size = _output_size(o, in_size)
    if any(m < 1 for m in out_size):
        raise ValueError(
            f"x: the output would be empty: size {out_size} from {in_size}, kernel size {o.kernel_size}, dilation "
            f"{o.dilation}, padding {o.low} and {o.high}"
        )
    return RadialConvProblem(
        options=o,
        batch=x.shape[0],
        in_channels=channels,
        out_channels=out_channels,
        in_size=in_size,
        out_size=out_size,
        dtype=x.dtype,
        device=x.device,
        x_strides=x.stride(),
        channels_last=_is_channels_last(o.ndim, x),
        channelwise=channelwise,
        precision=product_precision(x),
    )


_problems: dict[tuple[Any, ...], RadialConvProblem] = {}
_MOST_PROBLEMS = 4096


def problem_of(spec: str, x: Tensor, w: Tensor, p: Tensor | None, bias: Tensor | None) -> RadialConvProblem:
    """Problem of a call on real tensors; built and checked once per combination of metadata."""
    if x.layout is not torch.strided:
        expect_dense("x", x)  # has no strides to look up
    key = (
        spec, x.shape, x.stride(), x.dtype, x.device, product_precision(x) if x.is_cuda else None,
        w.shape, w.dtype, w.device, w.layout,
        None if p is None else (p.shape, p.dtype, p.device, p.layout),
        None if bias is None else (bias.shape, bias.dtype, bias.device, bias.layout),
    )  # fmt: skip
    problem = _problems.get(key)
    if problem is None:
        problem = build_problem(spec, x, w, p, bias)
        if len(_problems) >= _MOST_PROBLEMS:
            _problems.clear()
        _problems[key] = problem
    return problem
