"""Modules: radial convolutions and what networks of them need.

>>> import torch
>>> from radconv_ext.nn import GMRConv2d
>>> GMRConv2d(16, 32, 9, padding="same")(torch.randn(2, 16, 24, 24)).shape
torch.Size([2, 32, 24, 24])
"""

from .base import RadialConvNd
from .checkpoints import convert_released
from .fold import Folded, FoldReport, Fused, FuseReport, fold, fuse_bn
from .groups import parameter_groups
from .init import effective_fan, kaiming_normal_, kaiming_uniform_
from .modules import *  # noqa: F403
from .modules import __all__ as _modules
from .pooling import *  # noqa: F403
from .pooling import __all__ as _pooling

__all__ = [  # noqa: PLE0604
    *_modules,
    *_pooling,
    "FoldReport",
    "Folded",
    "FuseReport",
    "Fused",
    "RadialConvNd",
    "convert_released",
    "effective_fan",
    "fold",
    "fuse_bn",
    "kaiming_normal_",
    "kaiming_uniform_",
    "parameter_groups",
]
