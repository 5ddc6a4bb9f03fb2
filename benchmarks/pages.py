"""What the pages for long texts learn: `python -m benchmarks.pages` trains each and writes docs/long-context.md.

Each page has one command, which stands in the docs as it is typed and is run here as it stands. A run leaves a file in
benchmarks/results/pages/, so that a benchmark that was stopped goes on where it was. One thread, one run at a time;
`--only NAME` for some, `report` to write the tables without training. T time, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import resource
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.contest import ROOT
from benchmarks.report import fill, replace, row

RESULTS, DOCS = ROOT / "benchmarks" / "results" / "pages", ROOT / "docs" / "long-context.md"
BEGIN, END = "<!-- pages: written by `python -m benchmarks.pages` -->", "<!-- end -->"
SEGMENTS = "--overrides.segment 16"
DECODER = "--context 512 --batch 2 --steps 200"
ENCODER = "--tokenizer bytes --context 512 --batch 2 --steps 300"  # a byte in seven teaches
HEAD = ("page", "parameters", "bits per byte", "CPU s")


@dataclass(frozen=True)
class Shown:
    """A row: what is typed after `anyformer train --model NAME`, and what it shows.

    Args:
        model: the page. options: of the command. shows: a sentence. variant: what differs from the page's first row.
        segment: tokens of a call when memory is measured on; 0: it has none.
    """

    model: str
    options: str
    shows: str
    variant: str = ""
    segment: int = 0

    @property
    def name(self) -> str:
        """The page, and what differs."""
        return f"{self.model}, {self.variant}" if self.variant else self.model

    @property
    def command(self) -> str:
        """As one types it."""
        return f"anyformer train --model {self.model} {self.options} --out runs/{self.folder}"

    @property
    def folder(self) -> str:
        """Where the command writes to, in runs/, and the name of the file of the result."""
        return re.sub(r"\W+", "-", self.name)


DECODERS = (
    Shown("gpt", f"--overrides.context 512 {DECODER}", "The baseline: every token sees all 512."),
    Shown("transformerxl", f"{SEGMENTS} --overrides.memory 16 {DECODER}",
          "A row is 32 segments of 16 tokens, each of which sees the 16 before it; over four layers that is 64.",
          segment=16),
    Shown("transformerxl", f"{SEGMENTS} --overrides.memory 0 {DECODER}",
          "The same, trained without memory: a segment sees itself alone.", "no memory", segment=16),
    Shown("compressive", f"{SEGMENTS} --overrides.memory 16 {DECODER}",
          "Older tokens become a slot for each four; a layer keeps 64 slots, 256 tokens more.", segment=16),
    Shown("memorizing", f"{SEGMENTS} --overrides.memory 16 {DECODER}",
          "One layer of four also looks up the 32 nearest of all keys older than its memory.", segment=16),
    Shown("reformer",
          f'--overrides.context 512 --overrides.axial "[16,32,64,128]" --overrides.buckets "[16]" {DECODER}',
          "Chunks of 64 tokens, in two layers of neighbours and in two of tokens with the same hash; nothing is kept "
          "for backward."),
    Shown("performer", DECODER, "Linear attention by random features that stand for softmax."),
    Shown("linear", DECODER, "Linear attention by elu + 1: a recurrent network in disguise."),
    Shown("mamba", DECODER, "No attention: a state of 16 numbers a channel, with its own step for each token."),
    Shown("mamba2", DECODER, "No attention: a state of 64 x 32 numbers a head, worked in chunks."),
    Shown("jamba", DECODER,
          "Three layers of Mamba to one of attention; every second MLP is four experts, two for a token."),
)  # fmt: skip
ENCODERS = (
    Shown("bert", f"--overrides.task masked --overrides.context 512 {ENCODER}",
          "The baseline: every byte sees all 512."),
    Shown("longformer", ENCODER, "Each byte sees 32 to either side; over four layers that is 128."),
    Shown("bigbird", ENCODER, "Blocks of 16 see their neighbours, the first and the last, and two at random."),
    Shown("linformer", f"--overrides.context 512 {ENCODER}", "Keys and values of 512 positions are projected to 64."),
    Shown("modernbert", ENCODER, "Layers 0 and 3 see everything, 1 and 2 see 32 to either side; rotary positions."),
)  # fmt: skip
ALL = (*DECODERS, *ENCODERS)


def main() -> None:
    """Runs what is missing, then writes the tables."""
    parser = argparse.ArgumentParser("python -m benchmarks.pages", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("all", "report"), default="all", help="report: nothing is trained")
    parser.add_argument("--only", choices=[shown.folder for shown in ALL], help="this one alone")
    arguments = parser.parse_args()
    for shown in ALL if arguments.what == "all" else ():
        if arguments.only in (None, shown.folder) and not known(shown):
            print(f"{shown.command}", flush=True)
            result = one(shown)
            RESULTS.mkdir(parents=True, exist_ok=True)
            replace(file(shown), json.dumps(result, indent=1) + "\n")
            print(f"  {result['bits']:.3f} bits a byte, {result['seconds']:.0f} s of CPU", flush=True)
    write()


def file(shown: Shown) -> Path:
    """Where the result of a row lies."""
    return RESULTS / f"{shown.folder}.json"


def known(shown: Shown) -> dict[str, Any] | None:
    """The result of a row, if it is of the command that it has now."""
    if not file(shown).exists():
        return None
    result: dict[str, Any] = json.loads(file(shown).read_text())
    return result if result["command"] == shown.command else None


def one(shown: Shown) -> dict[str, Any]:
    """Types the command in an empty folder, and measures what it leaves."""
    import anyformer as af

    program, *arguments = shlex.split(shown.command)
    assert program == "anyformer"
    with tempfile.TemporaryDirectory() as folder:
        before = _cpu()
        done = subprocess.run(
            [sys.executable, "-m", "anyformer", *arguments], cwd=folder, stdout=subprocess.PIPE, text=True, check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )  # fmt: skip
        seconds = _cpu() - before
        match = re.search(r"held-out: ([\d.]+) (.+) \(\w+: ([\d.]+)\)\nmodel: (.+)", done.stdout)
        assert match is not None, done.stdout
        bit = 1.0 if match[2] == "bits per byte" else math.log(2)  # else nats a label, and a label is a byte
        model = af.load(Path(folder) / match[4])
        result = {
            "command": shown.command, "bits": float(match[1]) / bit, "guess": float(match[3]) / bit, "seconds": seconds,
            "parameters": sum(p.numel() for p in model.parameters()), "machine": machine.facts(1),
        }  # fmt: skip
        if shown.segment:
            result |= {f"segments, {w}": segments(model, shown.segment, w == "carried") for w in ("carried", "alone")}
    return result


def _cpu() -> float:
    """Seconds of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def segments(model: Any, length: int, carried: bool) -> float:
    """Bits per byte of the held-out text, read by `length` tokens at a time: one state through all of it, or a new one
    for each call. What is held out is the same as in training, and every token but the first is counted."""
    import torch
    from torch.nn import functional as F

    from anyformer.data import sources, text

    learned, held_out = text.split(sources.text("pydoc"))
    last = model.tokenizer.encode(learned[-100:])[-1:]
    ids = torch.tensor([[*last, *model.tokenizer.encode(held_out)]])  # (1, T)
    nats, state = 0.0, model.eval().start(1)
    with torch.inference_mode():
        for at in range(0, ids.shape[1] - 1, length):
            now, wanted = ids[:, at : at + length], ids[0, at + 1 : at + length + 1]
            state = state if carried else model.start(1)
            logits = model(now[:, : len(wanted)], state=state).logits  # (1, T, V)
            nats += float(F.cross_entropy(logits[0], wanted, reduction="sum"))
    return nats / math.log(2) / len(held_out.encode())


def write() -> None:
    """The commands and tables into the docs, between their marks."""
    assert fill(DOCS, BEGIN, END, "\n".join(_lines())), f"{DOCS} has no marks"


def _lines() -> Iterator[str]:
    """What stands between the marks."""
    from anyformer.data import baseline, sources, text

    bigram = baseline.bigram_bits_per_byte(*text.split(sources.text("pydoc")))
    for title, rows in (("Decoders", DECODERS), ("Encoders", ENCODERS)):
        yield from (f"\n## {title}\n", "```sh", *(shown.command for shown in rows), "```\n")
        yield from (row(*HEAD, "what it shows"), "|---|---|---|---|---|")
        yield row("a bigram", "", f"{bigram:.3f}", "", "A table: which byte follows which. The same text.")
        runs = _known(rows)
        if rows is ENCODERS and runs:
            yield row("a guess", "", f"{runs[0][1]['guess']:.3f}", "", "The frequency of each byte, without context.")
        for shown, result in runs:
            yield row(f"`{shown.name}`", *_figures(result), shown.shows)
    if memories := [(shown, result) for shown, result in _known(ALL) if shown.segment]:
        yield from ("\n## Memory\n", row("page", "one state", "an empty one each segment", "gain"), "|---|---|---|---|")
    for shown, result in memories:
        with_, without = result["segments, carried"], result["segments, alone"]
        yield row(f"`{shown.name}`", f"{with_:.3f}", f"{without:.3f}", f"{without - with_:.3f}")
    yield f"\nMeasured on: {machine.recorded(result for _, result in _known(ALL))}\n"


def _figures(result: dict[str, Any]) -> tuple[str, ...]:
    return f"{result['parameters'] / 1e6:.2f} M", f"{result['bits']:.3f}", f"{result['seconds']:.0f}"


def _known(rows: tuple[Shown, ...]) -> list[tuple[Shown, dict[str, Any]]]:
    """Rows with a result."""
    return [(shown, result) for shown in rows if (result := known(shown)) is not None]


if __name__ == "__main__":
    main()
