"""HuBERT, which learns from sound alone, where ten minutes have a text: whether it helps, in minutes.

    python examples/units.py --into docs/sound.md    # prints the table, and writes it there

The sounds are the spoken digits of `digits.py`: 1,500 sentences of four voices of men, tested on a woman's. One small
HuBERT, all of whose runs have the same steps and batches,

- names the clusters of hidden frames, of MFCC (the first round);
- from first weights again, names those of what the first round has behind its middle block (the second round);
- is fine-tuned by CTC on the first ten minutes that have a text, from either round.

Beside it: the same network, fine-tuned in the same way from first weights; and from first weights for as many steps as
both rounds and the fine-tuning have together. Figures are wrong if inserted, deleted or replaced.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import digits
import documents
import soundfile

import anyformer as af
from anyformer.generate.spelling import spell
from anyformer.train import finetune, train

BEGIN, END = "<!-- units -->", "<!-- end of units -->"
CLUSTERS, MIDDLE, LABELLED, BATCH = 50, "blocks.1", 600, 16  # LABELLED: seconds


def tables(out: Path) -> tuple[Path, Path]:
    """The list of all sounds, and that of the first ten minutes with their texts."""
    seconds, rows, labelled = 0.0, [], []
    for sound in sorted((out / "learned").glob("*.wav")):
        rows.append({"sound": str(sound.resolve())})
        if seconds < LABELLED:
            labelled.append({**rows[-1], "text": sound.with_suffix(".txt").read_text()})
            seconds += soundfile.info(sound).duration
    places = out / "sounds.jsonl", out / "labelled.jsonl"
    for place, some in zip(places, (rows, labelled), strict=True):
        place.write_text("".join(json.dumps(row) + "\n" for row in some))
    return places


def network(**more: Any) -> Any:
    """A new model."""
    return af.build(
        "hubert", "mini", **{**digits.SMALL, "position_groups": 4, "stable": True, "seed": digits.SEED, **more}
    )


def learned(name: str, units: str, sounds: Path, out: Path, steps: int) -> tuple[Path, str]:
    """The folder of a round, and the share of hidden frames of held-out sounds whose cluster it says wrong."""
    start = out / f"{name}-first"
    network(task="units", classes=CLUSTERS).save(start, overwrite=True)
    run = train(
        model=str(start), task="units", units=units, clusters=CLUSTERS, data=str(sounds), out=out / name, steps=steps,
        batch=BATCH, lr=2e-3, warmup=steps // 10, seed=digits.SEED, save_every=0, eval_every=max(1, steps // 4),
    )  # fmt: skip
    return run.checkpoint, f"{run.held_out:.1%}"


def tuned(name: str, start: Path, labelled: Path, out: Path, steps: int) -> list[str]:
    """The line of a model that is fine-tuned."""
    begun = time.perf_counter()
    run = finetune(
        model=str(start), data=str(labelled), method="full", out=out / f"tuned-{name}", steps=steps, batch=BATCH,
        lr=2e-3, warmup=steps // 10, seed=digits.SEED, save_every=0, eval_every=max(1, steps // 4),
    )  # fmt: skip
    minutes = (time.perf_counter() - begun) / 60
    heard = sorted((out / "heard").glob("*.wav"))
    cells = digits.errors((sound.with_suffix(".txt").read_text(), spell(run.model, sound).text) for sound in heard)
    return [f"{steps:,}", *cells, f"{run.after:.1%}", f"{minutes:.1f}"]


def shown(found: dict[str, list[str]]) -> str:
    """The table."""
    head = (
        f"ten minutes with a text, batches of {BATCH}", f"wrong hidden frames, {CLUSTERS} clusters",
        "steps with a text", "wrong figures", "sentences right", "wrong figures, voices of training", "minutes",
    )  # fmt: skip
    rows = [head, ["---"] * len(head), *([name, *cells] for name, cells in found.items())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def main() -> None:
    """Trains, measures, prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("runs/units"))
    parser.add_argument("--into", type=Path, help=f"a text whose table, between {BEGIN} and {END}, is written anew")
    args = parser.parse_args()
    digits.spoken(args.out)
    sounds, labelled = tables(args.out)
    first = args.out / "first"
    network(task="none").save(first, overwrite=True)
    found: dict[str, list[str]] = {}

    def put(name: str, start: Path, steps: int, before: str = "") -> None:
        found[name] = [before, *tuned(name.replace(" ", "-"), start, labelled, args.out, steps)]
        print(table := shown(found), flush=True)
        if args.into is not None:
            documents.put(args.into, BEGIN, END, table)

    put("from first weights", first, args.steps)
    one, guessed = learned("one", "mfcc", sounds, args.out, args.steps)
    put("first round, clusters of MFCC", one, args.steps, guessed)
    two, guessed = learned("two", f"{one}:{MIDDLE}", sounds, args.out, args.steps)
    put("second round, clusters of its block", two, args.steps, guessed)
    put("from first weights, as long as all three", first, 3 * args.steps)


if __name__ == "__main__":
    main()
