"""Programs without this package's operator: the convolution written out in torch's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from .functional import _decomposing

__all__ = ["decomposed"]


@contextlib.contextmanager
def decomposed() -> Iterator[None]:
    """Within the `with` block, what is exported or compiled has torch's operators in place of `radconv_ext::conv`.

    The program keeps ring weights and sigma, so it is as small as the model, and builds the dense kernel in every call;
    where that matters, `radconv_ext.nn.fold` the model instead. It runs wherever torch's operators do:

    >>> import torch, radconv_ext
    >>> model, x = radconv_ext.nn.GMRConv2d(3, 8, 9), torch.randn(1, 3, 32, 32)
    >>> with radconv_ext.export.decomposed():
    ...     program = torch.export.export(model, (x,))
    >>> any("radconv" in str(node.target) for node in program.graph.nodes)
    False

    `torch.onnx.export(model, (x,), dynamo=True)` in such a block gives an ONNX model; with `optimize=False` it keeps
    the ring weights, where the exporter would compute the dense kernel in advance.
    """
    token = _decomposing.set(True)
    try:
        yield
    finally:
        _decomposing.reset(token)
