"""Where attention looks: at a sound while words are written, at the past of a series, at a protein that is folded.

    python examples/looks.py --into docs            # sound-attention.png, series-attention.png, proteins-attention.png
    python examples/looks.py --only sound

sound: whisper-tiny.en writes a recorded sentence; a row is a token, a column 20 ms: the mean of the heads that its
files name for times. series: an Informer learns the demand of electricity (`series.py`); a row is a step ahead, a
column a place of the memory, half as many as steps. proteins: an ESMFold learns ubiquitin (`fold.py`), three times as
many steps; the mean attention of the structure module, which sees pairs and places, and distances of CA.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import fold
import numpy as np
import series
import torch

import anyformer as af
from anyformer.core.taps import Taps
from anyformer.data import sources
from anyformer.data.speech import clips
from anyformer.generate import transcribe
from anyformer.generate.forecasting import draws, window
from anyformer.media.proteins import read_pdb
from anyformer.media.series import read_series
from anyformer.media.sound import sound
from anyformer.train import train

FRAME = 0.02  # seconds


def panels(path: Path, titled: dict[str, np.ndarray], size: tuple[float, float]) -> list[Any]:
    """Pictures of matrices side by side; the axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes: Any = figure.subplots(1, len(titled), squeeze=False)[0]
    for axis, (title, values) in zip(axes, titled.items(), strict=True):
        shown = axis.imshow(values, aspect="auto", cmap="viridis", vmax=np.quantile(values, 0.995))
        figure.colorbar(shown, ax=axis)
        axis.set_title(title, loc="left", fontsize=9)
    axes[0].figure_path = path
    return list(axes)


def kept(axes: list[Any]) -> None:
    """Writes the file of some axes."""
    axes[0].figure.savefig(axes[0].figure_path, dpi=90)


def spoken(folder: Path, args: argparse.Namespace) -> None:
    """The cross-attention of a sentence."""
    model, clip = af.load(sources.get("whisper-tiny.en"), dtype=torch.float32), clips()[4]
    heads = model.origin["generation"]["alignment_heads"]
    paths = {layer: f"decoder.blocks.{layer}.cross.weights" for layer, _ in heads}
    found = transcribe(model, clip.path, words=True)
    (segment,) = found.segments
    words = [word.text.strip() for word in segment.words]
    tokens = [token for word in segment.words for token in model.tokenizer.encode(word.text, special=False)]
    begin = [model.begin_id, model.tokenizer.core.token_to_id("<|notimestamps|>")]
    with torch.no_grad(), Taps(model, *paths.values()) as taps:
        features = model.processor([sound(clip.path)])["input_features"]
        model(input_features=features, decoder_input_ids=torch.tensor([begin + tokens]))
        weights = torch.stack([taps[paths[layer]][0, head] for layer, head in heads]).mean(0)
    frames = int(segment.end / FRAME)
    seen = weights[1 : 1 + len(tokens), :frames].numpy()  # a row predicts the next token
    axes = panels(folder / "sound-attention.png", {f"whisper-tiny.en: {found.text.strip()}": seen}, (11, 4))
    axes[0].set_yticks(range(len(tokens)), [model.tokenizer.decode([token]) for token in tokens], fontsize=8)
    axes[0].set_xticks(range(0, frames, 25), [f"{n * FRAME:.1f}" for n in range(0, frames, 25)])
    axes[0].set_xlabel("seconds; lines: where a word begins")
    for word in segment.words:
        axes[0].axvline(word.start / FRAME, color="white", linewidth=0.6)
    kept(axes)
    print("sound:", ", ".join(f"{text} {word.start:.2f}" for text, word in zip(words, segment.words, strict=True)))


def foretold(folder: Path, args: argparse.Namespace) -> None:
    """The cross-attention of a forecast."""
    args.out.mkdir(parents=True, exist_ok=True)
    whole, before = series.written("demand", args.out)
    overrides = {"horizon": series.HORIZON, "context": 96, "start": 48}
    model = train(
        "informer", overrides=overrides, data=before, out=args.out / "informer", steps=args.steps, batch=32, lr=2e-3,
        eval_every=0, save_every=0,
    ).model  # fmt: skip
    (table,) = read_series(whole)
    last = window(model, model.processor, table, len(table) - series.HORIZON)
    paths = [f"decoder.blocks.{n}.cross.weights" for n in range(len(model.decoder.blocks))]
    with Taps(model, *paths) as taps:
        draws(model, model.processor, [last], 1, [0])
        seen = {f"layer {n}": taps[path][0].mean(0)[-series.HORIZON :].numpy() for n, path in enumerate(paths)}
    axes = panels(folder / "series-attention.png", seen, (11, 4))
    axes[0].set_ylabel("half-hours ahead")
    for axis in axes:
        axis.set_xlabel("places of the memory, the latest on the right")
    kept(axes)


def folded(folder: Path, args: argparse.Namespace) -> None:
    """The attention of residues, beside how far apart they are."""
    place = fold.structures(args.out)[0]
    (chain,) = read_pdb(place / "1ubi.pdb")
    model = fold.learned("1ubi", place, args.out / "ubiquitin", 3 * args.steps, 1)
    with Taps(model, "structure.attention.weights") as taps:
        (found,) = af.generate.fold(model, [chain.letters], recycles=0)
        seen = taps["structure.attention.weights"][0].mean(0).cpu().numpy()
    places = found.positions[:, fold.CA], chain.positions[:, fold.CA]
    far = [np.linalg.norm(x[:, None] - x[None], axis=-1) for x in places]
    shown = {"attention of the structure module": seen, "folded distance, Å": far[0], "known distance, Å": far[1]}
    kept(panels(folder / "proteins-attention.png", shown, (13, 4)))


PICTURES = {"sound": spoken, "series": foretold, "proteins": folded}


def main() -> None:
    """Draws them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/looks"))
    parser.add_argument("--into", type=Path, help="the folder of the pictures; by default that of the runs")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--only", nargs="+", choices=list(PICTURES), default=list(PICTURES))
    args = parser.parse_args()
    folder = args.into or args.out
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in args.only:
        PICTURES[name](folder, args)


if __name__ == "__main__":
    main()
