"""Who computes the problems: this package's engines and every alternative, one class each, one list of all.

A peer says why it can't take a problem, or builds the tensors and the call for it, beside a definition of what that
call should return.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import radconv_ext
from radconv_ext.engines import ENGINES

from .networks import NETWORKS, ResNet18, deployed
from .problems import MODES, NetworkProblem, Problem
from .third_party import gmr_module, import_e2cnn, import_escnn, reason, sre_module
from .work import Parameters, Work, by_norm, corner, disagreements, recording, relative, step_of, unsearched

DENSE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Peer:
    """One way to compute a problem."""

    name: str
    label: str
    tier = "all"  # "core": runs every problem; "all": those with all peers; "named": those that name it
    modes: tuple[str, ...] = MODES
    ndims: tuple[int, ...] = (1, 2, 3)
    groups = True

    def concerns(self, problem: Problem) -> bool:
        """Whether the problem asks for this peer."""
        if isinstance(problem.peers, tuple):
            return self.name in problem.peers
        return self.tier == "core" or self.tier == problem.peers

    def why_not(self, problem: Problem, device: str) -> str | None:
        """The reason why this peer can't have a figure for the problem, None when it can."""
        if problem.ndim not in self.ndims:
            return f"has no {problem.ndim}D form"
        if problem.groups > 1 and not self.groups:
            return "has no form with groups"
        return self.missing(problem, device)

    def missing(self, problem: Problem, device: str) -> str | None:
        return None

    def flops(self, problem: Problem) -> float:
        """Of one forward call, roughly: what a step may take is judged by it."""
        return problem.dense_flops

    def build(self, problem: Problem, device: str) -> Work:
        raise NotImplementedError

    def errors(self, work: Work, problem: Problem, mode: str, device: str, flops: float) -> dict[str, float]:
        """Relative errors against the definition, which may take so many FLOPs, in float64."""
        needed = max(self.flops(problem), problem.dense_flops)
        return disagreements(work, problem, mode, device, corner(problem, needed, flops))


def drawn(problem: Problem, last: int, device: str) -> Tensor:
    """Weights (O, C/groups, last) of the problem's dtype, the same for all peers with as many."""
    generator = torch.Generator(device).manual_seed(7)
    shape = (problem.outputs, problem.channels // problem.groups, last)
    return torch.randn(shape, generator=generator, device=device).to(problem.dtype)


def options(problem: Problem) -> dict[str, Any]:
    return {"padding": problem.kernel_size // 2, "groups": problem.groups}


def function(kind: str, problem: Problem) -> Callable[..., Tensor]:
    """`radconv_ext.{kind}{ndim}d`."""
    return getattr(radconv_ext, f"{kind}{problem.ndim}d")


def by_kernel(problem: Problem, kernel: Callable[[Parameters], Tensor]) -> Callable[[Tensor, Parameters], Tensor]:
    """The definition of every peer here: torch's convolution with the dense kernel that the parameters make."""
    return lambda x, parameters: DENSE[problem.ndim](x, kernel(parameters), **options(problem))


def gaussian(problem: Problem, device: str) -> tuple[Parameters, Callable[[Parameters], Tensor]]:
    """Ring weights and sigma of a GMR convolution, and the dense kernel by definition."""
    w, sigma = drawn(problem, problem.rings, device), radconv_ext.default_sigma(problem.kernel_size).to(device)
    return {"w": w, "sigma": sigma}, lambda p: function("gmr_kernel", problem)(p["w"], p["sigma"])


def laid_out(module: nn.Module, problem: Problem) -> nn.Module:
    """The module, with kernels in the problem's layout."""
    for parameter in module.parameters():
        parameter.data = problem.laid_out(parameter.data)
    return module


def functional(
    problem: Problem, parameters: Parameters, kernel: Callable[[Parameters], Tensor], run: Callable[..., Tensor]
) -> Work:
    """A peer without a module: `run(x, *parameters)`."""
    leaves = {name: t.detach().requires_grad_() for name, t in parameters.items()}
    definition = by_kernel(problem, kernel)
    return Work(lambda x: run(x, *leaves.values()), leaves, definition, problem.channels, problem.outputs)


# ---- this package ----------------------------------------------------------------------------------------------------


class Radconv(Peer):
    """`gmr_convNd` by one engine."""

    tier = "core"

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.name, self.label = f"radconv_{engine}", f"radconv_ext, engine {engine!r}"

    def missing(self, problem: Problem, device: str) -> str | None:
        if os.environ.get("TRITON_INTERPRET") == "1" and self.engine == "triton":
            return "Triton's interpreter is on: that is no speed"
        if device == "cpu" and self.engine in ("cuda", "triton"):
            return "serves GPUs"
        if device == "cuda" and self.engine == "cpu":
            return "serves CPUs"
        return ENGINES[self.engine].why_missing()

    def build(self, problem: Problem, device: str) -> Work:
        convolve = function("gmr_conv", problem)
        run = lambda x, w, sigma: convolve(x, w, sigma, engine=self.engine, **options(problem))
        return functional(problem, *gaussian(problem, device), run)


class ModuleCall(Peer):
    """`nn.GMRConv2d`."""

    name = "GMRConv2d"
    label = "nn.GMRConv2d"
    tier = "named"
    modes = ("forward", "recording")

    def run(self, layer: nn.Module, problem: Problem) -> Callable[[Tensor], Tensor]:
        return layer

    def build(self, problem: Problem, device: str) -> Work:
        p = problem
        layer = radconv_ext.nn.GMRConv2d(p.channels, p.outputs, p.kernel_size, device=device, **options(p))
        parameters = dict(layer.named_parameters())
        definition = lambda x, t: DENSE[2](
            x, radconv_ext.gmr_kernel2d(t["weight"], t["log_sigma"].exp()), t["bias"], **options(p)
        )
        return Work(self.run(layer, p), parameters, definition, p.channels, p.outputs)


class FunctionCall(ModuleCall):
    """`gmr_conv2d` with the module's parameters."""

    name = "gmr_conv2d"
    label = "gmr_conv2d"

    def run(self, layer: nn.Module, problem: Problem) -> Callable[[Tensor], Tensor]:
        convolve, kwargs = radconv_ext.gmr_conv2d, options(problem)
        weight, bias, sigma = layer.weight, layer.bias, layer.log_sigma.detach().exp().requires_grad_()
        return lambda x: convolve(x, weight, sigma, bias, **kwargs)


class RadconvFolded(Peer):
    """A trained layer made a plain dense one, `layer.to_conv()`."""

    name = "radconv_folded"
    label = "radconv_ext, folded to a dense layer"
    tier = "core"
    modes = ("inference",)

    def build(self, problem: Problem, device: str) -> Work:
        kind = getattr(radconv_ext.nn, f"GMRConv{problem.ndim}d")
        layer = kind(problem.channels, problem.outputs, problem.kernel_size, bias=False, **options(problem))
        parameters, kernel = gaussian(problem, device)
        with torch.no_grad():
            layer.weight.copy_(parameters["w"])
        conv = laid_out(layer.to_conv().to(device, problem.dtype), problem)
        fixed = {name: t.double() for name, t in parameters.items()}
        definition = by_kernel(problem, lambda _: kernel(fixed))
        return Work(conv, dict(conv.named_parameters()), definition, problem.channels, problem.outputs)


# ---- plain torch -----------------------------------------------------------------------------------------------------


class TorchConv(Peer):
    name = "torch_conv"
    label = "torch's dense convolution"
    tier = "core"

    def build(self, problem: Problem, device: str) -> Work:
        parameters, kernel = gaussian(problem, device)
        dense = {"kernel": problem.laid_out(kernel(parameters))}
        convolve = DENSE[problem.ndim]
        return functional(problem, dense, lambda p: p["kernel"], lambda x, k: convolve(x, k, **options(problem)))


def distances(problem: Problem) -> tuple[Tensor, Tensor]:
    """Distance of every tap from the centre, and 1 within the kernel's disk or ball, 0 outside; (k, .., k) each."""
    k = problem.kernel_size
    axis = torch.arange(k) - k // 2
    squared = sum(d.square() for d in torch.meshgrid(*[axis] * problem.ndim, indexing="ij"))
    assert isinstance(squared, Tensor)
    return squared.sqrt(), (4 * squared < k * k).float()


def ring_profile(problem: Problem, device: str) -> Callable[[Tensor], Tensor]:
    """sigma (n,) -> Gaussian rings (n, k, .., k) in torch's operations, by the GMR-Conv paper's Eq. 1-3."""
    radius, inside = (t.to(device) for t in distances(problem))
    n = problem.rings
    mu = torch.arange(n, device=device) * problem.kernel_size / (2 * (n - 1))
    column = (n, *[1] * problem.ndim)

    def profile(sigma: Tensor) -> Tensor:
        width = sigma.clamp(1e-2, 2 * n).view(column)
        return torch.exp(-(radius - mu.view(column)).square() / (2 * width.square())) * inside

    return profile


class NaiveGMR(Peer):
    """The dense kernel is made anew in each call."""

    name = "naive_gmr"
    label = "GMR-Conv, dense kernel rebuilt each call"
    tier = "core"

    def build(self, problem: Problem, device: str) -> Work:
        profile, convolve = ring_profile(problem, device), DENSE[problem.ndim]

        def run(x: Tensor, w: Tensor, sigma: Tensor) -> Tensor:
            rings = profile(sigma).to(w.dtype).flatten(1)
            kernel = problem.laid_out((w @ rings).unflatten(-1, [problem.kernel_size] * problem.ndim))
            return convolve(x, kernel, **options(problem))

        return functional(problem, *gaussian(problem, device), run)


def ring_flops(problem: Problem) -> float:
    """Ring filters of every channel, tap by tap, then the mixing."""
    p = problem
    mixing = p.outputs * (p.channels // p.groups) * p.rings
    return 2 * p.pixels * (p.channels * p.rings * p.kernel_size**p.ndim + mixing)


class Unfused(Peer):
    """n ring filters that all channels share, then a 1x1 convolution of n * C maps, in torch's operations."""

    name = "unfused"
    label = "ring filters, then 1x1 mixing, in torch"

    def flops(self, problem: Problem) -> float:
        return ring_flops(problem)

    def run(self, problem: Problem, device: str) -> Callable[..., Tensor]:
        profile, convolve, p = ring_profile(problem, device), DENSE[problem.ndim], problem
        ones = [1] * p.ndim

        def run(x: Tensor, w: Tensor, sigma: Tensor) -> Tensor:
            filters = profile(sigma).to(x.dtype).unsqueeze(1)  # (n, 1, k, .., k)
            rings = convolve(x.reshape(-1, 1, *p.size), filters, padding=p.kernel_size // 2)
            rings = rings.reshape(p.batch, p.channels * p.rings, *p.size)
            return convolve(rings, w.reshape(p.outputs, -1, *ones), groups=p.groups)

        return run

    def build(self, problem: Problem, device: str) -> Work:
        return functional(problem, *gaussian(problem, device), self.run(problem, device))


class Mixing(Peer):
    """The 1x1 convolution alone, of ring maps (B, n * C, *S) that it doesn't compute."""

    name = "mixing_alone"
    label = "1x1 mixing of ring maps that are there, in torch"
    tier = "named"

    def flops(self, problem: Problem) -> float:
        return problem.dense_flops * problem.rings / problem.kernel_size**problem.ndim

    def build(self, problem: Problem, device: str) -> Work:
        p, convolve = problem, DENSE[problem.ndim]
        w = drawn(p, p.rings, device).reshape(p.outputs, -1, *[1] * p.ndim)
        leaves = {"w": p.laid_out(w).requires_grad_()}
        mix = lambda x, t: convolve(x, t["w"], groups=p.groups)
        return Work(lambda x: mix(x, leaves), leaves, mix, p.channels * p.rings, p.outputs)


class UnfusedCompiled(Unfused):
    name = "unfused_compiled"
    label = "the same under torch.compile"

    def missing(self, problem: Problem, device: str) -> str | None:
        if problem.quick or problem.protocol == "paper":
            return "compiles for longer than these problems take"
        needed = ("c++", "g++", "clang++")
        return None if any(map(shutil.which, needed)) else f"torch.compile needs a C++ compiler, looked for {needed}"

    def run(self, problem: Problem, device: str) -> Callable[..., Tensor]:
        torch.compiler.reset()  # or many problems would reach the limit of recompilations, which runs eagerly
        return torch.compile(super().run(problem, device), dynamic=False, fullgraph=True)


class SymmConv(Peer):
    """One weight per distance, gathered to a dense kernel (Dudar & Semenov 2019)."""

    name = "symm_conv"
    label = "Symm.-Conv, one weight per radius"

    def build(self, problem: Problem, device: str) -> Work:
        radius, inside = distances(problem)
        within = radius[inside.bool()]
        shells = within.unique()
        # the place outside the disk takes a zero behind the weights
        shell = torch.where(inside.bool(), torch.searchsorted(shells, radius), len(shells)).to(device)
        convolve = DENSE[problem.ndim]

        def run(x: Tensor, w: Tensor) -> Tensor:
            return convolve(x, problem.laid_out(F.pad(w, (0, 1))[..., shell]), **options(problem))

        kernel = function("radial_kernel", problem)
        return functional(problem, {"w": drawn(problem, len(shells), device)}, lambda p: kernel(p["w"]), run)


# ---- the authors' packages -------------------------------------------------------------------------------------------


def from_module(problem: Problem, device: str, layer: nn.Module, kernel: Callable[[Parameters], Tensor]) -> Work:
    """A released layer, with weights as after training."""
    with torch.no_grad():
        layer.weight.copy_(drawn(problem, layer.weight.shape[-1], "cpu"))
    layer.to(device, problem.dtype)
    parameters = dict(layer.named_parameters())
    return Work(layer, parameters, by_kernel(problem, kernel), problem.channels, problem.outputs, layer)


class ReleasedGMR(Peer):
    """Layer of the package GMR-Conv 1.0.3: ring filters and mixing in 2D, the dense kernel in 3D (cached in eval)."""

    name = "released_gmr"
    label = "GMR-Conv 1.0.3, released layer"
    tier = "core"
    ndims = (2, 3)
    groups = False

    def flops(self, problem: Problem) -> float:
        return ring_flops(problem) if problem.ndim == 2 else problem.dense_flops

    def missing(self, problem: Problem, device: str) -> str | None:
        return reason(gmr_module)

    def build(self, problem: Problem, device: str) -> Work:
        p = problem
        kind = getattr(gmr_module(), f"GMR_Conv{p.ndim}d")
        layer = kind(p.channels, p.outputs, p.kernel_size, bias=False, padding=p.kernel_size // 2)
        kernel = function("gmr_kernel", p)
        return from_module(p, device, layer, lambda t: kernel(t["weight"], t["log_sigmas"].exp(), family="banded"))


class ReleasedSRE(Peer):
    """Layer of the package SRE-Conv 1.0.2: the dense kernel, made in each call, cached in eval."""

    name = "released_sre"
    label = "SRE-Conv 1.0.2, released layer"
    ndims = (2, 3)

    def missing(self, problem: Problem, device: str) -> str | None:
        return reason(sre_module)

    def build(self, problem: Problem, device: str) -> Work:
        kind = getattr(sre_module(), f"SRE_Conv{problem.ndim}d")
        layer = kind(problem.channels, problem.outputs, problem.kernel_size, bias=False, **options(problem))
        kernel = function("sre_kernel", problem)
        return from_module(problem, device, layer, lambda t: kernel(t["weight"]))


# ---- group convolutions ----------------------------------------------------------------------------------------------


def group_package(space: str) -> tuple[ModuleType, ModuleType]:
    return import_escnn() if space == "octahedral" else import_e2cnn()


@lru_cache(maxsize=8)
def group_layer(space: str, fields: int, outputs: int, kernel_size: int) -> tuple[nn.Module, Any, Any]:
    """A layer between regular fields, and their types: a second of work, done once for all modes of a problem."""
    gspaces, enn = group_package(space)
    on = {
        "c8": lambda: gspaces.Rot2dOnR2(8),
        "p4": lambda: gspaces.Rot2dOnR2(4),
        "p4m": lambda: gspaces.FlipRot2dOnR2(4),
        "octahedral": lambda: gspaces.octaOnR3(),
    }[space]()
    kinds = [enn.FieldType(on, [on.regular_repr] * n) for n in (fields, outputs)]
    kind = enn.R3Conv if space == "octahedral" else enn.R2Conv
    # the packages' own start takes most of the time, and the numbers don't matter here
    layer = kind(*kinds, kernel_size, padding=kernel_size // 2, bias=False, initialize=False)
    layer.weights.data.normal_(std=fields**-0.5, generator=torch.Generator().manual_seed(7))
    return layer, *kinds


class GroupConv(Peer):
    """Convolution between regular fields of a group, which holds `order` channels for each field.

    With equal fields, as the GMR-Conv paper compared, it has `order` times the problem's channels; with equal width it
    has the problem's channels and `order` times fewer fields.
    """

    groups = False

    def __init__(self, name: str, label: str, space: str, order: int, width: bool, ndim: int) -> None:
        self.name, self.label, self.ndims = name, label, (ndim,)
        self.space, self.order, self.width = space, order, width

    def missing(self, problem: Problem, device: str) -> str | None:
        if self.width and (problem.channels % self.order or problem.outputs % self.order):
            return f"{problem.channels} to {problem.outputs} channels are no whole fields of {self.order}"
        return reason(lambda: group_package(self.space))

    def flops(self, problem: Problem) -> float:
        return problem.dense_flops * (1 if self.width else self.order**2)

    def layer(self, problem: Problem, device: str) -> tuple[nn.Module, Any, Any]:
        by = self.order if self.width else 1
        layer, of, to = group_layer(self.space, problem.channels // by, problem.outputs // by, problem.kernel_size)
        return layer.to(device, problem.dtype), of, to

    def build(self, problem: Problem, device: str) -> Work:
        layer, of, to = self.layer(problem, device)
        geometric = group_package(self.space)[1].GeometricTensor

        def definition(x: Tensor, _: Parameters) -> Tensor:
            kernel = layer.expand_parameters()[0].detach().double()
            return DENSE[problem.ndim](x, kernel, padding=problem.kernel_size // 2)

        return Work(
            lambda x: layer(geometric(x, of)).tensor,
            dict(layer.named_parameters()),
            definition,
            of.size,
            to.size,
            layer,
        )


class Exported(GroupConv):
    """The same as a plain layer of torch."""

    modes = ("inference",)

    def build(self, problem: Problem, device: str) -> Work:
        work = super().build(problem, device)
        layer, *_ = self.layer(problem, device)
        conv = laid_out(layer.eval().export().to(device, problem.dtype), problem)
        work.call, work.parameters, work.module = conv, dict(conv.named_parameters()), None
        return work


def group_peers(name: str, label: str, space: str, order: int, ndim: int = 2) -> list[Peer]:
    """Equal fields and equal width, each as a layer of its package and exported."""
    made: list[Peer] = []
    for width in (False, True):
        for kind in (GroupConv, Exported):
            own = name + "_width" * width + "_exported" * (kind is Exported)
            equal = f"equal {'width' if width else 'fields'}{', exported' if kind is Exported else ''}"
            made.append(kind(own, f"{label}, {equal}", space, order, width, ndim))
    return made


# ---- whole networks --------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class NetworkWork(Work):
    """A network and its copy in float64; outside training, its deployed form is called."""

    double: ResNet18
    form: str
    problem: Problem

    def enter(self, mode: str) -> None:
        assert isinstance(self.module, ResNet18)
        super().enter(mode)
        self.call = self.module if mode == "training" else laid_out(deployed(self.module)[self.form], self.problem)


class Network(Peer):
    """A ResNet-18-shaped network of `networks.NETWORKS`; for inference in the form that one deploys."""

    tier = "named"
    modes = ("inference", "training")

    def __init__(self, network: str, label: str, form: str, load: Callable[[], Any], folded: bool = False) -> None:
        self.name = f"{network}_resnet{'_folded' if folded else ''}"
        self.network, self.label, self.form, self.load = network, label, form, load
        if folded:
            self.modes = ("inference",)

    def missing(self, problem: Problem, device: str) -> str | None:
        return reason(self.load)

    def build(self, problem: Problem, device: str) -> Work:
        assert isinstance(problem, NetworkProblem)
        torch.manual_seed(0)
        model = NETWORKS[self.network](problem.width, problem.outputs)
        double = copy.deepcopy(model).to(device, torch.float64)
        model.to(device, problem.dtype)

        def definition(x: Tensor, parameters: Parameters) -> Tensor:
            with radconv_ext.use_engine("reference"):
                return torch.func.functional_call(double, parameters, (x,))

        laid_out(model, problem)
        parameters = dict(model.named_parameters())
        return NetworkWork(
            model, parameters, definition, problem.channels, problem.outputs, model, False,
            double=double, form=self.form, problem=problem,
        )  # fmt: skip

    def errors(self, work: Work, problem: Problem, mode: str, device: str, flops: float) -> dict[str, float]:
        """A few samples through the network and through its copy in float64; all gradients as one vector, by norm.

        Where rounding decides on which side of zero an input of a ReLU lies, single gradients differ much.
        """
        assert isinstance(work, NetworkWork)
        x, grad = (t[:4] for t in problem.data(work.channels, work.outputs, device))
        work.double.train(mode == "training")
        with recording(mode):
            got = step_of(work, mode, x, grad)()
        with recording(mode), unsearched():
            named = {name: t.detach().double().requires_grad_() for name, t in work.parameters.items()}
            y = work.definition(x.double(), named if mode == "training" else {})
            if mode != "training":
                return {"output": relative(got, y)}
            expected = torch.autograd.grad(y, list(named.values()), grad.double())
        return {"output": relative(got[0], y), "gradients": by_norm(got[1:], expected)}


# The one list: a new peer is a class and a line here.
PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        TorchConv(),
        *map(Radconv, ENGINES),
        RadconvFolded(),
        FunctionCall(),
        ModuleCall(),
        NaiveGMR(),
        Unfused(),
        UnfusedCompiled(),
        Mixing(),
        ReleasedGMR(),
        ReleasedSRE(),
        SymmConv(),
        *group_peers("e2_conv", "E(2)-Conv, 8 rotations", "c8", 8),
        *group_peers("group_conv_p4", "Group-Conv p4", "p4", 4),
        *group_peers("group_conv_p4m", "Group-Conv p4m", "p4m", 8),
        *group_peers("group_conv_octahedral", "octahedral group, 24 rotations", "octahedral", 24, ndim=3),
        Network("radconv", "ResNet-18 of GMRConv2d (9, 9, 5, 5)", "rings", lambda: None),
        Network("radconv", "the same, folded to dense layers", "dense", lambda: None, folded=True),
        Network("conv_3x3", "ResNet-18 of 3x3 convolutions", "dense", lambda: None),
        Network("released_gmr", "ResNet-18 of GMR-Conv 1.0.3's layer (9, 9, 5, 5)", "rings", gmr_module),
        Network("e2_conv", "ResNet-18 of E(2)-Conv, 8 rotations, equal parameters", "dense", import_e2cnn),
    )
}
