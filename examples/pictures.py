"""DiT from nothing on small pictures of clothes, in minutes: are its samples of the class that was asked for?

    python examples/pictures.py data clothes                                  # 20,000 pictures: clothes/train/CLASS
    anyformer train --config examples/pictures.yaml --data clothes/train --out runs/clothes
    python examples/pictures.py measure runs/clothes/step-001400/ema --grid clothes.png

Fashion-MNIST (Xiao et al., 2017; arXiv:1708.07747) is the Debian package dataset-fashion-mnist (31 MB, MIT), fetched by
apt once. The judge is a small convolutional network that learned the classes of 20,000 real pictures. Measured are the
share of samples that it puts into the class that was asked for, and the Fréchet distance (Heusel et al., 2017;
arXiv:1706.08500) between its features of samples and of 5,000 real test pictures,

    |m - m'|^2 + tr(C + C' - 2 (C C')^1/2),

with means m and covariances C of 32 features. Beside them: real pictures, and draws from a Gaussian for each class,
with the mean and the 50 main components of its pictures. N pictures.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import documents
import numpy as np
import torch
from images import FOLDER, accuracy, read
from PIL import Image
from torch import Tensor, nn

import anyformer as af
from anyformer.data.debian import fetch
from anyformer.data.order import shuffled
from anyformer.skeletons.base import Output
from anyformer.train import objectives

NAMES = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
TRAINED, EACH = 20_000, 20  # pictures to learn from; samples of each class
FEATURES, COMPONENTS = 32, 50
BEGIN, END = "<!-- clothes -->", "<!-- end of clothes -->"
RUNS: list[dict[str, Any]] = [
    *({"steps": 25, "guidance": float(w)} for w in (1, 2, 3, 4)),
    *({"steps": n, "guidance": 2.0} for n in (10, 50)),
    *({"steps": n, "guidance": 2.0, "sampler": "ddim", "eta": 1.0} for n in (10, 25, 50)),
]


def clothes(part: str) -> tuple[Tensor, Tensor]:
    """Pictures (N, 1, 28, 28) from -1 to 1, and their classes (N,)."""
    return read(fetch("dataset-fashion-mnist", f"{FOLDER}/.*[.]gz", 31, "MIT") / FOLDER, part)


def data(folder: Path) -> None:
    """The first pictures of the training part as files: train/CLASS/NUMBER.png."""
    images, labels = clothes("train")
    for number, (image, label) in enumerate(zip(images[:TRAINED], labels.tolist(), strict=False)):
        place = folder / "train" / NAMES[label]
        place.mkdir(parents=True, exist_ok=True)
        pixels = ((image[0] + 1) * 127.5).round().byte().numpy()
        Image.fromarray(pixels).save(place / f"{number}.png")


class Judge(nn.Module):
    """A convolutional network whose last hidden layer has few features. (B, 1, 28, 28) -> logits (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(24, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(48 * 49, FEATURES), nn.ReLU(),
        )  # fmt: skip
        self.last = nn.Linear(FEATURES, 10)

    def forward(self, pixel_values: Tensor) -> Output:
        logits = self.last(self.features(pixel_values))
        return Output(logits, logits)


def judge(images: Tensor, labels: Tensor, steps: int = 1200, batch: int = 64) -> Judge:
    """A network that learned the classes of real pictures."""
    torch.manual_seed(0)
    model = Judge()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for step in range(steps):
        rows = torch.from_numpy(shuffled(step * batch, batch, len(images), seed=0)[1])
        objectives.classification(model(images[rows]), labels[rows], batch).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def features(model: Judge, images: Tensor) -> Tensor:
    """(N, FEATURES) float64"""
    return torch.cat([model.features(part) for part in images.split(500)]).double()


def distance(one: Tensor, other: Tensor) -> float:
    """Fréchet's, of the Gaussians with the means and covariances of both."""
    means, spreads = [x.mean(0) for x in (one, other)], [x.T.cov() for x in (one, other)]
    roots = torch.linalg.eigvals(spreads[0] @ spreads[1]).real.clamp(min=0).sqrt().sum()
    return float((means[0] - means[1]).square().sum() + spreads[0].trace() + spreads[1].trace() - 2 * roots)


def gaussians(images: Tensor, labels: Tensor) -> Tensor:
    """Draws from a Gaussian for each class, EACH of them, (N, 1, 28, 28)."""
    noise, drawn = torch.Generator().manual_seed(0), []
    for label in range(10):
        flat = images[labels == label].flatten(1)
        mean = flat.mean(0)
        _, scales, axes = torch.linalg.svd(flat - mean, full_matrices=False)
        spread = scales[:COMPONENTS] / (len(flat) - 1) ** 0.5
        drawn.append(mean + torch.randn(EACH, COMPONENTS, generator=noise) * spread @ axes[:COMPONENTS])
    return torch.cat(drawn).clamp(-1, 1).view(-1, 1, 28, 28)


def painted(model: Any, **options: Any) -> tuple[Tensor, float]:
    """EACH samples of every class, (N, 1, 28, 28), and the processor seconds of one."""
    began = time.process_time()
    pixels = af.paint(model, list(NAMES), count=EACH, **options)  # (N, 28, 28, 1)
    return torch.tensor(pixels).permute(0, 3, 1, 2) / 127.5 - 1, (time.process_time() - began) / len(pixels)


def measure(run: Path, grid: Path | None, into: Path | None) -> None:
    """Prints the table; writes it into a text, and samples into a picture, a row for each class, where asked."""
    (images, labels), (tests, names) = (tuple(x[:TRAINED] for x in clothes("train")), clothes("t10k"))
    model, wanted = judge(images, labels), torch.arange(10).repeat_interleave(EACH)
    real = features(model, tests[:5000])
    few = torch.cat([(names[5000:] == label).nonzero()[:EACH, 0] for label in range(10)]) + 5000
    rows: dict[str, tuple[Tensor, str]] = {
        "real pictures": (tests[few], ""), "Gaussians of each class": (gaussians(images, labels), "")
    }  # fmt: skip
    dit = af.load(run)
    for options in RUNS:
        drawn, spent = painted(dit, **options)
        name = "DDIM, eta 1" if options.get("eta") else "Euler"
        rows[f"DiT, {name}, {options['steps']} steps, guidance {options['guidance']:g}"] = drawn, f"{spent:.2f}"
    table = ["| | named as asked | Fréchet distance | processor seconds a picture |", "|---|---|---|---|"]
    for name, (drawn, seconds) in rows.items():
        share, far = accuracy(model, drawn, wanted), distance(features(model, drawn), real)
        table.append(f"| {name} | {share:.3f} | {far:.2f} | {seconds} |")
    print("\n".join((*table, "", f"The judge names {accuracy(model, tests, names):.3f} of the test pictures.")))
    if into is not None:
        documents.put(into, BEGIN, END, "\n".join(table))
    if grid is not None:
        samples = af.paint(dit, list(NAMES), count=12, steps=50, guidance=2.0, seed=1)[..., 0]  # (120, 28, 28)
        Image.fromarray(np.vstack([np.hstack(list(row)) for row in samples.reshape(10, 12, 28, 28)])).save(grid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("data", "measure"))
    parser.add_argument("path", type=Path, help="the folder of pictures, or of a run")
    parser.add_argument("--grid", type=Path, help="a picture of samples")
    parser.add_argument("--into", type=Path, help=f"a text whose table, between {BEGIN} and {END}, is written anew")
    given = parser.parse_args()
    data(given.path) if given.what == "data" else measure(given.path, given.grid, given.into)


if __name__ == "__main__":
    main()
