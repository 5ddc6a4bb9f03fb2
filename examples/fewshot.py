"""Flamingo on captioned pictures: does a language model that never saw a picture read one, and learn from examples?

    python examples/fewshot.py --out runs/fewshot --doc docs/flamingo.md       # writes the table into the document
    python examples/fewshot.py --text smollm2 --steps 100 --batch 8 --held 100 --out runs/real --doc docs/flamingo.md

Tux Paint's stamps (GPL-2) and Noto's emoji (OFL-1.1), fetched by apt once: 1,955 pictures to learn from, 208 captions
held out. A small language model learns captions without pictures, stops where it no longer improves on a tenth that is
kept aside, and is frozen. Then `around` puts gated blocks between its own, and a tower, a resampler and these blocks
learn from pictures, while the language model stays as it is. With --text it is one with its own weights, which has
learned no captions: SmolLM2-135M-Instruct (Apache-2.0), for example.

Measured: the perplexity of a held-out caption, per token, after k pictures with captions (shots) of the same kind from
the training part, if the model sees the right picture, the picture of another held-out caption of that kind, or none;
beside the language model alone. B rows, T tokens, N pictures of the longest row, P pixels of an edge.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import documents
import numpy as np
import torch
from captions import squared
from torch import Tensor, nn

import anyformer as af
from anyformer.core.init import initialise
from anyformer.data.captions import captions, split
from anyformer.data.models import find
from anyformer.hub.processors import ImageProcessor
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.models.clip import Image
from anyformer.models.flamingo import Latents, around
from anyformer.train import Settings, objectives, optim
from anyformer.train.objectives import IGNORE
from anyformer.train.schedule import rate

SIDE, VERSIONS = 48, 6  # P; versions of each picture to learn from
END, HOLE = 0, 1  # ids: the end of a caption, the place of a picture
SHOTS = (0, 1, 2, 4)
GATES = 20.0  # the learning rate of gates, in that of the others
MOST = max(SHOTS) + 1  # pictures of a row
MARKS = "<!-- fewshot: begin -->", "<!-- fewshot: end -->"
REAL = "<!-- fewshot, real: begin -->", "<!-- fewshot, real: end -->"  # of a language model with its own weights


@dataclass
class Pair:
    """A caption as ids, its kind, and the versions of its picture, (versions, 3, P, P) bytes."""

    ids: list[int]
    kind: str
    pictures: Tensor


def pairs_of(items: Any, tokenizer: Tokenizer, versions: int, rng: random.Random) -> list[Pair]:
    """The pairs of captioned pictures; the first version is the plain one."""
    made = []
    for item in items:
        images = [squared(item.image, rng if i else None).resize((SIDE, SIDE)) for i in range(versions)]
        pictures = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
        kind = item.kind if item.kind == "emoji" else "stamp"
        made.append(Pair([*tokenizer.encode(item.text), END], kind, pictures.contiguous()))
    return made


def batch_of(rows: list[list[Pair]], rng: random.Random | None) -> dict[str, Tensor]:
    """Rows of pairs as inputs: `<image>caption` after each other; pictures by chance, or the plain ones."""
    texts = [[token for pair in row for token in (HOLE, *pair.ids)] for row in rows]
    T, N = max(map(len, texts)), max(map(len, rows))
    ids = torch.tensor([text + [END] * (T - len(text)) for text in texts])
    keep = torch.tensor([[1] * len(text) + [0] * (T - len(text)) for text in texts])
    pixels = torch.zeros(len(rows), N, 3, SIDE, SIDE)
    for i, row in enumerate(rows):
        for j, pair in enumerate(row):
            version = 0 if rng is None else rng.randrange(len(pair.pictures))
            pixels[i, j] = pair.pictures[version] / 127.5 - 1
    which = torch.tensor([[1] * len(row) + [0] * (N - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": keep, "pixel_values": pixels, "image_mask": which}


def labels_of(inputs: dict[str, Tensor]) -> Tensor:
    """The next token of each, (B, T); places of pictures and padding are not predicted."""
    ids, keep = inputs["input_ids"], inputs["attention_mask"]
    wanted = ids.masked_fill((keep == 0) | (ids == HOLE), IGNORE)
    return torch.cat((wanted[:, 1:], torch.full_like(ids[:, :1], IGNORE)), 1)


def text_of(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}


def drawn(pairs: dict[str, list[Pair]], rows: int, rng: random.Random) -> list[list[Pair]]:
    """Rows of 1 … MOST pairs of one kind; a kind as often as it has pairs."""
    kinds = rng.choices(list(pairs), [len(some) for some in pairs.values()], k=rows)
    return [rng.sample(pairs[kind], rng.randint(1, MOST)) for kind in kinds]


def by_kind(pairs: list[Pair]) -> dict[str, list[Pair]]:
    return {kind: [p for p in pairs if p.kind == kind] for kind in sorted({p.kind for p in pairs})}


def learn(model: nn.Module, seen: list[Pair], aside: list[Pair], steps: int, o: Any, pictures: bool) -> int:
    """Trains in place, measures on pairs kept aside every tenth of the steps, and leaves the best; returns its step."""
    rng, pick = random.Random(o.seed), pictures
    check = drawn(by_kind(aside), 64, random.Random(1))
    gates = [p for name, p in model.named_parameters() if ".scale." in name]  # while one is 0, its branch cannot learn
    faster = torch.optim.Adam(gates, lr=0.0) if gates else None
    for gate in gates:
        gate.requires_grad_(False)  # the other optimiser leaves them
    optimizer = optim.make(model, Settings(steps=steps, lr=o.lr, weight_decay=0.1))
    for gate in gates:
        gate.requires_grad_(True)
    best, kept, at = math.inf, dict[str, Tensor](), 0
    for step in range(steps + 1):
        if step % max(1, steps // 10) == 0:
            loss = loss_of(model.eval(), batch_of(check, None), pick).item()
            print(f"step {step}: {loss:.3f} nats a token on pairs kept aside", file=sys.stderr, flush=True)
            if loss < best:
                trained = {n for n, p in model.named_parameters() if p.requires_grad}
                best, at = loss, step
                kept = {n: v.clone() for n, v in model.state_dict().items() if n in trained}
        if step == steps:
            break
        now = loss_of(model.train(), batch_of(drawn(by_kind(seen), o.batch, rng), rng), pick)
        now.backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        now = o.lr * rate("cosine", step, steps, max(1, steps // 20), 0.05)
        for one, times in ((optimizer, 1.0), (faster, GATES)):
            if one is not None:
                for group in one.param_groups:
                    group["lr"] = now * times
                one.step()
                one.zero_grad()
    model.load_state_dict(kept, strict=False)
    return at


def loss_of(model: nn.Module, inputs: dict[str, Tensor], pictures: bool) -> Tensor:
    labels = labels_of(inputs)
    return objectives.causal_lm(model(**(inputs if pictures else text_of(inputs))), labels, int((labels >= 0).sum()))


@torch.no_grad()
def surprise(model: nn.Module, inputs: dict[str, Tensor], last: list[Pair]) -> list[float]:
    """The negative log-likelihood of the last caption of each row, in nats."""
    scores = model(**inputs).logits.log_softmax(-1)
    labels, found = labels_of(inputs), []
    for i, pair in enumerate(last):
        places = (labels[i] >= 0).nonzero().flatten()[-len(pair.ids) :]
        found.append(-float(scores[i, places, labels[i, places]].sum()))
    return found


def measure(model: Any, lm: Any, seen: list[Pair], held: list[Pair], shots: int) -> dict[str, list[float]]:
    """The surprise at each held-out caption after so many shots, by what the model sees."""
    rng, known, same = random.Random(2), by_kind(seen), by_kind(held)
    found: dict[str, list[float]] = {"right": [], "wrong": [], "none": [], "language model alone": []}
    for kind, pairs in same.items():
        others = pairs[1:] + pairs[:1]
        rows = [rng.sample(known[kind], shots) for _ in pairs]
        for low in range(0, len(pairs), 32):
            some = slice(low, low + 32)
            right = batch_of([[*shot, pair] for shot, pair in zip(rows[some], pairs[some], strict=True)], None)
            wrong = dict(right, pixel_values=right["pixel_values"].clone())
            for i, other in enumerate(others[some]):
                wrong["pixel_values"][i, shots] = other.pictures[0] / 127.5 - 1
            hidden = torch.zeros(*right["input_ids"].shape, shots + 1, dtype=torch.long)
            none = dict(right, image_attention_mask=hidden)
            found["right"] += surprise(model, right, pairs[some])
            found["wrong"] += surprise(model, wrong, pairs[some])
            found["none"] += surprise(model, none, pairs[some])
            found["language model alone"] += surprise(lm, text_of(right), pairs[some])
    return found


def table(found: dict[int, dict[str, list[float]]], lengths: list[int]) -> str:
    names = list(next(iter(found.values())))
    lines = [
        "| shots | " + " | ".join(names) + " | right against wrong, nats a token |",
        "|---" * (len(names) + 2) + "|",
    ]
    for shots, values in found.items():
        perplexities = [f"{math.exp(sum(v) / sum(lengths)):.2f}" for v in values.values()]
        gains = [(w - r) / n for w, r, n in zip(values["wrong"], values["right"], lengths, strict=True)]
        error = statistics.stdev(gains) / len(gains) ** 0.5
        gain = (sum(values["wrong"]) - sum(values["right"])) / sum(lengths)
        lines.append(f"| {shots} | " + " | ".join(perplexities) + f" | {gain:+.3f} ± {error:.3f} |")
    return "\n".join(lines)


def language(o: Any, texts: list[str]) -> Any:
    """The language model and its tokenizer: with its own weights, or with first weights and words of these texts.

    Raises:
        ValueError: for a tokenizer whose first two ids are words.
    """
    if o.text is not None:
        lm: Any = af.load(find(o.text))
        if lm.tokenizer.decode([END, HOLE]):
            raise ValueError(f"{o.text}: the ids {END} and {HOLE} must be special tokens, which stand for an end and a "
                             "picture here")  # fmt: skip
        return lm
    tokenizer = Tokenizer.train_bpe(texts, 600, ["<image>"])
    sizes: Any = {"dim": o.dim, "depth": o.depth, "heads": 4, "kv_heads": 4, "hidden": 3 * o.dim, "tied": True}
    lm = af.recipe("llama", "mini", vocab=tokenizer.vocab_size, context=512, **sizes).build()
    lm.tokenizer = tokenizer
    initialise(lm, seed=o.seed, scheme="xavier")
    return lm


def seeing(o: Any, text: Any) -> Any:
    """The recipe of a language model with gated blocks: their gates are 0, and they and the eyes have first weights."""
    tower = Image(dim=o.dim, depth=3, heads=4, hidden=3 * o.dim, image=SIDE, patch=12, act="gelu")
    every, heads = max(2, len(text["blocks"]) // 4), max(4, text["dim"] // 64)
    latents = Latents(latents=8, depth=2, heads=4, head_dim=32)
    model = around(text, tower, latents, every=every, heads=heads, placeholder=HOLE).build()
    initialise(model, seed=o.seed, scheme="xavier")
    return model


def main() -> None:
    """Trains, measures, prints the table and a few captions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/fewshot"))
    parser.add_argument("--doc", type=Path, help="the document whose table is replaced")
    parser.add_argument("--lm-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=550)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, help="as many captioned pictures at most")
    parser.add_argument("--held", type=int, help="as many held-out captions at most")
    parser.add_argument("--text", help="a language model that stays as it is: a directory, or real weights by name")
    o = parser.parse_args()
    began, everything = time.process_time(), captions()
    train, test = split(everything if o.pairs is None else everything[:: -(-len(everything) // o.pairs)])
    test = test[:: -(-len(test) // (o.held or len(test)))]
    lm, rng = language(o, [item.text for item in train]), random.Random(o.seed)
    tokenizer = lm.tokenizer
    seen, held = pairs_of(train, tokenizer, VERSIONS, rng), pairs_of(test, tokenizer, 1, rng)
    rng.shuffle(seen)
    aside, seen = seen[: len(seen) // 10], seen[len(seen) // 10 :]
    first = None if o.text else learn(lm, seen, aside, o.lm_steps, o, pictures=False)
    lm.eval().requires_grad_(False)
    model = seeing(o, lm.recipe)
    model.load_state_dict(lm.state_dict(), strict=False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("images.", "gated.")))
    inputs = batch_of(drawn(by_kind(held), 8, rng), None)
    same = torch.equal(model.eval()(**inputs).logits, lm(**text_of(inputs)).logits)
    then = learn(model, seen, aside, o.steps, o, pictures=True)
    model.eval()
    found = {shots: measure(model, lm, seen, held, shots) for shots in SHOTS}
    ordered = [pair for pairs in by_kind(held).values() for pair in pairs]
    text = table(found, [len(pair.ids) for pair in ordered])
    minutes, counts = (time.process_time() - began) / 60, [sum(p.numel() for p in m.parameters()) for m in (lm, model)]
    gates = [round(float(g.scale["cross"].weight.detach().tanh()), 3) for g in model.gated]
    note = (
        f"{len(held)} held-out captions, seed {o.seed}. The language model has {counts[0]:,} parameters "
        f"({o.text if o.text else f'best after {first} of {o.lm_steps} steps'}), "
        f"the whole model {counts[1]:,} (best after {then} of {o.steps} steps of "
        f"{o.batch} rows); {minutes:.0f} minutes of processor time. Before the first step the two are "
        f"{'equal, bit for bit' if same else 'NOT equal'}; afterwards tanh(gate) is {', '.join(map(str, gates))}."
    )
    print(text, note, sep="\n\n")
    if o.doc is not None:
        documents.put(o.doc, *(REAL if o.text else MARKS), f"{text}\n\n{note}")
    half = (0.5,) * 3
    model.tokenizer = tokenizer
    model.processor = ImageProcessor("IdeficsImageProcessor", True, (SIDE, SIDE), 3, image_mean=half, image_std=half)
    model.save(o.out, overwrite=True)


if __name__ == "__main__":
    main()
