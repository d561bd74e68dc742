"""Radially symmetric convolution in a minute: call it, train through it, choose the engine, build a network.

Run: python examples/quickstart.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

import radconv_ext
from radconv_ext.equivariance import check
from radconv_ext.nn import GMRConv2d, SymmetricAvgPool2d, fold

torch.manual_seed(0)

# 1. Call it. A kernel is n ring weights per channel pair; n = 5 rings make a 9 x 9 kernel.
x = torch.randn(4, 16, 64, 64)  # (B, C, H, W)
w = torch.randn(32, 16, 5)  # (O, C, n)
sigma = radconv_ext.default_sigma(9)  # (n,) width of each ring, pixels
y = radconv_ext.gmr_conv2d(x, w, sigma, padding="same")

# It is the convolution with this dense kernel, and it commutes with a quarter turn.
kernel = radconv_ext.gmr_kernel2d(w, sigma)  # (O, C, 9, 9)
dense = F.conv2d(x, kernel, padding="same")
turned = radconv_ext.gmr_conv2d(x.rot90(1, (2, 3)), w, sigma, padding="same")
print(f"output {tuple(y.shape)}, kernel {tuple(kernel.shape)}")
print(f"largest difference to the dense form    {(y - dense).abs().max() / dense.abs().max():.1e}")
print(f"largest difference after a quarter turn {(turned - y.rot90(1, (2, 3))).abs().max() / y.abs().max():.1e}")

# 2. Train through it: fit ring weights and ring widths to another layer's output.
target = radconv_ext.gmr_conv2d(x, torch.randn(8, 16, 5), 1.5 * sigma, padding="same")
fit_w = torch.zeros(8, 16, 5, requires_grad=True)
log_sigma = sigma.log().requires_grad_()  # the logarithm keeps sigma positive
optimizer = torch.optim.Adam([fit_w, log_sigma], lr=0.05)
for step in range(61):
    output = radconv_ext.gmr_conv2d(x, fit_w, log_sigma.exp(), padding="same")
    loss = F.mse_loss(output, target) / target.var()
    if step % 20 == 0:
        print(f"step {step:2d}   unexplained variance {loss.item():.3f}")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# 3. Choose the engine: by problem (the default), for one call, or for a block.
reference = radconv_ext.gmr_conv2d(x, w, sigma, padding="same", engine="reference")
with radconv_ext.use_engine("reference"):
    again = radconv_ext.gmr_conv2d(x, w, sigma, padding="same")
print(f"reference engine, both ways the same: {torch.equal(reference, again)}")
print(f"largest difference to the default engine {(y - reference).abs().max() / y.abs().max():.1e}")

# 4. Build a network: modules take torch.nn.Conv2d's arguments. It is invariant to quarter turns and flips as it stands.
network = torch.nn.Sequential(
    GMRConv2d(16, 8, 9, padding="same"),
    torch.nn.ReLU(),
    SymmetricAvgPool2d(2),
    GMRConv2d(8, 8, 5, padding="same"),
    torch.nn.AdaptiveAvgPool2d(1),
    torch.nn.Flatten(),
)
print(f"commutes with flips and quarter turns: {check(network, (1, 16, 33, 33), angles=()).equivariant}")
plain, report = fold(network)  # torch.nn.Conv2d alone, for deployment
print(report)
print(f"largest difference to the folded network {(plain(x) - network(x)).abs().max() / network(x).abs().max():.1e}")
