"""The case table: one row per thing that an engine could get wrong, sizes straddling the kernels' constants.

On a CPU, tiles are at most 96 columns wide, strips 12, 24 or 48 pixels, vectors 4, 8 or 16 lanes, register blocks 4 or
8 rows, tiles of a matrix unit 16 x 16 sums of 32 products, panels 192 columns, output blocks 576 channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import radconv_ext


@dataclass(frozen=True)
class Case:
    """One call: `method` names the function without its dimension, `options` are its keyword arguments."""

    id: str
    size: tuple[int, ...]
    channels: tuple[int, int] = (4, 6)  # in, out
    batch: int = 2
    k: int = 5
    method: str = "gmr_conv"
    rings: int | None = None
    bias: bool = True
    layout: str = "contiguous"  # "channels_last", "sliced" (every second element of a larger tensor), "expanded"
    sigma_scale: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def ndim(self) -> int:
        return len(self.size)

    @property
    def transposed(self) -> bool:
        return self.method.endswith("transpose")

    @property
    def one_hot(self) -> bool:
        return self.method.startswith("sre") or self.options.get("family") == "banded"

    def tensors(self, dtype: torch.dtype, seed: int = 0, device: str = "cpu") -> dict[str, Tensor]:
        """Random x, w, parameter (sigma, profile or none) and bias; values that every dtype down to bfloat16 holds.

        The same numbers on every device, laid out there: a copy of a strided tensor would be contiguous.
        """
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).bfloat16().to(device, dtype)

        groups = self.options.get("groups", 1)
        circular = self.options.get("circular", True)
        shells = radconv_ext.shell_count(self.ndim, self.k, circular)
        rings = self.rings or (self.k // 2 + (2 if self.one_hot and not circular else 1))
        if self.method.startswith("radial") and self.rings is None:
            rings = shells
        channels, outputs = self.channels
        rows, columns = (channels, outputs // groups) if self.transposed else (outputs, channels // groups)
        found = {
            "x": laid_out(random(self.batch, channels, *self.size), self.layout),
            "w": random(rows, columns, rings),
        }
        if self.method.startswith("gmr"):
            sigma = radconv_ext.default_sigma(self.k, rings) * self.sigma_scale
            found["p"] = (sigma * (1 + 0.1 * torch.rand(rings, generator=generator))).bfloat16().to(device, dtype)
        elif self.method.startswith("radial") and self.rings is not None:
            found["p"] = random(rings, shells)
        if self.bias:
            found["bias"] = random(outputs)
        return found

    def __call__(self, tensors: dict[str, Tensor], engine: str) -> Tensor:
        function = getattr(radconv_ext, f"{self.method}{self.ndim}d")
        positional = [tensors["x"], tensors["w"]]
        if "p" in tensors or self.method.startswith("radial"):
            positional.append(tensors.get("p"))
        return function(*positional, tensors.get("bias"), kernel_size=self.k, engine=engine, **self.options)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout."""
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    if layout == "sliced":
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), torch.nan, dtype=x.dtype, device=x.device)
        wide[..., 1::2] = x
        return wide[..., 1::2]
    if layout == "expanded":
        return x[:1].expand(x.shape)
    assert layout == "contiguous"
    return x


CASES = [
    # sizes around vectors, strips, tiles
    *(Case(f"width-{w}", (5, w), options={"padding": "same"}) for w in (1, 3, 7, 16, 17, 33, 48, 49, 96, 97)),
    *(Case(f"length-{n}", (n,), options={"padding": "same"}) for n in (1, 15, 97, 513, 700)),
    Case("tile+1", (33, 65), k=3),
    Case("many-tiles", (70, 130), channels=(3, 5), k=7),
    Case("volume", (9, 10, 11)),
    Case("volume-tiles", (20, 21, 22), channels=(2, 3), k=3),
    Case("flat-volume", (1, 6, 40), k=3, options={"padding": 1}),
    # batches
    Case("batch-1", (9, 9), batch=1),
    Case("batch-33", (6, 6), batch=33),
    # channels around register blocks, panels and output blocks
    *(Case(f"channels-{c}-{o}", (8, 9), channels=(c, o)) for c, o in ((1, 1), (1, 9), (3, 64), (65, 2), (17, 23))),
    Case("panel+1", (6, 7), channels=(66, 8), k=7, options={"padding": 3}),
    Case("outputs-260", (5, 5), channels=(3, 260), k=3),
    Case("inputs-260", (5, 5), channels=(260, 3), k=3),
    # kernel sizes, rings, families, support
    *(Case(f"k-{k}", (17, 18), k=k, options={"padding": "same"}) for k in (1, 2, 3, 4, 6, 7, 8, 9, 11, 15)),
    *(Case(f"k-{k}-3d", (7, 8, 9), k=k, options={"padding": "same"}) for k in (1, 2, 4, 7)),
    *(Case(f"k-{k}-1d", (40,), k=k, options={"padding": "same"}) for k in (1, 2, 9, 20)),
    *(Case(f"rings-{n}", (9, 9), k=5, rings=n) for n in (1, 2, 4, 5, 8, 11)),
    Case("square", (12, 13), k=7, options={"circular": False}),
    Case("cube", (7, 8, 9), k=3, options={"circular": False}),
    Case("banded", (12, 13), k=7, options={"family": "banded"}),
    Case("banded-square", (12, 13), k=7, options={"family": "banded", "circular": False}),
    Case("banded-rings", (12, 13), k=9, rings=3, options={"family": "banded"}),
    Case("banded-3d", (7, 8, 9), k=5, options={"family": "banded"}),
    Case("binary", (12, 13), k=7, method="sre_conv"),
    Case("binary-cube", (7, 8, 9), k=5, method="sre_conv", options={"circular": False}),
    Case("shell", (12, 13), k=9, method="radial_conv"),
    Case("shell-3d", (8, 8, 9), k=5, method="radial_conv"),
    Case("custom", (12, 13), k=7, rings=3, method="radial_conv"),
    Case("custom-more-rings-than-shells", (12, 13), k=3, rings=7, method="radial_conv"),
    Case("wide-sigma", (12, 13), k=9, sigma_scale=3.0),
    # geometry
    Case("no-bias", (9, 9), bias=False),
    *(Case(f"padding-{p}", (9, 10), options={"padding": p}) for p in (1, (0, 3), 7, "valid", "same", "full")),
    *(Case(f"stride-{s}", (14, 15), options={"stride": s, "padding": 2}) for s in (2, 3, (1, 2), (3, 1), 7)),
    Case("stride-2-3d", (9, 8, 11), k=3, options={"stride": 2, "padding": 1}),
    Case("stride-2-1d", (101,), options={"stride": 2, "padding": 1}),
    *(Case(f"dilation-{d}", (15, 16), options={"dilation": d, "padding": 3}) for d in (2, 3, (1, 2))),
    Case("dilation-2-full", (5, 6), options={"dilation": 2, "padding": "full"}),
    Case("stride-2-dilation-3", (17, 18), k=4, options={"stride": 2, "dilation": 3, "padding": 4}),
    Case("circular-same", (11, 12), options={"padding": "same", "padding_mode": "circular"}),
    Case("circular-1", (11, 12), options={"padding": 1, "padding_mode": "circular"}),
    Case("circular-full", (11, 12), options={"padding": "full", "padding_mode": "circular"}),
    Case("circular-stride", (11, 12), options={"padding": 2, "padding_mode": "circular", "stride": 2}),
    Case("circular-even", (11, 12), k=4, options={"padding": "same", "padding_mode": "circular"}),
    Case("circular-whole", (4, 4), k=9, options={"padding": "same", "padding_mode": "circular"}),
    Case("circular-3d", (6, 7, 8), options={"padding": 1, "padding_mode": "circular"}),
    Case("reflect", (9, 10), options={"padding": 2, "padding_mode": "reflect"}),
    Case("replicate", (9, 10), options={"padding": 4, "padding_mode": "replicate"}),
    # groups
    *(Case(f"groups-{g}", (9, 10), channels=(12, 24), options={"groups": g}) for g in (2, 3, 6, 12)),
    Case("depthwise", (20, 30), channels=(37, 37), k=7, options={"groups": 37, "padding": 3}),
    Case("depthwise-3d", (6, 7, 8), channels=(5, 5), k=3, options={"groups": 5, "padding": 1}),
    Case("depthwise-many", (9, 9), channels=(3, 30), options={"groups": 3}),
    Case("depthwise-banded", (9, 9), channels=(6, 6), options={"groups": 6, "family": "banded"}),
    # layouts
    Case("channels-last", (9, 33), channels=(20, 24), layout="channels_last", options={"padding": "same"}),
    Case("channels-last-3d", (5, 6, 7), channels=(5, 3), k=3, layout="channels_last", options={"padding": 1}),
    Case("channels-last-stride", (13, 14), layout="channels_last", options={"stride": 2, "padding": 2}),
    Case("channels-last-depthwise", (9, 10), channels=(8, 8), layout="channels_last", options={"groups": 8}),
    Case("sliced", (9, 10), layout="sliced"),
    Case("sliced-circular", (9, 10), layout="sliced", options={"padding": 2, "padding_mode": "circular"}),
    Case("expanded", (9, 10), layout="expanded"),
    # transposed
    Case("transpose", (7, 8), method="gmr_conv_transpose"),
    Case("transpose-stride", (7, 8), method="gmr_conv_transpose", options={"stride": 2, "padding": 2}),
    Case(
        "transpose-output-padding",
        (7, 8),
        method="gmr_conv_transpose",
        options={"stride": 3, "padding": 1, "output_padding": 2},
    ),
    Case("transpose-groups", (7, 8), channels=(6, 9), method="gmr_conv_transpose", options={"groups": 3, "stride": 2}),
    Case("transpose-dilation", (7, 8), method="gmr_conv_transpose", options={"dilation": 2, "padding": 1}),
    Case("transpose-padding-7", (9, 9), k=3, method="gmr_conv_transpose", options={"stride": 2, "padding": 4}),
    Case("transpose-1d", (30,), method="sre_conv_transpose", options={"stride": 2}),
    Case("transpose-3d", (4, 5, 6), k=3, method="radial_conv_transpose", options={"stride": 2, "padding": 1}),
    Case("transpose-channels-last", (7, 8), layout="channels_last", method="gmr_conv_transpose", options={"stride": 2}),
]  # fmt: skip

# what the CPU engine alone does in ways of its own
CPU_CASES = [
    # lanes are channels: whole lane groups, odd and incomplete ones, several panels, rows of sums kept or all made
    *(
        Case(f"channels-last-{c}-{o}", (9, 19), channels=(c, o), layout="channels_last", options={"padding": "same"})
        for c, o in ((16, 16), (33, 50), (48, 2), (100, 130))
    ),
    Case("channels-last-large-kernel", (14, 40), channels=(20, 20), k=13, layout="channels_last"),
    Case("channels-last-strided", (13, 30), channels=(34, 20), layout="channels_last", options={"stride": (2, 3)}),
    Case("channels-last-dilated", (13, 30), channels=(34, 20), layout="channels_last", options={"dilation": (3, 2)}),
    Case("channels-last-few-outputs", (9, 10), channels=(40, 5), layout="channels_last"),
    Case("channels-last-groups", (9, 10), channels=(64, 40), layout="channels_last", options={"groups": 2}),
    Case("channels-last-volume", (5, 6, 7), channels=(40, 20), layout="channels_last", options={"padding": 2}),
    Case(
        "channels-last-circular",
        (9, 10),
        channels=(33, 20),
        layout="channels_last",
        options={"padding": 1, "padding_mode": "circular"},
    ),
    Case(
        "channels-last-transpose",
        (7, 8),
        channels=(33, 20),
        layout="channels_last",
        method="gmr_conv_transpose",
        options={"stride": 2},
    ),
    # depthwise: lane groups of channels that lie together, or are transposed to
    *(
        Case(f"depthwise-{layout}-{len(size)}d", size, channels=(37, 37), k=3, layout=layout, options={"groups": 37})
        for layout in ("contiguous", "channels_last")
        for size in ((7, 9), (5, 4, 6))
    ),
    *(
        Case(
            f"depthwise-k-{k}-{layout}",
            (18, 37),
            (19, 19),
            k=k,
            layout=layout,
            options={"groups": 19, "padding": "same"},
        )
        for layout in ("contiguous", "channels_last")
        for k in (3, 4, 5, 7, 9, 11, 13, 15, 17)
    ),
    Case("depthwise-square", (18, 37), (6, 6), k=7, options={"groups": 6, "circular": False}),
    Case(
        "depthwise-square-lanes", (9, 12), (37, 37), layout="channels_last", options={"groups": 37, "circular": False}
    ),
    Case("depthwise-one-ring", (18, 37), (6, 6), k=7, rings=1, options={"groups": 6, "family": "banded"}),
    Case("depthwise-circular", (18, 37), (6, 6), options={"groups": 6, "padding": "same", "padding_mode": "circular"}),
    Case("depthwise-small", (7, 7), channels=(40, 40), batch=3, k=7, options={"groups": 40, "padding": "same"}),
    Case("depthwise-small-stride", (9, 8), channels=(33, 33), options={"groups": 33, "stride": 2, "padding": 2}),
    Case("depthwise-tiny", (3, 4), channels=(33, 33), k=3, options={"groups": 33, "padding": 1}),
    # enough channels for a matrix unit, just, and just not; its tiles over many tiles of pixels, strides, dilations
    *(Case(f"outputs-{o}", (9, 10), channels=(20, o), k=3) for o in (12, 13)),
    *(Case(f"columns-{c}", (9, 10), channels=(c, 20), k=3) for c in (6, 7)),
    Case("many-tiles-17", (70, 130), channels=(17, 19), k=7),
    Case("strided-17", (33, 70), channels=(17, 19), options={"stride": (2, 3), "padding": 2}),
    Case("dilated-17", (33, 70), channels=(17, 19), options={"dilation": (3, 2), "padding": 3}),
    # several samples in a tile, more than one block of outputs, sums of a plane too many to be kept
    Case("samples-of-a-tile", (4, 4), channels=(70, 40), batch=21, options={"padding": "same"}),
    Case("outputs-600", (5, 5), channels=(20, 600), k=3),
    Case("large-kernel", (30, 70), channels=(3, 4), k=21, options={"padding": "same"}),
    Case("large-kernel-volume", (5, 9, 40), channels=(3, 4), k=9, options={"padding": "same"}),
    # outputs that are stored past the caches
    Case("past-caches", (192, 192), channels=(2, 36), k=3, options={"padding": 1}),
    Case("past-caches-odd", (191, 193), channels=(2, 36), k=3, options={"padding": 1}),
    Case(
        "past-caches-depthwise",
        (192, 192),
        channels=(32, 32),
        k=3,
        layout="channels_last",
        options={"groups": 32, "padding": 1},
    ),
]

assert len({case.id for case in (*CASES, *CPU_CASES)}) == len(CASES) + len(CPU_CASES)
