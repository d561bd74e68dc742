"""Parameter groups for optimizers: ring widths apart from weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from .base import RadialConvNd

__all__ = ["parameter_groups"]


def parameter_groups(model: nn.Module, **sigma_options: Any) -> list[dict[str, Any]]:
    """Two parameter groups: everything but the ring widths, and the ring widths, without weight decay.

    Weight decay would pull `log_sigma` towards 0, that is, every ring's width towards one pixel.

    Args:
        model: any module.
        **sigma_options: options of the second group, such as `lr`. Default: `weight_decay=0.0`.

    Returns:
        What every `torch.optim` optimizer takes; the first group has the optimizer's own options. A group without
        parameters is left out.

    >>> import torch
    >>> from radconv_ext.nn import GMRConv2d, parameter_groups
    >>> optimizer = torch.optim.AdamW(parameter_groups(GMRConv2d(3, 8, 9)), lr=1e-3, weight_decay=0.05)
    >>> [group["weight_decay"] for group in optimizer.param_groups]
    [0.05, 0.0]
    """
    widths = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, RadialConvNd)
        for name, parameter in module.named_parameters()
        if name.split(".")[-1] == "log_sigma" or name.startswith("parametrizations.log_sigma.")
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trained if id(parameter) not in widths]},
        {"params": [parameter for parameter in trained if id(parameter) in widths], "weight_decay": 0.0}
        | sigma_options,
    ]
    return [group for group in groups if group["params"]]
