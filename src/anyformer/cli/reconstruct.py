"""write a sound as the codes of a codec, and the sound of codes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anyformer.cli import models
from anyformer.cli.options import Parser, pick

EXAMPLE = "anyformer reconstruct runs/codec talk.wav --out again.wav --bandwidth 1.6"


def reconstruct(
    model: str,
    sound: str,
    *,
    out: str = "again.wav",
    bandwidth: float | None = None,
    task: str | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Writes a file, and prints its name and the bits that a second of the codes takes.

    Args:
        model: a directory, of a codec: EnCodec, or one that `anyformer train --model encodec` made.
        sound: a file of sound, of any rate and number of channels; or a file of codes, talk.npz.
        out: the sound as the codec says it (.wav, .flac); or its codes (.npz).
        bandwidth: thousand bits a second, one of the codec's; by default the most.
        task: read another class of the same files, e.g. none for hidden states alone.
        ignore: keys of the files that are read as if they were not there.
    """
    from anyformer.generate import recoding

    loaded = models.load(model, text=False, task=task, ignore=ignore)
    recoding.processor_of(loaded)
    if Path(sound).suffix == ".npz":
        if bandwidth is not None:
            raise ValueError("bandwidth is chosen when a sound becomes codes, and these are codes; leave it out")
        coded = recoding.kept(sound, loaded)
    else:
        coded = recoding.encode(loaded, sound, bandwidth)
    apart = Path(out).suffix == ".npz"
    name = recoding.keep(out, loaded, coded) if apart else recoding.write(out, recoding.decode(loaded, coded))
    print(f"{name}: {recoding.bits_a_second(loaded, coded):,.0f} bits a second")


def options(parser: Parser) -> None:
    """The options of the verb."""
    parser.add_function(reconstruct)


def run(args: Any) -> None:
    """Does it."""
    reconstruct(**pick(args, reconstruct))
