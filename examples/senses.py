"""Omni from nothing, in minutes: of which kind is a thing, by its picture, its name written or spoken, or a short
video, alone and together?

    python examples/senses.py --doc docs/multimodal.md

Tux Paint's stamps (GPL-2; fetched by apt once): pictures of their own proportions and about 1,024 pixels, descriptions
in English, and recordings of these in French and Spanish. A video is a pan over the picture: six crops of three
quarters of its sides, four a second. The model names one of the eight kinds with 30 stamps and more, by one token
behind the media. A fifth of the stamps, by their English words, is held out: neither picture nor recording is in what
is learned. Each example of a batch has one medium, or all of them in any order.

Beside each: a logistic regression on features of that medium (pixels of 8 x 8 and a histogram of colours; TF-IDF of
characters; means and deviations of the mels in eight parts of the sound; of a video its first and its last frame), and
the commonest kind. N examples, T tokens.
"""

from __future__ import annotations

import argparse
import functools
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import documents
import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import anyformer as af
from anyformer.data.captions import Captioned, split, spoken_stamps
from anyformer.hub.processors import CubeProcessor, SoundProcessor
from anyformer.media.sound import Sound, sound

MARKS = ("<!-- senses -->", "<!-- end of senses -->")
SENSES = ("picture", "video", "spoken", "written")
LEAST, PIXELS, BATCH = 30, 1024, 16  # stamps of a kind, the most pixels of a picture, examples of a batch
FRAMES, RATE = 6, 4.0  # of a video, and of a second
ASK, IMAGE, VIDEO, SOUND, AROUND, UNKNOWN, FIRST = 0, 1, 2, 3, (4, 5, 6, 7), 8, 9  # ids; the kinds and the words follow


@dataclass(frozen=True)
class Thing:
    """A stamp: the model's inputs of each medium, and the number of its kind."""

    given: dict[str, Any]
    features: dict[str, np.ndarray]
    text: str
    words: list[int]
    kind: int


def network(vocab: int) -> tuple[Any, CubeProcessor]:
    """A model with first weights, and its processor."""
    overrides: dict[str, dict[str, Any]] = {
        "view": {"dim": 96, "depth": 2, "heads": 4, "hidden": 256, "patch": 4, "window": 16, "full": (1,)},
        "sound": {"dim": 96, "depth": 2, "heads": 4, "hidden": 256, "mels": 40, "window": 50},
        "text": {"dim": 128, "depth": 3, "heads": 4, "kv_heads": 4, "hidden": 384, "vocab": vocab,
                 "context": 512, "sections": (4, 6, 6), "theta": 10000.0},
    }  # fmt: skip
    dotted = {f"{part}.{name}": value for part, values in overrides.items() for name, value in values.items()}
    ids = {"image_token": IMAGE, "video_token": VIDEO, "sound_token": SOUND, "view_around": AROUND[:2],
           "sound_around": AROUND[2:], "tied": True}  # fmt: skip
    model: Any = af.build("omni", "mini", seed=0, overrides={**dotted, **ids})
    half = (0.5, 0.5, 0.5)
    model.processor = CubeProcessor(
        image_mean=half, image_std=half, patch=4, least=PIXELS // 2, most=PIXELS, rate=RATE,
        ears=SoundProcessor(mels=40, window=6),
    )  # fmt: skip
    return model, model.processor


def pan(image: Any) -> tuple[list[Any], float]:
    """Crops that move over a picture from its left and upper corner to the other one."""
    width, height = (max(1, side * 3 // 4) for side in image.size)
    steps = [
        ((image.width - width) * i // (FRAMES - 1), (image.height - height) * i // (FRAMES - 1)) for i in range(FRAMES)
    ]
    return [image.crop((x, y, x + width, y + height)) for x, y in steps], RATE


def spelt(text: str) -> list[str]:
    """The words of a description."""
    return re.findall(r"\w+", text.lower())


def thing(one: Captioned, kinds: list[str], words: dict[str, int], processor: CubeProcessor) -> Thing:
    """A stamp, prepared."""
    heard = sound(str(one.spoken))
    heard = Sound(heard.samples[: 6 * heard.rate], heard.rate)
    seen, moving, mels = processor(one.image), processor.videos([pan(one.image)]), processor.sounds([heard])
    given = seen | {f"video_{name}": value for name, value in moving.items()} | mels
    frames = pan(one.image)[0]
    parts = np.array_split(mels["input_features"][0].numpy(), 8, axis=1)
    spoken = np.concatenate([f(part, axis=1) for part in parts for f in (np.mean, np.std)])
    moved = np.concatenate((pixels(frames[0]), pixels(frames[-1])))
    features = {"picture": pixels(one.image), "video": moved, "spoken": spoken}
    ids = [words.get(word, UNKNOWN) for word in spelt(one.text)]
    return Thing(given, features, one.text, ids, kinds.index(one.kind))


def pixels(image: Any) -> np.ndarray:
    """Features of a picture: 8 x 8 pixels, and a histogram of 4 x 4 x 4 colours."""
    small = np.asarray(image.convert("RGB").resize((8, 8))).ravel() / 255.0
    colours = np.asarray(image.convert("RGB").resize((32, 32))) // 64 @ (16, 4, 1)
    return np.concatenate((small, np.bincount(colours.ravel(), minlength=64) / 1024))


def inputs(model: Any, things: Sequence[Thing], senses: Sequence[Sequence[str]]) -> dict[str, torch.Tensor]:
    """The inputs of a batch: each example has its senses in their order, and the question at the end."""
    rows, media = [], dict[str, list[torch.Tensor]]()
    for one, chosen in zip(things, senses, strict=True):
        row = list[int]()
        for sense in chosen:
            if sense == "written":
                row += one.words
                continue
            medium = model.media[{"picture": "image", "video": "video", "spoken": "sound"}[sense]]
            given = medium.own(one.given)
            row += [medium.around[0], *[medium.token] * medium.lengths(given)[0], medium.around[1]]
            for name, value in given.items():
                media.setdefault(medium.prefix + name, []).append(value)
        rows.append([*row, ASK])
    width = max(map(len, rows))
    keep = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    made = {"input_ids": torch.tensor([[0] * (width - len(row)) + row for row in rows]), "attention_mask": keep}
    for name, values in media.items():
        if name in ("input_features", "feature_attention_mask"):  # as long as the longest
            most = max(value.shape[-1] for value in values)
            values = [torch.nn.functional.pad(value, (0, most - value.shape[-1])) for value in values]
        made[name] = torch.cat(values)
    return made


def learn(model: Any, things: list[Thing], kinds: int, steps: int, seed: int) -> None:
    """Trains a model: one sense of each example, or all of them in any order."""
    draw, total = np.random.default_rng(seed), time.time()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps, pct_start=0.1)
    for step in range(steps):
        some = [things[i] for i in draw.integers(0, len(things), BATCH)]
        picks = draw.integers(0, len(SENSES) + 1, BATCH)
        senses = [[SENSES[i]] if i < len(SENSES) else list(draw.permutation(SENSES)) for i in picks]
        scores = model(**inputs(model, some, senses), last=True).logits[:, 0, FIRST : FIRST + kinds]
        loss = torch.nn.functional.cross_entropy(scores, torch.tensor([one.kind for one in some]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}, {time.time() - total:.0f} s", flush=True)


@torch.no_grad()
def right(model: Any, things: list[Thing], kinds: int, senses: Sequence[str], wrong: Sequence[str] = ()) -> float:
    """The share of things whose kind is named; `wrong`: senses that come from another thing."""
    model.eval()
    others = things[len(things) // 2 :] + things[: len(things) // 2]
    mixed = []
    for one, other in zip(things, others, strict=True):
        taken = {name: value for name, value in other.given.items() if sense_of(name) in wrong}
        mixed.append(replace(one, given=one.given | taken))
    hits = 0
    for at in range(0, len(mixed), 32):
        some = mixed[at : at + 32]
        scores = model(**inputs(model, some, [senses] * len(some)), last=True).logits[:, 0, FIRST : FIRST + kinds]
        hits += int((scores.argmax(1) == torch.tensor([one.kind for one in some])).sum())
    return hits / len(things)


def sense_of(name: str) -> str:
    """The medium that an input belongs to."""
    return "video" if name.startswith("video_") else "picture" if name in ("pixel_values", "grid_thw") else "spoken"


def linear(learned: list[Thing], held: list[Thing]) -> dict[str, float]:
    """The same by logistic regressions on features of each medium, and of all of them."""
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True).fit([t.text for t in learned])
    written = [letters.transform([t.text for t in part]).toarray() for part in (learned, held)]
    made = {sense: [np.stack([t.features[sense] for t in part]) for part in (learned, held)] for sense in SENSES[:3]}
    made["written"] = written
    made["all"] = [np.concatenate([made[sense][i] for sense in SENSES], 1) for i in (0, 1)]
    kinds = [np.array([t.kind for t in part]) for part in (learned, held)]
    found = {}
    for sense, (x, y) in made.items():
        scaled = [] if sense == "written" else [StandardScaler()]
        best = make_pipeline(*scaled, LogisticRegression(C=10.0 if sense == "written" else 0.01, max_iter=2000))
        found[sense] = float((best.fit(x, kinds[0]).predict(y) == kinds[1]).mean())
    return found


def run(steps: int, seed: int) -> str:
    """The table."""
    torch.manual_seed(seed)
    every = {language: spoken_stamps(language) for language in ("fr", "es")}
    kinds = [kind for kind, count in Counter(one.kind for one in every["fr"]).most_common() if count >= LEAST]
    parts = {language: split([one for one in stamps if one.kind in kinds], 0.2) for language, stamps in every.items()}
    counts = Counter(word for part, _ in parts.values() for one in part for word in spelt(one.text))
    often = [word for word, count in sorted(counts.items()) if count >= 4]  # in two stamps of two languages
    words = {word: FIRST + len(kinds) + i for i, word in enumerate(often)}
    model, processor = network(FIRST + len(kinds) + len(words))
    learned = [thing(one, kinds, words, processor) for part, _ in parts.values() for one in part]
    held = [thing(one, kinds, words, processor) for one in parts["fr"][1]]
    learn(model, learned, len(kinds), steps, seed)
    base, count = linear(learned, held), Counter(one.kind for one in held)
    share = functools.partial(right, model, held, len(kinds))
    common = Counter(one.kind for one in learned).most_common(1)[0][0]
    lines = [
        f"| {len(held)} held-out stamps, {len(kinds)} kinds | Omni, {steps} steps | logistic regression |",
        "|---|---|---|",
        *(f"| {sense} | {share([sense]):.3f} | {base[sense]:.3f} |" for sense in SENSES),
        f"| all four | {share(SENSES):.3f} | {base['all']:.3f} |",
        f"| picture and spoken | {share(['picture', 'spoken']):.3f} | |",
        f"| all four, picture and video of another stamp | {share(SENSES, ['picture', 'video']):.3f} | |",
        f"| all four, in the other order | {share(SENSES[::-1]):.3f} | |",
        f"| nothing | {share([]):.3f} | |",
        f"| the commonest kind ({kinds[common]}) | {count[common] / len(held):.3f} | |",
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--doc", type=Path, help=f"a document whose table, between {MARKS[0]} and {MARKS[1]}, is replaced"
    )
    given = parser.parse_args()
    table = run(given.steps, given.seed)
    print(table)
    if given.doc is not None:
        documents.put(given.doc, *MARKS, table)
