"""What PyTorch offers around a convolution works around these modules: the table of docs/facilities.md, row by row."""

from __future__ import annotations

import copy
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import Bumps, randomised, relative_error
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import radconv_ext
from radconv_ext import nn as rnn

KINDS: dict[str, Callable[..., Any]] = {
    "gmr": lambda **o: rnn.GMRConv2d(4, 6, 5, padding=2, **o),
    "sre": lambda **o: rnn.SREConv2d(4, 6, 5, padding="same", padding_mode="circular", **o),
    "reflect": lambda **o: rnn.GMRConv2d(4, 6, 5, padding=4, padding_mode="reflect", stride=2, **o),
    "shell": lambda **o: rnn.RadialConv2d(4, 6, 5, groups=2, **o),
    "profile": lambda **o: rnn.RadialConv2d(4, 6, 5, profile=Bumps(3, 5, o.get("dtype")), **o),
    "transposed": lambda **o: rnn.GMRConvTranspose2d(4, 6, 5, stride=2, padding=1, **o),
}
SHAPE = (3, 4, 11, 12)


def network(dtype: torch.dtype = torch.float32, width: int = 6) -> nn.Module:
    """A small classifier of radial layers, batch norm and everything that is usual."""
    return nn.Sequential(
        rnn.GMRConv2d(2, width, 5, padding="same", bias=False, dtype=dtype),
        nn.BatchNorm2d(width, dtype=dtype),
        nn.ReLU(),
        rnn.SymmetricAvgPool2d(2),
        rnn.GMRConv2d(width, width, 3, padding="full", dtype=dtype),
        nn.ReLU(),
        rnn.RadialConv2d(width, width, 5, groups=width, dtype=dtype),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 3, dtype=dtype),
    )


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    found = torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])
    return list(found)


def assert_same(got: list[Tensor], expected: list[Tensor], bound: float) -> None:
    for a, b in zip(got, expected, strict=True):
        assert relative_error(a, b) <= bound


# ---- compilers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_compile_equals_eager(kind: str) -> None:
    torch._dynamo.reset()
    layer = randomised(KINDS[kind]())
    compiled = torch.compile(layer, fullgraph=True)
    x = torch.randn(SHAPE)
    assert relative_error(compiled(x), layer(x)) < 1e-6
    assert_same(gradients(compiled, x), gradients(layer, x), 1e-6)  # worst seen 1.8e-7
    assert torch._dynamo.explain(layer)(x).graph_break_count == 0


def test_compile_dynamic_batch() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    model = network().eval()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for batch in (2, 5, 7, 33):
        x = torch.randn(batch, 2, 12, 12)
        torch._dynamo.mark_dynamic(x, 0)
        with torch.no_grad():
            assert relative_error(compiled(x), model(x)) < 1e-5
    assert counter.frame_count == 1
    for batch in (3, 6, 19):
        x = torch.randn(batch, 2, 12, 12)
        torch._dynamo.mark_dynamic(x, 0)
        assert_same(gradients(compiled, x), gradients(model, x), 1e-4)
    assert counter.frame_count == 2  # once more, to record gradients


def test_compile_with_an_output_size() -> None:
    """As a decoder asks for the size of its skip connection."""
    torch._dynamo.reset()
    layer = KINDS["transposed"]()
    compiled = torch.compile(lambda x, skip: layer(x, output_size=skip.shape[2:]), fullgraph=True, backend="aot_eager")
    for size in ((7, 8), (9, 5), (6, 6)):
        for extra in (0, 1):
            skip = torch.randn(1, 1, 2 * size[0] + 1 + extra, 2 * size[1] + 1)
            x = torch.randn(1, 4, *size)
            assert compiled(x, skip).shape[2:] == skip.shape[2:]
            assert relative_error(compiled(x, skip), layer(x, output_size=skip.shape[2:])) < 1e-6


def test_compiled_training_equals_eager() -> None:
    """200 steps from the same seed, loss by loss."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    images = torch.randn(256, 2, 12, 12)
    labels = (images[:, 0].mean((1, 2)) * 12 > images[:, 1].std((1, 2)) - 1).long() + (images[:, 1].mean((1, 2)) > 0)
    start = network()

    def losses(compiled: bool) -> list[float]:
        model = copy.deepcopy(start)
        run: Any = torch.compile(model, fullgraph=True) if compiled else model
        optimizer = torch.optim.AdamW(rnn.parameter_groups(model), lr=3e-3)
        order = torch.Generator().manual_seed(1)
        found = []
        for _ in range(200):
            rows = torch.randperm(256, generator=order)[:32]
            loss = F.cross_entropy(run(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    eager, compiled = losses(False), losses(True)
    assert eager[-1] < 0.9 * eager[0]  # it learns something
    assert max(abs(a - b) / b for a, b in zip(compiled, eager, strict=True)) <= 1e-4  # worst seen 2.5e-7


@pytest.mark.parametrize("kind", KINDS)
def test_export(kind: str) -> None:
    layer = KINDS[kind]().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(layer, (torch.randn(SHAPE),), dynamic_shapes=({0: batch},))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called.count("radconv_ext.conv.default") == 1
    x = torch.randn(7, *SHAPE[1:])
    assert torch.equal(program.module()(x), layer(x))


# ---- mixed precision -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_autocast(kind: str, dtype: torch.dtype) -> None:
    layer, conv = KINDS[kind](), nn.Conv2d(4, 6, 5)
    x = torch.randn(SHAPE, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
        assert y.dtype is conv(x).dtype is dtype
    y.float().sum().backward()
    assert x.grad is not None
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in layer.parameters())
    if kind != "reflect":  # pads before it casts
        rounded = layer(x.detach().to(dtype))  # only x is rounded: weights and sigma stay float32 until folded
        assert torch.equal(y, rounded)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_autocast_on_a_gpu() -> None:
    layer, conv = KINDS["gmr"](device="cuda"), nn.Conv2d(4, 6, 5, device="cuda")
    x = torch.randn(SHAPE, device="cuda", requires_grad=True)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = layer(x)
        assert y.dtype is conv(x).dtype is torch.bfloat16
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in layer.parameters())


# ---- torch.func and higher derivatives -------------------------------------------------------------------------------


def double_layer(kind: str) -> tuple[Any, Tensor]:
    layer = randomised(KINDS[kind](dtype=torch.float64))
    return layer, torch.randn(2, 4, 9, 8, dtype=torch.float64)


def parameters_of(layer: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in layer.named_parameters()}


ENGINE_BOUND = {"reference": 1e-12, "cpu": 2e-5}


def layer_on(engine: str, kind: str = "gmr") -> tuple[Any, Tensor]:
    layer, x = double_layer(kind)
    layer.engine = engine
    return (layer, x) if engine == "reference" else (layer.float(), x.float())


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("kind", KINDS)
def test_func_grad(kind: str, engine: str) -> None:
    layer, x = layer_on(engine, kind)

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, parameters, (x,)).square().sum()

    by_parameters, by_x = torch.func.grad(loss, argnums=(0, 1))(parameters_of(layer), x)
    expected = gradients(layer, x)
    assert_same([by_x, *by_parameters.values()], expected, ENGINE_BOUND[engine])


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("kind", KINDS)
def test_func_vmap(kind: str, engine: str) -> None:
    """Over images, over an ensemble of weights, over both, and gradients of single samples."""
    layer, x = layer_on(engine, kind)
    bound = ENGINE_BOUND[engine]
    assert relative_error(torch.vmap(layer)(x), layer(x)) < bound
    assert relative_error(torch.vmap(layer, in_dims=2)(x.movedim(0, 2)), layer(x)) < bound
    twins = [layer, randomised(copy.deepcopy(layer), 1)]
    stacked, buffers = torch.func.stack_module_state(twins)

    def run(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, (parameters, buffers), (x,))

    ensemble = torch.vmap(run, in_dims=(0, 0, None))(stacked, buffers, x)
    assert relative_error(ensemble, torch.stack([twin(x) for twin in twins])) < bound
    pairs = torch.vmap(run)(stacked, buffers, x)
    assert relative_error(pairs, torch.stack([twin(image) for twin, image in zip(twins, x, strict=True)])) < bound

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, parameters, (x,)).square().sum()

    single = torch.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(None, 0))(parameters_of(layer), x)
    for i, image in enumerate(x):
        expected = gradients(layer, image)
        assert_same([single[1][i], *(g[i] for g in single[0].values())], expected, bound)


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_mode(kind: str, engine: str) -> None:
    """Tangents, and Hessians by forward over reverse, against reverse mode."""
    layer, x = layer_on(engine, kind)
    bound = ENGINE_BOUND[engine]
    weights = parameters_of(layer)

    def run(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, parameters, (x,))

    tangents = ({name: torch.randn_like(t) for name, t in weights.items()}, torch.randn_like(x))
    y, tangent = torch.func.jvp(run, (weights, x), tangents)
    upstream = torch.randn_like(y)
    pulled = torch.func.vjp(run, weights, x)[1](upstream)
    expected = sum((pulled[0][name] * t).sum() for name, t in tangents[0].items()) + (pulled[1] * tangents[1]).sum()
    assert relative_error((tangent * upstream).sum(), expected) < 10 * bound
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangents[1])
        got = torch.autograd.forward_ad.unpack_dual(layer(dual)).tangent
    assert relative_error(got, torch.func.jvp(lambda x: run(weights, x), (x,), (tangents[1],))[1]) < bound
    name = list(weights)[-1]

    def loss(t: Tensor) -> Tensor:
        return run({**weights, name: t}, x).pow(3).sum()

    by_reverse = torch.func.jacrev(torch.func.jacrev(loss))(weights[name])
    assert relative_error(torch.func.hessian(loss)(weights[name]), by_reverse) < 100 * bound


@pytest.mark.parametrize("engine", ["reference", "cpu"])
def test_nested_forward_mode(engine: str) -> None:
    """Forward over forward, alone and around reverse, where a Function's own rule would lose the outer tangent."""
    layer, x = layer_on(engine)
    weights = parameters_of(layer)

    def loss(t: Tensor) -> Tensor:
        return functional_call(layer, {**weights, "log_sigma": t}, (x,)).pow(3).sum()

    at = weights["log_sigma"]
    bound = 100 * ENGINE_BOUND[engine]
    expected = torch.func.jacrev(torch.func.jacrev(loss))(at)
    assert relative_error(torch.func.jacfwd(torch.func.jacfwd(loss))(at), expected) < bound
    third = torch.func.jacrev(torch.func.jacrev(torch.func.jacrev(loss)))(at)
    jacfwd, grad = torch.func.jacfwd, torch.func.grad
    assert relative_error(jacfwd(jacfwd(grad(loss)))(at), third) < bound
    assert relative_error(jacfwd(grad(lambda t: jacfwd(loss)(t).sum()))(at), third.sum(0)) < bound
    pull = torch.func.vjp(loss, at)[1]
    assert torch.equal(pull(torch.ones_like(loss(at)))[0], grad(loss)(at))


def test_vmap_over_nothing() -> None:
    layer = KINDS["gmr"]()
    assert torch.vmap(layer)(torch.randn(0, *SHAPE)).shape == (0, 3, 6, 11, 12)


def test_func_within_compile() -> None:
    torch._dynamo.reset()
    layer = KINDS["gmr"]()
    x = torch.randn(SHAPE)

    def by_parameters(parameters: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        return torch.func.grad(lambda p: functional_call(layer, p, (x,)).square().sum())(parameters)

    got = torch.compile(by_parameters, fullgraph=True, backend="aot_eager")(parameters_of(layer), x)
    expected = by_parameters(parameters_of(layer), x)
    assert_same(list(got.values()), list(expected.values()), 1e-5)


def test_func_under_autocast() -> None:
    layer = KINDS["gmr"]()
    x = torch.randn(SHAPE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = layer(x)
        mapped = torch.vmap(layer)(x)
        by_x = torch.func.grad(lambda x: layer(x).float().sum())(x)
    assert mapped.dtype is torch.bfloat16
    assert torch.equal(mapped, expected)
    assert by_x.dtype is torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_double_backward(kind: str) -> None:
    layer, x = double_layer(kind)
    names, values = zip(*parameters_of(layer).items(), strict=True)

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    inputs = tuple(t.clone().requires_grad_() for t in (x[:1, :, :6, :6], *values))
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True, check_forward_ad=True)


# ---- layouts, determinism, counting ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("engine", ["reference", "cpu"])
def test_channels_last(ndim: int, engine: str) -> None:
    """Kept as torch's convolution keeps it, of the output and of the input's gradient."""
    last = {2: torch.channels_last, 3: torch.channels_last_3d}[ndim]
    layer = getattr(rnn, f"GMRConv{ndim}d")(4, 6, 3, padding=1, engine=engine)
    conv = layer.to_conv()
    for memory_format in (torch.contiguous_format, last):
        x = torch.randn(2, 4, *(6,) * ndim).to(memory_format=memory_format)
        outputs = []
        for module in (layer, conv):
            leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
            y = module(leaf)
            (grad,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
            outputs.append((y, grad))
        for got, expected in zip(*outputs, strict=True):
            assert got.stride() == expected.stride()
            assert got.is_contiguous(memory_format=memory_format)
    layer.to(memory_format=last)  # ring weights have no spatial axes: nothing to change, nothing fails
    assert layer(x).is_contiguous(memory_format=last)


@pytest.mark.parametrize("kind", KINDS)
def test_deterministic_algorithms(kind: str) -> None:
    layer = KINDS[kind]()
    x = torch.randn(SHAPE)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (gradients(layer, x) for _ in range(2))
        assert torch.equal(layer(x), layer(x))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_flop_counter() -> None:
    model = nn.Sequential(rnn.GMRConv2d(4, 6, 5, padding=2), rnn.SREConv2d(6, 6, 3, groups=2))
    x = torch.randn(2, 4, 9, 9, requires_grad=True)
    first, second = 2 * (2 * 9 * 9) * 6 * 4 * 3, 2 * (2 * 7 * 7) * 6 * 3 * 2
    with FlopCounterMode(display=False) as counter:
        y = model(x)
    counts = counter.get_flop_counts()
    assert counter.get_total_flops() == first + second
    assert sum(counts["Sequential.0"].values()) == first
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * (first + second)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool) -> None:
    model = network().eval()
    x = torch.randn(3, 2, 12, 12)
    leaf = x.clone().requires_grad_()
    checkpoint(model, leaf, use_reentrant=reentrant).square().sum().backward()
    got = [leaf.grad, *(p.grad for p in model.parameters())]
    assert all(torch.equal(a, b) for a, b in zip(got, gradients(model, x), strict=True))


# ---- many at once ----------------------------------------------------------------------------------------------------


def test_data_parallel_replicas() -> None:
    """What nn.DataParallel does, on a CPU: replicas with tensors for parameters, each in a thread of its own."""
    layer = randomised(KINDS["gmr"]())
    module = nn.DataParallel(layer)
    x = torch.randn(4, *SHAPE[1:], requires_grad=True)
    expected = gradients(layer, x)
    assert torch.equal(module(x), layer(x))  # without a GPU, the module itself
    replicas = []
    for _ in range(2):
        replica = layer._replicate_for_data_parallel()
        for name, p in layer.named_parameters():
            setattr(replica, name, p.clone())
        replicas.append(replica)
    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(lambda pair: pair[0](pair[1]), zip(replicas, x.chunk(2), strict=True)))
    found = torch.autograd.grad(torch.cat(outputs).square().sum(), [x, *layer.parameters()])
    assert_same(list(found), expected, 1e-5)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.gpu
def test_data_parallel_on_gpus() -> None:
    layer = KINDS["gmr"](device="cuda:0")
    x = torch.randn(SHAPE, device="cuda:0")
    assert relative_error(nn.DataParallel(layer)(x), layer(x)) < 1e-5


def test_threads() -> None:
    """Eight threads, forward and backward at once, over shared and own layers."""
    shared = [randomised(make()) for make in KINDS.values()]
    inputs = [torch.randn(SHAPE) for _ in range(8)]
    expected = [[gradients(layer, x) for layer in shared] for x in inputs]

    def work(x: Tensor) -> list[list[Tensor]]:
        return [[gradients(layer, x) for layer in shared] for _ in range(5)][-1]

    with ThreadPoolExecutor(8) as pool:
        for got, wanted in zip(pool.map(work, inputs), expected, strict=True):
            for a, b in zip(got, wanted, strict=True):
                assert all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


def test_threads_with_their_own_engines() -> None:
    """A layer that threads share, each under another `use_engine`."""
    layer, x = KINDS["gmr"](), torch.randn(SHAPE)
    engines = ("cpu", "reference") * 4
    with torch.no_grad():
        expected = {engine: radconv_ext.gmr_conv2d(x, layer.weight, layer.sigma, layer.bias, padding=2, engine=engine)
                    for engine in engines[:2]}  # fmt: skip

    def work(engine: str) -> bool:
        with torch.no_grad(), radconv_ext.use_engine(engine):
            return all(torch.equal(layer(x), expected[engine]) for _ in range(50))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, engines))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def train(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for rows in range(0, images.shape[1], 4):
        optimizer.zero_grad()
        for part in range(len(images)):  # one process takes every rank's share in turn
            loss = F.cross_entropy(model(images[part, rows : rows + 4]), labels[part, rows : rows + 4])
            (loss / len(images)).backward()
        optimizer.step()


def distributed_data() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = network(torch.float64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # statistics of a rank's own batch are not those of all
    return model, torch.randn(2, 16, 2, 12, 12, dtype=torch.float64), torch.randint(3, (2, 16))


def one_rank(rank: int, how: str, port: int, out: str) -> None:
    """One of two processes; the first saves the trained weights."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    try:
        model, images, labels = distributed_data()
        own = images[rank : rank + 1], labels[rank : rank + 1]
        if how == "ddp":
            wrapped: nn.Module = nn.parallel.DistributedDataParallel(model)
            train(wrapped, *own)
            state = model.state_dict()
        else:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh("cpu", (2,))
            for module in model:
                if isinstance(module, rnn.RadialConvNd):
                    fully_shard(module, mesh=mesh)
            fully_shard(model, mesh=mesh)
            sharded = dict(model.named_parameters())["0.log_sigma"]
            assert sharded.to_local().numel() in (1, 2)  # of three
            train(model, *own)
            state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        if rank == 0:
            torch.save(state, out)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_two_processes_equal_one(how: str, tmp_path: Any) -> None:
    model, images, labels = distributed_data()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    train(model, images, labels)
    out = str(tmp_path / "state.pt")
    torch.multiprocessing.spawn(one_rank, (how, free_port(), out), nprocs=2)
    state = torch.load(out, weights_only=True)
    assert state.keys() == before.keys()
    for name, t in model.state_dict().items():
        torch.testing.assert_close(state[name], t, rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")
    assert not torch.equal(state["0.log_sigma"], before["0.log_sigma"])
    network(torch.float64).load_state_dict(state)


# ---- construction and surgery ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_meta_device(kind: str) -> None:
    with torch.device("meta"):
        layer = KINDS[kind]()
    assert all(t.is_meta for t in (*layer.parameters(), *layer.buffers()))
    assert layer(torch.randn(SHAPE, device="meta")).is_meta
    if kind != "profile":  # whose own parameters only their module can draw
        torch.manual_seed(3)
        drawn = layer.to_empty(device="cpu")
        drawn.reset_parameters()
        torch.manual_seed(3)
        expected = KINDS[kind]()
        assert all(torch.equal(a, b) for a, b in zip(drawn.parameters(), expected.parameters(), strict=True))
    with torch.device("meta"):
        target = KINDS[kind]()
    source = KINDS[kind]()
    target.load_state_dict(source.state_dict(), assign=True)
    if kind != "profile":  # and its buffer is not in a checkpoint's hands alone
        x = torch.randn(SHAPE)
        assert torch.equal(target(x), source(x))


def test_parametrize() -> None:
    class Zeroed(nn.Module):
        """Ring weights that sum to 0: a layer blind to constants at the centre."""

        def forward(self, w: Tensor) -> Tensor:
            return w - w.mean(-1, keepdim=True)

    layer = KINDS["gmr"]()
    nn.utils.parametrize.register_parametrization(layer, "weight", Zeroed())
    x = torch.randn(SHAPE)
    expected = radconv_ext.gmr_conv2d(x, layer.weight.detach(), layer.sigma.detach(), layer.bias.detach(), padding=2)
    assert relative_error(layer(x), expected) < 1e-6
    assert float(layer.weight.detach().sum(-1).abs().max()) < 1e-6
    with nn.utils.parametrize.cached():
        assert torch.equal(layer(x), layer(x))
    (grad,) = torch.autograd.grad(layer(x).sum(), layer.parametrizations.weight.original)
    assert grad.shape == (6, 4, 3)
    nn.utils.parametrize.remove_parametrizations(layer, "weight")
    assert relative_error(layer(x), expected) < 1e-6
    normed = nn.utils.parametrizations.weight_norm(KINDS["gmr"]())
    assert normed(x).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_input_is_rejected(dtype: torch.dtype) -> None:
    layer = KINDS["gmr"]()
    with pytest.raises(TypeError, match=r"x: expected a floating-point tensor \(.*\), got torch.complex"):
        layer(torch.randn(SHAPE, dtype=dtype))
    with pytest.raises(TypeError, match=r"dtype: expected a floating-point type"):
        KINDS["gmr"](dtype=dtype)


def test_integer_input_is_rejected() -> None:
    with pytest.raises(TypeError, match=r"x: expected a floating-point tensor \(.*\), got torch.uint8"):
        KINDS["gmr"]()(torch.ones(SHAPE, dtype=torch.uint8))
