"""Run by test_triton.py without the interpreter: compiles for sm_90, with a driver that records launches.

Triton's own path launches first, the engine's short one afterwards; both must hand over the same arguments.  Prints
the host time of a launch by either path.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

LAUNCHED: list[tuple[object, ...]] = []


class Utilities:
    def load_binary(self, name: str, *_: object) -> tuple[object, ...]:
        return object(), name, 0, 0, 1024

    def unload_module(self, module: object) -> None:
        pass

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 * 1024, "multiprocessor_count": 132}


class Recorder:
    """What Triton asks of a driver."""

    utils = Utilities()

    def launcher_cls(self, source: object, metadata: object) -> object:
        return lambda *arguments: LAUNCHED.append(arguments) if len(LAUNCHED) < 10 else None

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 1234

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def main() -> None:
    driver.set_active(Recorder())
    from radconv_ext.problem import build_problem, make_spec
    from radconv_ext.triton_kernels import plan

    w, sigma, bias = (torch.empty(*shape, device="meta") for shape in ((64, 32, 3), (3,), (64,)))

    def training(batch: int, *size: int) -> tuple[plan.Convolution, plan.Backward, Callable[[], None]]:
        """Both plans, and a training step."""
        like = {"dtype": torch.bfloat16, "device": "meta", "memory_format": torch.channels_last}
        x, y = torch.empty(batch, 32, *size, **like), torch.empty(batch, 64, *size, **like)
        spec, _ = make_spec("auto", 2, "gaussian", 3, None, 5, 1, 2, 1, 1, "zeros", True, False, 0)
        problem = build_problem(spec, x, w, sigma, None)
        forward = plan.Convolution(problem, False, x, y, "ieee", True)
        backward = plan.Backward(problem, x, y, x, (True, True, True, True), "ieee")

        def step() -> None:
            forward.run(x, w, sigma, bias, y)
            backward.run(x, y, w, sigma, x, w, sigma, bias)

        return forward, backward, step

    forward, backward, step = training(2, 16, 16)
    step()
    first = list(LAUNCHED)
    LAUNCHED.clear()
    step()
    names = []
    for own, short in zip(first, LAUNCHED, strict=True):
        names.append(str(own[4]).split("_kernel")[0])
        assert own[:5] == short[:5], "grid, stream, function"
        assert own[7] is not None, "Triton's path hands over its hooks"
        assert short[7] is None, "the short path has none"
        tensors = [(a, b) for a, b in zip(own[9:], short[9:], strict=True) if isinstance(a, torch.Tensor)]
        assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in tensors)
        rest = [(a, b) for a, b in zip(own[9:], short[9:], strict=True) if not isinstance(a, torch.Tensor)]
        assert all(a is b or a == b for a, b in rest), rest
    print("the same launches:", ", ".join(names))

    sizes = [(b, h, w) for b in (1, 5, 16) for h, w in ((16, 40), (33, 64), (48, 17), (57, 91))]
    tiles: dict[Any, set[Any]] = {}
    for size in ((2, 16, 16), *sizes):
        forward, backward, step = training(*size)
        step()
        for launch in (forward.convolve, backward.convolution.convolve, backward.launch):
            shape = [launch.argument(f"TILE_{axis}") for axis in "DHW"]
            tiles.setdefault(launch.kernel, set()).add((launch.argument("outputs"), *shape))
    for kernel, shapes in tiles.items():
        compiled = len(kernel.device_caches[0][0])
        assert compiled == len(shapes), f"{kernel.__name__}: {compiled} are compiled for {len(shapes)} shapes of tiles"
    print(f"images of {len(sizes)} other sizes: one kernel for each shape of tiles")

    rounds = 2000
    start = time.perf_counter()
    for _ in range(rounds):
        step()
    short_path = (time.perf_counter() - start) / rounds
    convolve = forward.convolve
    half = torch.empty(64, dtype=torch.bfloat16, device="meta")
    pointers = (half, half, bias, torch.empty(64, dtype=torch.int32, device="meta"), *forward.tables)
    times = []
    for call in (
        lambda: convolve.kernel[convolve.grid](*pointers, *convolve.arguments, num_warps=4, num_stages=1),
        lambda: convolve(*pointers),
    ):
        call()
        start = time.perf_counter()
        for _ in range(rounds):
            call()
        times.append((time.perf_counter() - start) / rounds)
    print(f"host time of one launch: triton's path {times[0] * 1e6:.1f} us, ours {times[1] * 1e6:.1f} us")
    print(f"host time of five launches and two workspaces: {short_path * 1e6:.1f} us")


if __name__ == "__main__":
    main()
