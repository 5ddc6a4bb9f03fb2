"""DALL-E in small: pictures as codes, beside a linear code of the same size, and codes that are told by a text.

    python examples/drawing.py --out runs/drawing --doc docs/dalle.md          # writes the tables into the document

Noto's emoji with their Unicode names (OFL-1.1) and 262 flags (public domain; Debian's iso-flags-png-320x240) with the
letters of their countries, fetched by apt once, at 32 x 32 pixels; a tenth of the names is held out.

1. A dVAE makes 8 x 8 codes of 256 of a picture: 512 bits. Beside it, PCA of the training pictures: as many components
   as have 512 bits together, each stored in 4, 6 or 8 bits between its quantiles, whichever is best on the training
   pictures.
2. A decoder learns texts with the codes of their pictures. Measured: the bits of a held-out picture's code, given the
   codes before it and the right text, another held-out text, or none; beside the frequency of each code in its cell.

N pictures, P pixels of an edge, K components, R = S = 8 rows and columns of codes, V codes.
"""

from __future__ import annotations

import argparse
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import documents
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import anyformer as af
from anyformer.core.init import initialise
from anyformer.data.captions import emoji
from anyformer.data.debian import fetch
from anyformer.data.labels import IGNORE
from anyformer.data.order import shuffled
from anyformer.hub.processors import ImageProcessor
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.media.picture import coloured, picture
from anyformer.models.dvae import annealed
from anyformer.parts.codes import gumbel
from anyformer.parts.text_and_codes import sequence
from anyformer.train import Settings, objectives, optim
from anyformer.train.schedule import rate

SIDE = 32  # P
FLAGS = "usr/share/iso-flags-png-320x240"
MARKS = "<!-- drawing: begin -->", "<!-- drawing: end -->"
PLACES, WORDS = 12, 400  # tokens of a text; of the vocabulary
DEPTHS = (4, 6, 8)  # bits of a component


Part = tuple[Tensor, list[str]]  # pictures (N, 3, P, P) from 0 to 1, and their texts


def pictures() -> tuple[Part, Part]:
    """Those to learn from, and those held out."""
    named = [(item.text, item.image) for item in emoji()]
    root = fetch("iso-flags-png-320x240", rf"{FLAGS}/.*[.]png", 4, "public domain") / FLAGS
    named += [(f"flag {file.stem}", coloured(picture(file), 3)) for file in sorted(root.rglob("*.png"))]
    named.sort(key=lambda pair: zlib.crc32(pair[0].encode()) % 10 == 0)
    small = [np.asarray(squared(image), dtype=np.float32) / 255 for _, image in named]
    images, texts = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2), [text for text, _ in named]
    seen = sum(zlib.crc32(text.encode()) % 10 != 0 for text in texts)
    return (images[:seen], texts[:seen]), (images[seen:], texts[seen:])


def squared(image: Image.Image) -> Image.Image:
    """The whole picture in the middle of a white square."""
    canvas, factor = Image.new("RGB", (SIDE, SIDE), "white"), SIDE / max(image.size)
    image = image.resize([max(1, round(edge * factor)) for edge in image.size], Image.Resampling.BOX)
    canvas.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
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


def told(c: Any, texts: list[list[int]], codes: Tensor) -> tuple[Tensor, Tensor]:
    """The inputs of a decoder, (N, T), and the next code at each place, -100 where the next token is text."""
    ids = sequence(texts, c.vocab, c.text, codes)
    return ids[:, :-1], ids[:, 1:].masked_fill(ids[:, 1:] < c.vocab + c.text, IGNORE)


def learn_codes(model: Any, texts: list[list[int]], codes: Tensor, o: Any) -> int:
    """Trains in place on nine tenths, some rows without their text; leaves the best on the rest, returns its step."""
    noise, optimizer = (
        torch.Generator().manual_seed(o.seed),
        optim.make(model, Settings(steps=o.decoder_steps, lr=o.lr)),
    )
    aside, best, kept, at = len(codes) // 10, float("inf"), {}, 0
    for step in range(o.decoder_steps + 1):
        if step % max(1, o.decoder_steps // 10) == 0:
            loss = bits(model, texts[:aside], codes[:aside]).mean().item()
            print(f"step {step}: {loss:.3f} bits a code on pictures kept aside", file=sys.stderr, flush=True)
            if loss < best:
                best, at, kept = loss, step, {n: v.clone() for n, v in model.state_dict().items()}
        if step == o.decoder_steps:
            break
        rows = torch.randint(aside, len(codes), (o.batch,), generator=noise).tolist()
        blank = (torch.rand(o.batch, generator=noise) < 0.2).tolist()  # so that the model knows what no text means
        ids, labels = told(model.config, [[] if b else texts[r] for r, b in zip(rows, blank, strict=True)], codes[rows])
        now = objectives.causal_lm(model.train()(ids), labels, int((labels >= 0).sum()))
        now.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = o.lr * rate("cosine", step, o.decoder_steps, o.decoder_steps // 20, 0.05)
        optimizer.step()
        optimizer.zero_grad()
    model.load_state_dict(kept)
    return at


@torch.no_grad()
def bits(model: Any, texts: list[list[int]], codes: Tensor) -> Tensor:
    """The bits of each picture's code, in the mean over its cells, (N,)."""
    model.eval()
    found = []
    for low in range(0, len(codes), 64):
        ids, labels = told(model.config, texts[low : low + 64], codes[low : low + 64])
        nll = nn.functional.cross_entropy(model(ids).logits.mT, labels, reduction="none", ignore_index=IGNORE)
        found.append(nll.sum(1) / codes[0].numel() / np.log(2))
    return torch.cat(found)


def frequencies(seen: Tensor, codes: Tensor, count: int) -> Tensor:
    """The bits of each picture's code by the frequency of codes in its cell, each counted half a time more, (N,)."""
    one = nn.functional.one_hot(seen.flatten(1), count).sum(0) + 0.5  # (R S, V)
    share = (one / one.sum(1, keepdim=True)).log2()
    return -share.expand(len(codes), -1, -1).gather(2, codes.flatten(1)[..., None])[..., 0].mean(1)


def decoder(o: Any, seen: tuple[Tensor, list[str]], held: tuple[Tensor, list[str]], count: int) -> tuple[Any, str]:
    """A decoder of texts and codes, and its table."""
    tokenizer = Tokenizer.train_bpe(seen[1], WORDS)
    texts, others = ([tokenizer.encode(text)[:PLACES] for text in part] for part in (seen[1], held[1]))
    sizes: Any = {"dim": 96, "depth": 3, "heads": 4, "head_dim": 24, "vocab": tokenizer.vocab_size, "text": PLACES}
    model = af.build("dalle", "mini", codes=count, columns=seen[0].shape[1], seed=o.seed, **sizes)
    model.tokenizer = tokenizer
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(o.seed))
    at = learn_codes(model, [texts[i] for i in order.tolist()], seen[0][order], o)
    right = bits(model, others, held[0])
    rows = {
        "frequency of each code in its cell": frequencies(seen[0], held[0], count),
        "DALL-E, right text": right,
        "DALL-E, another text": bits(model, others[1:] + others[:1], held[0]),
        "DALL-E, no text": bits(model, [[]] * len(others), held[0]),
    }
    lines = ["| held-out pictures | bits a code | more than with the right text |", "|---|---|---|"]
    for name, value in rows.items():
        gap = value - right
        error = float(gap.std() / len(gap) ** 0.5)
        lines.append(f"| {name} | {value.mean():.3f} | {gap.mean():+.3f} ± {error:.3f} |")
    size = sum(p.numel() for p in model.parameters())
    note = f"The decoder has {size:,} parameters, and was best after {at} of {o.decoder_steps} steps of {o.batch}."
    return model, "\n".join(lines) + f"\n\n{note}"


def main() -> None:
    """Trains, measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/drawing"))
    parser.add_argument("--doc", type=Path, help="the document whose table is replaced")
    parser.add_argument("--steps", type=int, default=350)
    parser.add_argument("--decoder-steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--divergence", type=float, default=1e-4, help="weight of the codes' divergence, at the end")
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args()
    began, ((seen, names), (held, others)) = time.process_time(), pictures()
    model = af.build("dvae", "mini", seed=o.seed)
    initialise(model, seed=o.seed)
    learn(model, seen, o)
    codes, again = coded(model, held)
    size = codes[0].numel() * (model.config.vocab - 1).bit_length()
    depth = min(DEPTHS, key=lambda d: error(seen, linear(seen, seen, size, d)))
    rows = {
        "mean of the training pictures": (0, error(held, seen.mean(0).expand_as(held))),
        f"PCA, {size // depth} components of {depth} bits": (size, error(held, linear(seen, held, size, depth))),
        f"dVAE, {codes[0].numel()} codes of {model.config.vocab}": (size, error(held, again)),
    }
    lines = ["| held-out pictures | bits | squared error | PSNR, dB |", "|---|---|---|---|"]
    lines += [f"| {name} | {b} | {e:.5f} | {-10 * np.log10(e):.2f} |" for name, (b, e) in rows.items()]
    shares = torch.bincount(codes.flatten(), minlength=model.config.vocab).float() / codes.numel()
    entropy = float(-(shares * shares.clamp(min=1e-12).log2()).sum())
    note = (
        f"{len(held)} held-out and {len(seen)} training pictures, seed {o.seed}; {o.steps} steps of {o.batch}. "
        f"On the training pictures the dVAE has a "
        f"squared error of {error(seen[:256], coded(model, seen[:256])[1]):.5f}. Held-out pictures use "
        f"{int((shares > 0).sum())} of the {model.config.vocab} codes; the entropy of a code is {entropy:.2f} bits."
    )
    learned, _ = coded(model, seen)
    writer, second = decoder(o, (learned, names), (codes, others), model.config.vocab)
    text = (
        "\n".join(lines)
        + f"\n\n{note}\n\n{second} All took {(time.process_time() - began) / 60:.0f} minutes of processor time."
    )
    print(text)
    if o.doc is not None:
        documents.put(o.doc, *MARKS, text)
    half = (0.5,) * 3
    model.processor = ImageProcessor(size=(SIDE, SIDE), image_mean=half, image_std=half)
    model.save(o.out / "dvae", overwrite=True)
    writer.save(o.out / "dalle", overwrite=True)


if __name__ == "__main__":
    main()
