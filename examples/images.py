"""Vision transformers, Swin and a small convolutional network on clothes, with few and with many images.

    python examples/images.py --images 1000 10000 --seeds 0 1 2
    python examples/images.py --networks "ViT hybrid" convolutions

Fashion-MNIST (Xiao et al., 2017; arXiv:1708.07747) is the Debian package dataset-fashion-mnist (31 MB, MIT), which apt
fetches once: 28 x 28 grey pixels, 10 kinds of clothes, 10,000 images to test on. The four networks have the same
number of parameters within 2 %. They see the same batches in the same order, learn with the same optimiser and
schedule, and are measured on all test images. B batch, N images.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import anyformer as af
from anyformer.core.init import SCHEMES, initialise
from anyformer.data.debian import fetch
from anyformer.data.order import shuffled
from anyformer.parts import Classifier, First
from anyformer.skeletons.base import Output, Skeleton
from anyformer.train import Settings, objectives, optim
from anyformer.train.schedule import rate

FOLDER = "usr/share/datasets/fashion-mnist"
PICTURES: Any = {"image": 28, "channels": 1, "classes": 10}


def read(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) from -1 to 1, and their labels (N,)."""
    pixels, labels = (
        np.frombuffer(gzip.decompress((folder / f"{part}-{name}-ubyte.gz").read_bytes()), np.uint8)
        for name in ("images-idx3", "labels-idx1")
    )
    images = torch.tensor(pixels[16:]).view(-1, 1, 28, 28).float() / 127.5 - 1
    return images, torch.tensor(labels[8:]).long()


def vit(seed: int) -> nn.Module:
    """7 x 7 patches of 4 x 4 pixels; four blocks in which every patch sees every other."""
    return af.build("vit", "tiny", dim=64, depth=4, hidden=128, patch=4, **PICTURES, seed=seed)


def swin(seed: int) -> nn.Module:
    """14 x 14 patches of 2 x 2 pixels: two blocks in windows of 7 x 7, one of them shifted; then two on 7 x 7 cells."""
    sizes: Any = {"dim": 32, "depths": (2, 2), "heads": (2, 4), "window": 7, "patch": 2}
    return af.build("swin", "tiny", **sizes, **PICTURES, seed=seed)


def hybrid(seed: int) -> nn.Module:
    """7 x 7 cells of four pixels, as in `vit`, that three residual layers make; three blocks."""
    net: Any = {"net.stem": 32, "net.widths": (96,), "net.depths": (3,), "net.groups": 8, "net.channels": 1}
    page = af.recipe("vit_hybrid", "tiny", dim=64, depth=3, hidden=112, image=28, **net)
    return af.build(page.but({"pool": First.of(), "heads": {"classes": Classifier.of(classes=10)}}), seed=seed)


def convolutions(seed: int) -> nn.Module:
    """The usual small network."""
    torch.manual_seed(seed)
    return Convolutions()


class Convolutions(nn.Module):
    """conv 3 x 3 -> ReLU -> pool, twice, then two layers: the usual small network. (B, 1, 28, 28) -> logits (B, 10)."""

    def __init__(self, width: int = 16, hidden: int = 84):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(2 * width * 49, hidden), nn.ReLU(), nn.Linear(hidden, 10),
        )  # fmt: skip

    def forward(self, pixel_values: Tensor) -> Output:
        logits = self.layers(pixel_values)
        return Output(logits, logits)


def learn(model: nn.Module, images: Tensor, labels: Tensor, steps: int, batch: int, lr: float, seed: int) -> float:
    """Trains in place; returns the processor seconds that it took."""
    began, optimizer = time.process_time(), optim.make(model, Settings(steps=steps, lr=lr, weight_decay=0.05))
    model.train()
    for step in range(steps):
        rows = torch.from_numpy(shuffled(step * batch, batch, len(images), seed=seed)[1])
        loss = objectives.classification(model(pixel_values=images[rows]), labels[rows], batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * rate("cosine", step, steps, steps // 20, 0.0)
        optimizer.step()
        optimizer.zero_grad()
    return time.process_time() - began


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images whose kind is named."""
    model.eval()
    predicted = [model(pixel_values=part).logits.argmax(-1) for part in images.split(500)]
    return float((torch.cat(predicted) == labels).float().mean())


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "ViT": vit, "Swin": swin, "ViT hybrid": hybrid, "convolutions": convolutions,
}  # fmt: skip


def main() -> None:
    """Prints a table: the mean over the seeds, and the lowest and the highest accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--networks", choices=list(NETWORKS), nargs="+", default=list(NETWORKS))
    parser.add_argument("--init", choices=SCHEMES[:-1], default="xavier", help="first weights of all but convolutions")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    arguments = parser.parse_args()
    folder = fetch("dataset-fashion-mnist", f"{FOLDER}/.*[.]gz", 31, "MIT") / FOLDER
    images, labels = read(folder, "train")
    test = read(folder, "t10k")
    results: dict[tuple[int, str], list[tuple[float, float]]] = defaultdict(list)
    for seed in arguments.seeds:
        for count in arguments.images:
            for name in arguments.networks:
                model = NETWORKS[name](seed)
                if isinstance(model, Skeleton):
                    initialise(model, seed=seed, scheme=arguments.init)
                seconds = learn(
                    model, images[:count], labels[:count], arguments.steps, arguments.batch, arguments.lr, seed
                )
                results[count, name].append((accuracy(model, *test), seconds))
                share, seconds = results[count, name][-1]
                print(f"seed {seed}, {count} images, {name}: {share:.4f}, {seconds:.0f} s", file=sys.stderr, flush=True)
    print("| images | network | parameters | accuracy, mean (lowest to highest) | seconds |\n|---|---|---|---|---|")
    for (count, name), runs in results.items():
        size = sum(p.numel() for p in NETWORKS[name](0).parameters())
        shares, seconds = [share for share, _ in runs], statistics.mean(spent for _, spent in runs)
        span = f"{statistics.mean(shares):.3f} ({min(shares):.3f} to {max(shares):.3f})"
        print(f"| {count:,} | {name} | {size:,} | {span} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
