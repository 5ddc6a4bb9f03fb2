"""A language model learns to see, in minutes: captions of pictures, with the right picture, a wrong one, and none.

    python examples/captions.py data captions
    anyformer train --config examples/captions.yaml --steps 90 --warmup 15 --data captions/train.jsonl --out runs/tower
    python examples/describe.py runs/tower captions runs/describe --doc docs/multimodal.md

A decoder of text (--text; by default SmolLM2-135M-Instruct, Apache-2.0, real weights) reads 16 vectors of a picture,
out of the image tower of that CLIP, in place of <image>. First the projector alone learns, with everything else frozen;
then adapters on the decoder's blocks, too.
Measured are the 208 held-out captions, whose words no picture to learn from has: the perplexity of a token, beside that
of its frequency among the captions to learn from. A wrong picture is that of the next caption. T tokens.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import documents
import numpy as np
import torch

import anyformer as af
from anyformer.data.models import find
from anyformer.data.records import find as source
from anyformer.data.records import records
from anyformer.skeletons import Medium, add_media
from anyformer.train import finetune
from anyformer.train.objectives import IGNORE
from anyformer.train.tasks.base import collate
from anyformer.train.tasks.encode import RowEncoder

MARKS = ("<!-- table -->", "<!-- end -->")
WATCHED, BATCH = 32, 16


def joined(clip: Path, words: str, folder: Path) -> Path:
    """A decoder with the image tower of a trained CLIP, and a projector with first weights."""
    text: Any = af.load(find(words))
    both: Any = af.load(find(str(clip)))
    tower = both.towers["image"]
    model: Any = add_media(text, image=Medium.of(token=text.vocab, tower=tower.recipe, cut=1))
    model.media["image"].tower.load_state_dict(tower.state_dict(), strict=False)  # heads and pool are not there
    model.tokenizer, model.processor = text.tokenizer.with_special(text.vocab, "<image>"), both.processor
    model.save(folder, overwrite=True)
    return folder


def examples(model: Any, folder: Path) -> list[dict[str, Any]]:
    """The held-out captions, encoded for the model, with their pictures."""
    encoder = RowEncoder("caption", ("image", "text"), model, (), 128, folder.absolute())
    rows = list(records(source(str(folder / "test.jsonl")), {}))
    made = [example for example in encoder.all(rows, "test.jsonl") if example is not None]
    return [
        {"pixel_values": model.processor.values(folder / row["image"]), **{n: e[n] for n in ("input_ids", "labels")}}
        for row, e in zip(rows, made, strict=True)
    ]


def without(example: dict[str, Any], token: int) -> dict[str, Any]:
    """The example without its picture."""
    stays = example["input_ids"] != token
    return {name: example[name][stays] for name in ("input_ids", "labels")}


@torch.no_grad()
def perplexity(model: Any, batch: list[dict[str, Any]]) -> float:
    """exp of the mean of -log p over the tokens of all captions."""
    total, count = 0.0, 0
    for at in range(0, len(batch), BATCH):
        inputs = collate(batch[at : at + BATCH], model.tokenizer.pad_id)
        labels = inputs.pop("labels")  # (B, T)
        scores = model(**inputs).logits.flatten(0, 1).float()
        total += float(
            torch.nn.functional.cross_entropy(scores, labels.flatten(), ignore_index=IGNORE, reduction="sum")
        )
        count += int((labels != IGNORE).sum())
    return math.exp(total / count)


def measured(model: Any, folder: Path) -> list[float]:
    """The perplexity with the right picture, a wrong one, and none."""
    right = examples(model.eval(), folder)
    pictures = [example["pixel_values"] for example in right]
    wrong = [{**e, "pixel_values": p} for e, p in zip(right, pictures[1:] + pictures[:1], strict=True)]
    bare = [without(example, next(iter(model.placeholders))) for example in right]
    return [perplexity(model, batch) for batch in (right, wrong, bare)]


def frequencies(model: Any, folder: Path) -> float:
    """The perplexity of a token by its frequency in the captions to learn from, each plus one."""
    counts = np.ones(model.tokenizer.vocab_size)
    for line in (folder / "train.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        if row["image"].endswith("-0.png"):
            ids = model.tokenizer.encode("\n" + row["text"], special=False)[1:]
            np.add.at(counts, [*ids, *model.tokenizer.eos_ids], 1)
    logs = np.log(counts / counts.sum())
    labels = np.concatenate([e["labels"] for e in examples(model, folder)])
    return math.exp(-logs[labels[labels != IGNORE]].mean())


def run(clip: Path, folder: Path, words: str, out: Path, steps: list[int]) -> str:
    """The table."""
    start, watched = joined(clip, words, out / "start"), out / "watched.jsonl"
    lines = (folder / "test.jsonl").read_text("utf-8").splitlines()[:WATCHED]
    rows = [{**(row := json.loads(line)), "image": str((folder / row["image"]).absolute())} for line in lines]
    watched.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    common: dict[str, Any] = {"data": folder / "train.jsonl", "held_out": str(watched), "batch": BATCH, "context": 96,
                              "precision": "bf16", "eval_every": 0, "save_every": 0}  # fmt: skip
    model: Any = af.load(start)
    table: list[tuple[str, list[Any]]] = [("the decoder as it is", [None, None, measured(model, folder)[2]])]
    table.append(("frequency of the token", [None, None, frequencies(model, folder)]))
    only = ["media.image.project.**"]
    first = finetune(
        str(start), method="full", trainable=only, steps=steps[0], lr=2e-3, out=out / "projector", **common
    )
    table.append((f"projector, {steps[0]} steps", measured(first.model, folder)))
    common |= {"method": "lora", "targets": ["blocks.**"], "steps": steps[1], "lr": 5e-4, "out": out / "adapters"}
    second = finetune(str(first.checkpoint), trainable=only, **common)
    table.append((f"and adapters of rank 8, {steps[1]} steps", measured(second.model, folder)))
    shown = ["| | right picture | wrong picture | no picture |", "|---|---|---|---|"]
    for name, values in table:
        shown.append(f"| {name} | " + " | ".join("" if v is None else f"{v:.1f}" for v in values) + " |")
    return "\n".join(shown)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", type=Path, help="the folder of the run of CLIP")
    parser.add_argument("captions", type=Path, help="the folder that `captions.py data` wrote")
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", default="smollm2", help="the decoder: a model directory, or real weights by name")
    parser.add_argument("--steps", type=int, nargs=2, default=[60, 25], help="of the projector, and of the adapters")
    parser.add_argument("--doc", type=Path, help="a document whose table is replaced")
    given = parser.parse_args()
    made = run(given.clip, given.captions, given.text, given.out, given.steps)
    print(made)
    if given.doc is not None:
        documents.put(given.doc, *MARKS, made)
