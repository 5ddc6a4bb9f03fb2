"""A vision transformer beside a small convolutional network on clothes, with few and with many images.

    apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb fashion       (31 MB, MIT)
    python examples/images.py fashion/usr/share/datasets/fashion-mnist --images 1000 10000

Fashion-MNIST (Xiao et al., 2017; arXiv:1708.07747): 28 x 28 grey pixels, 10 kinds of clothes, 10,000 images to test on.
Both networks see the same batches in the same order, learn with the same optimiser and schedule, and are measured on
all test images. B batch, N images.
"""

from __future__ import annotations

import argparse
import gzip
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import anyformer as af
from anyformer.data.order import shuffled
from anyformer.skeletons.base import Output
from anyformer.train import Settings, objectives, optim
from anyformer.train.schedule import rate


def read(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) from -1 to 1, and their labels (N,)."""
    pixels, labels = (
        np.frombuffer(gzip.decompress((folder / f"{part}-{name}-ubyte.gz").read_bytes()), np.uint8)
        for name in ("images-idx3", "labels-idx1")
    )
    images = torch.tensor(pixels[16:]).view(-1, 1, 28, 28).float() / 127.5 - 1
    return images, torch.tensor(labels[8:]).long()


class Convolutions(nn.Module):
    """conv 3 x 3 -> ReLU -> pool, twice, then two layers: the usual small network. (B, 1, 28, 28) -> logits (B, 10)."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(2 * width * 49, 128), nn.ReLU(), nn.Linear(128, 10),
        )  # fmt: skip

    def forward(self, pixel_values: Tensor) -> Output:
        logits = self.layers(pixel_values)
        return Output(logits, logits)


def learn(model: nn.Module, images: Tensor, labels: Tensor, steps: int, batch: int, lr: float) -> float:
    """Trains in place; returns the seconds that it took."""
    began, optimizer = time.perf_counter(), optim.make(model, Settings(steps=steps, lr=lr, weight_decay=0.05))
    model.train()
    for step in range(steps):
        rows = torch.from_numpy(shuffled(step * batch, batch, len(images), seed=0)[1])
        loss = objectives.classification(model(pixel_values=images[rows]), labels[rows], batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * rate("cosine", step, steps, steps // 20, 0.0)
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - began


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images whose kind is named."""
    model.eval()
    predicted = [model(pixel_values=part).logits.argmax(-1) for part in images.split(500)]
    return float((torch.cat(predicted) == labels).float().mean())


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()
    images, labels = read(arguments.folder, "train")
    test = read(arguments.folder, "t10k")
    print("| images | network | parameters | accuracy | seconds |\n|---|---|---|---|---|", flush=True)
    for count in arguments.images:
        vit = af.build("vit", "tiny", dim=64, depth=4, hidden=128, image=28, patch=4, channels=1, classes=10, seed=0)
        torch.manual_seed(0)
        for name, model, lr in (("ViT", vit, 1e-3), ("convolutions", Convolutions(), 1e-3)):
            seconds = learn(model, images[:count], labels[:count], arguments.steps, arguments.batch, lr)
            size = sum(p.numel() for p in model.parameters())
            print(f"| {count:,} | {name} | {size:,} | {accuracy(model, *test):.3f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
