"""A discrete autoencoder of small pictures, beside a linear one with the same number of bits.

    python examples/codes.py --out runs/codes --doc docs/dvae.md               # writes the table into the document

Noto's emoji (OFL-1.1) and 262 flags (public domain; Debian's iso-flags-png-320x240), fetched by apt once, at 32 x 32
pixels; a tenth of the names is held out. A picture becomes 8 x 8 codes of 256: 512 bits. The linear one is PCA of the
training pictures: as many components as have 512 bits together, each stored in 4, 6 or 8 bits between its quantiles,
whichever is best on the training pictures. N pictures, P pixels of an edge, K components.
"""

from __future__ import annotations

import argparse
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import anyformer as af
from anyformer.core.init import initialise
from anyformer.data.captions import emoji
from anyformer.data.debian import fetch
from anyformer.data.order import shuffled
from anyformer.hub.processors import ImageProcessor
from anyformer.media.picture import coloured, picture
from anyformer.models.dvae import annealed
from anyformer.parts.codes import gumbel
from anyformer.train import Settings, objectives, optim
from anyformer.train.schedule import rate

SIDE = 32  # P
FLAGS = "usr/share/iso-flags-png-320x240"
MARKS = "<!-- codes: begin -->", "<!-- codes: end -->"
DEPTHS = (4, 6, 8)  # bits of a component


def pictures() -> tuple[Tensor, Tensor]:
    """Those to learn from and those held out, (N, 3, P, P) from 0 to 1."""
    named = [(item.text, item.image) for item in emoji()]
    root = fetch("iso-flags-png-320x240", rf"{FLAGS}/.*[.]png", 4, "public domain") / FLAGS
    named += [(file.stem, coloured(picture(file), 3)) for file in sorted(root.rglob("*.png"))]
    parts: tuple[list[Any], list[Any]] = [], []
    for name, image in named:
        small = np.asarray(squared(image), dtype=np.float32) / 255
        parts[zlib.crc32(name.encode()) % 10 == 0].append(torch.from_numpy(small).permute(2, 0, 1))
    return torch.stack(parts[0]), torch.stack(parts[1])


def squared(image: Image.Image) -> Image.Image:
    """The whole picture in the middle of a white square."""
    canvas, factor = Image.new("RGB", (SIDE, SIDE), "white"), SIDE / max(image.size)
    image = image.resize([max(1, round(edge * factor)) for edge in image.size], Image.Resampling.BOX)
    canvas.paste(image, tuple((SIDE - edge) // 2 for edge in image.size))
    return canvas


def learn(model: Any, seen: Tensor, o: Any) -> None:
    """Trains in place, the temperature falling from 1 to 1/16."""
    noise, optimizer = torch.Generator().manual_seed(o.seed), optim.make(model, Settings(steps=o.steps, lr=o.lr))
    model.train()
    for step in range(o.steps):
        rows = torch.from_numpy(shuffled(step * o.batch, o.batch, len(seen), seed=o.seed)[1])
        x = seen[rows] * 2 - 1
        x = x.flip(3) if step % 2 else x
        model.codes.temperature = annealed(step, o.steps)
        cells = model.embed.length({"pixel_values": x})
        out = model(pixel_values=x, noise=gumbel(len(x), cells, model.config.vocab, generator=noise))
        loss = objectives.reconstruction(out, x, x.numel(), divergence=o.divergence * (1 - annealed(step, o.steps)))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = o.lr * rate("cosine", step, o.steps, o.steps // 20, 0.05)
        optimizer.step()
        optimizer.zero_grad()
        if step % max(1, o.steps // 10) == 0:
            print(f"step {step}: {loss.item():.4f}", file=sys.stderr, flush=True)
    model.eval()


def coded(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """The codes of pictures, (N, R, S), and the pictures that these give."""
    codes = torch.cat([model.coded(part * 2 - 1) for part in images.split(128)])
    return codes, torch.cat([model.decode(part) for part in codes.split(128)])


def linear(seen: Tensor, images: Tensor, bits: int, depth: int) -> Tensor:
    """Pictures after PCA with so many bits in all, `depth` for each component."""
    flat, mean, count = seen.flatten(1), seen.flatten(1).mean(0), bits // depth
    axes = torch.linalg.svd(flat - mean, full_matrices=False).Vh[:count]  # (K, 3 P P)
    low, high = torch.quantile((flat - mean) @ axes.T, torch.tensor([0.005, 0.995]), dim=0)  # (K,) each
    steps = (
        ((((images.flatten(1) - mean) @ axes.T) - low) / (high - low) * (2**depth - 1)).round().clamp(0, 2**depth - 1)
    )
    return ((steps / (2**depth - 1) * (high - low) + low) @ axes + mean).clamp(0, 1).view_as(images)


def error(images: Tensor, again: Tensor) -> float:
    return float((images - again).square().mean())


def main() -> None:
    """Trains, measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/codes"))
    parser.add_argument("--doc", type=Path, help="the document whose table is replaced")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--divergence", type=float, default=1e-4, help="weight of the codes' divergence, at the end")
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args()
    began, (seen, held) = time.process_time(), pictures()
    model = af.build("dvae", "mini", seed=o.seed)
    initialise(model, seed=o.seed)
    learn(model, seen, o)
    codes, again = coded(model, held)
    bits = codes[0].numel() * (model.config.vocab - 1).bit_length()
    depth = min(DEPTHS, key=lambda d: error(seen, linear(seen, seen, bits, d)))
    rows = {
        "mean of the training pictures": (0, error(held, seen.mean(0).expand_as(held))),
        f"PCA, {bits // depth} components of {depth} bits": (bits, error(held, linear(seen, held, bits, depth))),
        f"dVAE, {codes[0].numel()} codes of {model.config.vocab}": (bits, error(held, again)),
    }
    lines = ["| held-out pictures | bits | squared error | PSNR, dB |", "|---|---|---|---|"]
    lines += [f"| {name} | {b} | {e:.5f} | {-10 * np.log10(e):.2f} |" for name, (b, e) in rows.items()]
    shares = torch.bincount(codes.flatten(), minlength=model.config.vocab).float() / codes.numel()
    entropy = float(-(shares * shares.clamp(min=1e-12).log2()).sum())
    note = (
        f"{len(held)} held-out and {len(seen)} training pictures, seed {o.seed}; {o.steps} steps of {o.batch}, "
        f"{(time.process_time() - began) / 60:.0f} minutes of processor time. On the training pictures the dVAE has a "
        f"squared error of {error(seen[:256], coded(model, seen[:256])[1]):.5f}. Held-out pictures use "
        f"{int((shares > 0).sum())} of the {model.config.vocab} codes; the entropy of a code is {entropy:.2f} bits."
    )
    text = "\n".join(lines)
    print(text, note, sep="\n\n")
    if o.doc is not None:
        before, _, rest = o.doc.read_text().partition(MARKS[0])
        o.doc.write_text(f"{before}{MARKS[0]}\n{text}\n\n{note}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")
    half = (0.5,) * 3
    model.processor = ImageProcessor(size=(SIDE, SIDE), image_mean=half, image_std=half)
    model.save(o.out, overwrite=True)


if __name__ == "__main__":
    main()
