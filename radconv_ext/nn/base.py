"""Radial convolutions as modules: `torch.nn.ConvNd` with ring weights, one implementation for every dimension.

Nothing that is derived from a parameter is kept between calls, so there is nothing that could go stale.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import Parameter, UninitializedParameter, is_lazy

from ..checks import IntOrInts, expect_flag, expect_floating_dtype, expect_integer, expect_one_of, per_axis
from ..engines import current_engine, resolve_engine
from ..functional import _call, _radial_kernel, _spec
from ..geometry import Geometry
from ..problem import check_tensors, check_weights, parse_spec
from ..profiles import FAMILIES, SIGMA_MIN, fwhm_sigma, sigma_max
from .checkpoints import identity, why_not_load
from .init import INITS, reset

__all__ = ["RadialConvNd"]

_PLAIN: dict[tuple[int, bool], Any] = {
    (1, False): nn.Conv1d,
    (2, False): nn.Conv2d,
    (3, False): nn.Conv3d,
    (1, True): nn.ConvTranspose1d,
    (2, True): nn.ConvTranspose2d,
    (3, True): nn.ConvTranspose3d,
}


class RadialConvNd(nn.Module):
    """What all radial convolutions share; use its subclasses, or `isinstance`.

    Attributes, besides those of `torch.nn.ConvNd`: `num_rings`, `circular`, `family`, `engine`, `log_sigma`, `profile`.
    They may be changed after construction wherever `torch.nn.ConvNd`'s may: every call reads them anew.
    """

    ndim: ClassVar[int]
    transposed: ClassVar[bool] = False

    weight: Tensor  # (O, C/groups, n); transposed: (C, O/groups, n)
    bias: Tensor | None  # (O,)
    log_sigma: Tensor | None  # (n,)
    profile: nn.Module | None  # of family "custom": called without arguments, gives (n, D)

    def __init__(
        self,
        in_channels: int | None,  # None: not known yet
        out_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts,
        padding: IntOrInts | str,
        dilation: IntOrInts,
        groups: int,
        bias: bool,
        padding_mode: str,
        device: Any,
        dtype: Any,
        num_rings: int | None,
        circular: bool,
        family: str,
        train_sigma: bool,
        init: str,
        engine: str | None,
        profile: nn.Module | None = None,
        output_padding: IntOrInts = 0,
    ) -> None:
        super().__init__()
        if in_channels is not None or not isinstance(self, LazyModuleMixin):
            in_channels = expect_integer("in_channels", in_channels, 1)
        out_channels = expect_integer("out_channels", out_channels, 1)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels is not None and channels % expect_integer("groups", groups, 1):
                raise ValueError(f"{name}: expected a multiple of groups = {groups}, got {channels}")
        expect_flag("bias", bias)
        expect_flag("train_sigma", train_sigma)
        expect_flag("circular", circular)
        self.init = expect_one_of("init", init, tuple(INITS))
        if dtype is not None:
            expect_floating_dtype("dtype", dtype)
        if engine is not None:
            resolve_engine(engine)
        if self.transposed and padding_mode != "zeros":
            raise ValueError(
                f"padding_mode: expected 'zeros', the only one of a transposed convolution, got {padding_mode!r}"
            )
        shells = None
        if profile is not None:
            num_rings, shells = _profile_shape(profile, num_rings)
        rings = self._rings(family, kernel_size, circular, num_rings)
        spec, _ = _spec(
            None, self.ndim, family, rings, shells, kernel_size, stride, padding, dilation, groups, padding_mode,
            circular, self.transposed, output_padding,
        )  # fmt: skip
        o = parse_spec(spec)
        if shells is not None and shells != o.geometry.buckets:
            raise ValueError(
                f"profile: expected ({rings}, {o.geometry.buckets}), rings by shells of a {self.ndim}D kernel of size "
                f"{o.kernel_size} ({'circular' if circular else 'full'} support), got ({rings}, {shells})"
            )

        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = (o.kernel_size,) * self.ndim
        self.stride = o.stride
        self.padding: tuple[int, ...] | str = (
            padding if isinstance(padding, str) else per_axis("padding", padding, self.ndim, 0)
        )
        self.output_padding = o.output_padding
        self.dilation = o.dilation
        self.groups = groups
        self.padding_mode = padding_mode
        self.num_rings = rings
        self.circular = circular
        self.family = family
        self.engine = engine
        self.profile = profile
        self._made: tuple[Any, str, str, tuple[int, ...] | None] = (None, "", "", None)

        self._add_parameters(bias, train_sigma, {"device": device, "dtype": dtype})

    def _add_parameters(self, bias: bool, train_sigma: bool, options: dict[str, Any]) -> None:
        self.weight = UninitializedParameter(**options)
        self.register_parameter("bias", Parameter(torch.empty(self.out_channels, **options)) if bias else None)
        if not FAMILIES[self.family].has_sigma:
            self.register_parameter("log_sigma", None)
        elif train_sigma:
            self.log_sigma = Parameter(torch.empty(self.num_rings, **options))
        else:
            self.register_buffer("log_sigma", torch.empty(self.num_rings, **options))
        if self.in_channels is not None:
            self.weight = Parameter(torch.empty(self._weight_shape(self.in_channels), **options))
            self.reset_parameters()

    def _rings(self, family: str, kernel_size: IntOrInts, circular: bool, num_rings: int | None) -> int:
        """The ring count asked for, or the family's own."""
        size = per_axis("kernel_size", kernel_size, self.ndim, 1)[0]
        usual = FAMILIES[family].rings_for(self.ndim, size, circular)
        if num_rings is None:
            return usual
        if family == "shell" and num_rings != usual:
            raise ValueError(
                f"num_rings: expected {usual}, one per shell, or None for family 'shell', got {num_rings!r}"
            )
        return expect_integer("num_rings", num_rings, 1)

    def _weight_shape(self, in_channels: int) -> tuple[int, int, int]:
        first, second = (in_channels, self.out_channels) if self.transposed else (self.out_channels, in_channels)
        return first, second // self.groups, self.num_rings

    def _materialize(self, in_channels: int) -> None:
        """What a lazy module does once it knows its input."""
        if in_channels < 1:
            raise ValueError("x: expected at least one channel, got 0")
        if in_channels % self.groups:
            raise ValueError(f"x: expected channels in a multiple of groups = {self.groups}, got {in_channels}")
        assert isinstance(self.weight, UninitializedParameter)
        self.in_channels = in_channels
        self.weight.materialize(self._weight_shape(in_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and bias anew by the rule `init`, and set sigma to its start, the ring width over 2.355."""
        if self.log_sigma is not None:
            with torch.no_grad():
                self.log_sigma.fill_(fwhm_sigma(self.kernel_size[0], self.num_rings)).log_()
        reset(self)

    # ---- the convolution -----------------------------------------------------------------------------------------

    def _parameter(self) -> Tensor | None:
        """Sigma, unclamped as the operator clamps it, or the profile (n, D), or None."""
        if (log_sigma := self.log_sigma) is not None:
            return log_sigma.exp()
        return None if self.profile is None else self.profile()

    def forward(self, input: Tensor) -> Tensor:  # (B, C, *S) -> (B, O, *S')
        return self._convolve(input, self.output_padding)

    def _convolve(self, x: Tensor, output_padding: tuple[int, ...]) -> Tensor:
        # a module's __getattr__ takes half a microsecond: not for what lies where it usually does
        own = self._parameters
        w: Any = own["weight"] if "weight" in own else self.weight  # noqa: SIM401  (get would read both)
        bias = own["bias"] if "bias" in own else self.bias  # noqa: SIM401
        log_sigma = own["log_sigma"] if "log_sigma" in own else self.log_sigma  # noqa: SIM401
        p, shells = log_sigma, None
        if self.profile is not None:
            p = self.profile()
            if p.dim() != 2:
                check_weights("profile", w, p)
            shells = p.shape[1]
        options = (
            self.engine, self.ndim, self.family, self.num_rings, shells, self.kernel_size, self.stride, self.padding,
            self.dilation, self.groups, self.padding_mode, self.circular, self.transposed, output_padding,
            log_sigma is not None,
        )  # fmt: skip
        if torch.compiler.is_compiling():
            spec, pad = _spec(*options)
        else:
            # the spec is only ever used for the very options, and use_engine, that it was made from
            made_from, made_under, spec, pad = self._made
            if made_from != options or made_under != current_engine():
                spec, pad = _spec(*options)
                if not any(isinstance(option, list) for option in options):  # which may change in place
                    self._made = options, current_engine(), spec, pad
        if not isinstance(x, Tensor) or x.dim() != self.ndim + 2:
            check_tensors(self.ndim, "sigma" if shells is None else "profile", x, w, p, bias)
        return _call(self.ndim, x, w, p, bias, spec, pad, self.padding_mode)

    @property
    def sigma(self) -> Tensor | None:
        """Width of each ring, (n,), in pixels (family "banded": in bands), clamped; None where there is none."""
        if self.log_sigma is None:
            return None
        return self.log_sigma.exp().clamp(SIGMA_MIN, sigma_max(self.num_rings))

    @property
    def geometry(self) -> Geometry:
        """Taps of the kernel, and which of them share a value."""
        return FAMILIES[self.family].geometry(self.ndim, self.kernel_size[0], self.num_rings, self.circular)

    def profile_matrix(self) -> Tensor:
        """Value of each ring on each bucket of `geometry`, (n, buckets), in the weight's dtype, differentiable."""
        return FAMILIES[self.family].profile(
            self.geometry, self.num_rings, self._parameter(), dtype=self.weight.dtype, device=self.weight.device
        )

    def dense_kernel(self) -> Tensor:
        """The kernel that this layer convolves with, (O, C/groups, k, ...), in the weight's dtype, differentiable."""
        return _radial_kernel(
            self.ndim, self.family, self.weight, self._parameter(), self.kernel_size[0], self.circular
        )

    @torch.no_grad()
    def to_conv(self) -> nn.Module:
        """The plain `torch.nn.ConvNd`, or transposed, with the dense kernel: same outputs, nothing of this package.

        Returns:
            A new module on the same device, in the same dtype and mode; its parameters are copies.

        Raises:
            ValueError: a lazy layer that has not seen an input.
        """
        if self.in_channels is None:
            raise ValueError("to_conv: expected a layer that knows its channels, got a lazy one; call it once before")
        kernel = self.dense_kernel()
        padding = tuple(d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True))
        extra = {"output_padding": self.output_padding} if self.transposed else {}
        conv = nn.utils.skip_init(
            _PLAIN[self.ndim, self.transposed], self.in_channels, self.out_channels, self.kernel_size,
            stride=self.stride, padding=padding if self.padding == "full" else self.padding, dilation=self.dilation,
            groups=self.groups, bias=self.bias is not None, padding_mode=self.padding_mode, device=kernel.device,
            dtype=kernel.dtype, **extra,
        )  # fmt: skip
        conv.weight.copy_(kernel).requires_grad_(self.weight.requires_grad)
        if self.bias is not None:
            conv.bias.copy_(self.bias).requires_grad_(self.bias.requires_grad)
        return conv.train(self.training)

    # ---- what is printed and saved -------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        padding = repr(self.padding) if isinstance(self.padding, str) else self.padding
        words = [
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}",
            f"num_rings={self.num_rings}, family={self.family!r}",
        ]
        for name, value, usual in (
            ("padding", padding, (0,) * self.ndim),
            ("output_padding", self.output_padding, (0,) * self.ndim),
            ("dilation", self.dilation, (1,) * self.ndim),
            ("groups", self.groups, 1),
            ("bias", self.bias is not None, True),
            ("padding_mode", self.padding_mode, "zeros"),
            ("circular", self.circular, True),
            ("train_sigma", self.log_sigma is None or isinstance(self.log_sigma, Parameter), True),
            ("engine", self.engine, None),
        ):
            if value != usual:
                words.append(f"{name}={value}")
        return ", ".join(words)

    def get_extra_state(self) -> Tensor:
        """What the ring weights mean, so that no other layer takes them for its own: see `identity`."""
        return identity(self.ndim, self.kernel_size[0], self.num_rings, self.family, self.circular, self.transposed)

    def set_extra_state(self, state: Any) -> None:
        """Nothing to restore: `_load_from_state_dict` has compared it."""

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        reason = why_not_load(self, state_dict, prefix)
        if reason is not None:
            error_msgs.append(f"{prefix.removesuffix('.') or type(self).__name__}: {reason}")
            return  # and this layer keeps what it has
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if self.in_channels is None and not is_lazy(self.weight):
            self.in_channels = self.weight.shape[0] if self.transposed else self.weight.shape[1] * self.groups


def _profile_shape(profile: Any, num_rings: int | None) -> tuple[int, int]:
    """Rings and shells of what the caller's module gives."""
    if not isinstance(profile, nn.Module):
        raise TypeError(f"profile: expected a torch.nn.Module that gives (n, D), got {type(profile).__name__}")
    with torch.no_grad():
        p = profile()
    if not isinstance(p, Tensor) or p.dim() != 2:
        got = tuple(p.shape) if isinstance(p, Tensor) else type(p).__name__
        raise ValueError(f"profile: expected a module that gives a tensor (n rings, D shells), got {got}")
    rings, shells = p.shape
    if num_rings not in (None, rings):
        raise ValueError(f"num_rings: expected {rings}, the rows of profile's {tuple(p.shape)}, got {num_rings}")
    return rings, shells
