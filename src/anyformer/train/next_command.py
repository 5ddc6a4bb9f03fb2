"""The command that uses the model of a run, printed at its end: `anyformer classify runs/reviews "A fine film."`"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anyformer.data.corpus import weights
from anyformer.data.models import last
from anyformer.data.pictures import below
from anyformer.data.records import HUB, find, records
from anyformer.train.tasks.boxes import first_picture
from anyformer.train.tasks.folding import first_protein
from anyformer.train.tasks.registry import KINDS

WORDS = 8  # of a row's text, at most
LOOKED = 100  # rows that are looked at for texts that differ


def next_command(
    task: str,
    place: Path,
    model: Any,
    data: str | Path | Mapping[str, float],
    fields: Mapping[str, str] | None = None,
    prompt: str = "The ",
    index: str | None = None,
) -> str:
    """The command that uses the model of a run, with a text, a picture or an environment of its data.

    Args:
        place: the model directory; printed as the run's folder where that stands for it. prompt: of a causal model.
        index: of a model that finds passages.
    """
    run = next((p for p in (place.parent, place.parent.parent) if place.name and last(p) == place), place)
    if KINDS[task].verb == "finetune":
        return shlex.join(["anyformer", "finetune", "--model", str(run), "--data", next(iter(weights(data)))])
    verb, words = KINDS[task].verb, _words(task, model, data, fields or {}, prompt)
    if task == "write" and model.tokenizer.template is not None:
        verb = "chat"
    if task == "reconstruct" and model.takes == "input_values":
        verb = "reconstruct"
    if task == "retrieve":
        return shlex.join(["anyformer", "ask", str(index), *words, "--model", str(run)])
    if task == "compose" and model.codec is None:  # codes without sound
        return shlex.join(["anyformer", "inspect", str(run)])
    if task in ("detect", "ctc", "compose"):
        return shlex.join(["anyformer", verb, *words, "--model", str(run)])
    return shlex.join(["anyformer", verb, str(run), *words])


def _words(
    task: str, model: Any, data: str | Path | Mapping[str, float], fields: Mapping[str, str], prompt: str
) -> list[str]:
    source = next(iter(weights(data)))
    if task == "causal":
        return [prompt]
    if task in ("span", "denoise"):
        return [f"The {'<extra_id_0>' if task == 'span' else model.tokenizer.roles['mask_token']} ."]
    if task == "masked":
        return ["A cat sleeps.", "Stocks fell."]
    if task in ("act", "clone"):
        named = re.fullmatch(r"[\w-]+-v\d+", Path(source).stem)  # as gymnasium names environments
        return ["--env", named[0] if named else "ENVIRONMENT"]
    if task == "detect":
        return [first_picture(source)]
    if task == "fold":
        return [str(first_protein(source)), "--out", "folded.pdb"]
    if task == "graphs":
        return [source, *(word for name, column in fields.items() for word in (f"--fields.{name}", column))]
    if task == "forecast":
        columns = [word for name, column in fields.items() for word in (f"--fields.{name}", column)]
        return [source, "--horizon", str(model.embed.horizon), *columns]
    if task == "ctc" and not source.startswith(HUB):
        return _first_sound(source, fields)
    if task == "answer":
        return [source]
    if task == "reconstruct" and model.takes == "input_values":
        return [*(["SOUND"] if source.startswith(HUB) else _first_sound(source, fields)), "--out", "again.wav"]
    if task == "reconstruct":
        return [*(["PICTURE"] if source.startswith(HUB) else _of_rows(task, source, fields)), "--out", "picture.png"]
    if task == "stage":
        return []
    if task == "compose":
        texts = [""] if model.encoder is None else ["A text."] if source.startswith(HUB) else None
        return [*(texts or _of_rows(task, source, fields)), "--out", "music.wav"]
    if task in ("paint", "draw"):
        classes = (model.origin or {}).get("classes", [])
        hub = source.startswith(HUB)
        text = classes[:1] or (["A picture."] if hub else _of_rows(task, source, fields))
        return [*text, "--out", "picture.png"]
    if source.startswith(HUB):
        return ["PICTURE"] if KINDS[task].shown else ["A text."]
    return _of_rows(task, source, fields)


def _first_sound(source: str, fields: Mapping[str, str]) -> list[str]:
    rows = find(source)
    return [str(below(rows.root, next(records(rows, fields))["sound"], "sound"))]


def _of_rows(task: str, source: str, fields: Mapping[str, str]) -> list[str]:
    """A text, or a picture, of the first rows."""
    source_files = find(source)
    if source_files.kind == "images":
        return [str(source_files.files[0])]
    rows = list(itertools.islice(records(source_files, fields), LOOKED))
    if KINDS[task].shown:
        image = rows[0]["image"]
        picture = str(below(source_files.root, image)) if isinstance(image, str) else "PICTURE"
        labels = list(dict.fromkeys(_short(row["text"]) for row in rows))[:2] if task == "match" else []
        return [picture, *(["--labels", *labels] if labels else [])]
    names = ("messages", "question", "prompt", "source", "anchor", "words", "text")
    column = next(name for name in names if name in rows[0])
    texts = list(dict.fromkeys(_short(row[column]) for row in rows))
    return texts[:2] if task == "embed" else texts[:1]


def _short(value: Any) -> str:
    """The first words of a text, a list of words, or a conversation."""
    if isinstance(value, list):
        value = " ".join(str(v["content"] if isinstance(v, dict) else v) for v in value)
    return " ".join(str(value).split()[:WORDS])
