"""Radially symmetric convolution: GMR-Conv, SRE-Conv and their relatives, 1D to 3D, forward and backward.

>>> import torch, radconv_ext
>>> x, w = torch.randn(2, 16, 32, 32), torch.randn(8, 16, 5)
>>> radconv_ext.gmr_conv2d(x, w, radconv_ext.default_sigma(9), padding="same").shape
torch.Size([2, 8, 32, 32])
"""

from . import equivariance, export, nn
from . import ops as _ops  # noqa: F401  (registers the operators first)
from .build_info import build_info
from .engines import current_engine, use_engine
from .functional import *  # noqa: F403
from .functional import __all__ as _functional_names
from .geometry import shell_count
from .profiles import default_sigma

__version__ = "0.1.0"
__all__ = [  # noqa: PLE0604
    *_functional_names,
    "build_info",
    "current_engine",
    "default_sigma",
    "equivariance",
    "export",
    "nn",
    "shell_count",
    "use_engine",
]
