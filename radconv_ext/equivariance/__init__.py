"""How equivariant is a model, where does it break, and what do its kernels look like?

>>> from torch import nn
>>> from radconv_ext.equivariance import check
>>> report = check(nn.Conv2d(1, 4, 3), (1, 1, 16, 16), angles=())
>>> report.equivariant, [layer.name for layer in report.offending]
(False, ['(model)'])

Angles need scipy and numpy, figures matplotlib: `pip install 'radconv_ext[equivariance]'`.
"""

from .grid import SmoothImage, Symmetry, ball, rotate, symmetries
from .measure import check
from .plots import feature_maps, plot_angle_error, plot_kernels
from .report import LayerReport, Report

__all__ = [
    "LayerReport",
    "Report",
    "SmoothImage",
    "Symmetry",
    "ball",
    "check",
    "feature_maps",
    "plot_angle_error",
    "plot_kernels",
    "rotate",
    "symmetries",
]
