"""Codes of music and of sound, measured on what was not learned.

    pip install music21                                             # for its chorales; the program does not run
    python examples/music.py voices --into docs/music.md            # Bach's four voices as four books of codes
    python examples/music.py codec --into docs/music.md             # a codec beside mu-law at the same bit rate

voices: the four-part chorales of the corpus of music21 (public domain; read from its files), on a grid of sixteenths. A
frame has a code of each voice: a pitch that begins, a rest that begins, or the sound before goes on. The decoder of
MusicGen, alone, learns windows of 64 frames in all keys by `train`, and is measured on whole windows of every tenth
chorale: bits a note, which is all that was said of a window, divided by the notes that begin in it. Beside it a table
of each voice: after its last steps (the order), the age of the sound and its place in four quarters, interpolated with
the lower orders (Witten and Bell, 1991); and one that also knows what the voice above does in this frame.

codec: the prompts of `asterisk-core-sounds-en-wav` (CC-BY-SA-3.0; fetched by apt), 8,000 Hz. A small EnCodec learns
nine of ten and says the others, at each of its bandwidths. Mu-law has the same bits a second: fewer samples by soxr, or
fewer bits of each, whatever has the higher SNR. B batch, T frames, Q books.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import math
import shutil
import xml.etree.ElementTree as ElementTree
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import documents
import numpy as np
import torch

import anyformer as af
from anyformer.media.patterns import PATTERNS
from anyformer.train import objectives, train

MARKS = {name: (f"<!-- {name} -->", f"<!-- end of {name} -->") for name in ("voices", "codec")}
LOW, HIGH = 30, 93  # MIDI pitches, transposed ones, too
HOLD, REST, PITCHES = 0, 1, 2  # codes; pitch LOW is code PITCHES
CODES = HIGH - LOW + 1 + PITCHES
FRAMES, BAR, AGES = 64, 16, 16  # of a window, of a bar of four quarters, of a sound
KEYS = range(-5, 7)  # semitones
SCALE = "C.D.EF.G.A.B"  # a letter for each semitone from C


def chorale(file: Path) -> np.ndarray | None:
    """The codes of the four voices, (T, 4), soprano first; None for a piece that is not of four single voices."""
    with zipfile.ZipFile(file) as archive:
        name = next(n for n in archive.namelist() if n.endswith("xml") and not n.startswith("META-INF"))
        root = ElementTree.parse(io.BytesIO(archive.read(name))).getroot()
    voices = [voice(part) for part in root.findall("part")]
    if len(voices) != 4 or any(v is None for v in voices):
        return None
    whole = min(len(v) for v in voices if v is not None)
    made = np.stack([v[:whole] for v in voices if v is not None], 1)
    return made if len(made) >= FRAMES else None


def voice(part: Any) -> np.ndarray | None:
    """The codes of one voice; None if two of its notes sound at once, or it lies outside the range."""
    codes, divisions = list[int](), 1.0
    for measure in part.findall("measure"):
        for entry in measure:
            if entry.tag == "attributes" and entry.find("divisions") is not None:
                divisions = float(entry.findtext("divisions", "1"))
            if entry.tag in ("backup", "forward"):
                return None
            if entry.tag != "note" or entry.find("grace") is not None:
                continue
            if entry.find("chord") is not None:
                return None
            length = round(4 * float(entry.findtext("duration", "0")) / divisions)
            goes_on = any(tie.get("type") == "stop" for tie in entry.findall("tie"))
            begins = HOLD if goes_on else pitch_code(entry.find("pitch"))
            if begins is None:
                return None
            codes += [begins, *[HOLD] * (length - 1)][:length]
    return np.array(codes)


def pitch_code(pitch: Any) -> int | None:
    """The code of a pitch that begins, or of a rest."""
    if pitch is None:
        return REST
    step = SCALE.index(pitch.findtext("step", "C"))
    number = 12 * (int(pitch.findtext("octave", "4")) + 1) + step + int(float(pitch.findtext("alter", "0")))
    return number - LOW + PITCHES if LOW - KEYS[0] <= number <= HIGH - KEYS[-1] else None


def moved(codes: np.ndarray, key: int) -> np.ndarray:
    """The codes in another key."""
    return np.where(codes >= PITCHES, codes + key, codes)


def chorales() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The chorales to learn from, and every tenth."""
    found = importlib.util.find_spec("music21")
    if found is None or not found.submodule_search_locations:
        raise ImportError("the chorales are files of a package: pip install music21")
    files = sorted((Path(found.submodule_search_locations[0]) / "corpus" / "bach").glob("*.mxl"))
    made = [codes for file in files if (codes := chorale(file)) is not None]
    return [c for i, c in enumerate(made) if i % 10], made[::10]


def windows(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Whole windows of pieces, one behind the other, (N, T, 4)."""
    return np.stack([p[i : i + FRAMES] for p in pieces for i in range(0, len(p) - FRAMES + 1, FRAMES)])


def notes(codes: np.ndarray) -> int:
    """The notes and rests that begin."""
    return int((codes != HOLD).sum())


class Tables:
    """A table of each voice: the next step of its pitch after a context, interpolated with shorter ones. Steps are the
    same in every key; the first pitch of a window is a code, learned in all keys.

    Args:
        order: the last steps of the voice in the context. above: with what the voice above does in this frame: whether
            it begins a note, and how far its pitch is from this voice's last one.
    """

    def __init__(self, order: int, above: bool = False):
        self.order, self.above = order, above
        self.counts: dict[Any, Counter[Any]] = defaultdict(Counter)

    def events(self, codes: np.ndarray) -> Iterator[tuple[Any, list[Any]]]:
        """Each code of (T, 4) as a hold, a rest, a first code or a step, with its contexts, the longest first."""
        over = [None] * len(codes)  # the pitch that sounds in the voice above
        for number in range(codes.shape[1]):
            last, steps, age, sounding = None, [0] * self.order, AGES, list[Any]()
            for place, code in enumerate(codes[:, number].tolist()):
                heard: list[Any] = []
                if self.above and number:
                    pitch = over[place]
                    far = None if pitch is None or last is None else pitch - last
                    heard = [int(codes[place, number - 1] != HOLD), far]
                if code >= PITCHES and last is None:
                    yield ("first", code), [(number, "first")]
                else:
                    event = ("step", code - last) if code >= PITCHES and last is not None else code
                    inner = [(number, *heard, age, place % BAR, *steps[: self.order - n]) for n in range(self.order)]
                    yield event, [*inner, (number, *heard, age, place % BAR), (number, *heard, age), (number, age)]
                age = min(AGES, age + 1) if code == HOLD else 1
                if code >= PITCHES:
                    steps, last = [code - (code if last is None else last), *steps[:-1]][: self.order], code
                sounding.append(None if code == REST else last)
            over = sounding

    def learn(self, pieces: Sequence[np.ndarray]) -> Tables:
        """Counts all pieces."""
        for piece in pieces:
            for event, contexts in self.events(piece):
                first = isinstance(event, tuple) and event[0] == "first"
                every = [("first", event[1] + key) for key in KEYS] if first else [event]
                for context in contexts:
                    self.counts[context].update(every)
        return self

    def bits(self, pieces: np.ndarray) -> float:
        """-log2 p of all codes."""
        total = 0.0
        for piece in pieces:
            for event, contexts in self.events(piece):
                p = 1 / CODES
                for context in reversed(contexts):
                    if (seen := self.counts.get(context)) is not None:
                        count, kinds = sum(seen.values()), len(seen)
                        p = (seen[event] + kinds * p) / (count + kinds)
                total -= math.log2(p)
        return total


@torch.inference_mode()
def bits(model: Any, codes: np.ndarray) -> float:
    """-log2 p of all codes of windows (N, T, 4)."""
    total = 0.0
    for first in range(0, len(codes), 16):
        laid = model.pattern.laid(torch.from_numpy(codes[first : first + 16]), objectives.IGNORE)  # (B, L, 4)
        before = torch.cat((torch.full_like(laid[:, :1], objectives.IGNORE), laid[:, :-1]), 1)
        said = model.eval()(input_ids=before.masked_fill(before == objectives.IGNORE, model.embed.pad))
        total += float(objectives.causal_lm(said, laid, math.log(2)))
    return total


def rows(learned: list[np.ndarray], path: Path) -> Path:
    """A table of whole windows in all keys, as `anyformer train` reads it."""
    every = [moved(window, key) for window in windows(learned) for key in KEYS]
    path.write_text("\n".join(json.dumps({"codes": window.tolist()}) for window in every))
    return path


def decoder(pattern: str, learned: list[np.ndarray], args: argparse.Namespace) -> Any:
    """A decoder that learned windows in any key."""
    context = PATTERNS[pattern].steps(FRAMES, 4)
    writer = {"dim": args.dim, "depth": args.depth, "heads": 4, "hidden": 4 * args.dim, "vocab": CODES}
    overrides = {"pattern": pattern, "writer.context": context, **{f"writer.{n}": v for n, v in writer.items()}}
    return train(
        "musicgen", data=rows(learned, args.out / "voices.jsonl"), out=args.out / f"voices-{pattern}", steps=args.steps,
        batch=args.batch, lr=args.lr, seed=args.seed, overrides=overrides, eval_every=0, save_every=0, device="cpu",
    ).model  # fmt: skip


def voices(args: argparse.Namespace) -> list[str]:
    """The table of the chorales."""
    learned, out = chorales()
    tested = windows(out)
    count = notes(tested)
    print(f"{len(learned)} chorales to learn, {len(out)} held out: {len(tested)} windows, {count:,} notes", flush=True)
    done = args.out / "voices.json"  # patterns that were measured before stay
    found: dict[str, float] = json.loads(done.read_text()) if done.exists() else {}
    for order in (1, 2, 3):
        found[f"table, order {order}"] = Tables(order).learn(learned).bits(tested) / count
    found["table, order 1 and the voice above"] = Tables(1, above=True).learn(learned).bits(tested) / count
    for pattern in args.patterns:
        found[f"decoder, {pattern}"] = bits(decoder(pattern, learned, args), tested) / count
        print(f"{pattern}: {found[f'decoder, {pattern}']:.3f} bits a note", flush=True)
    done.write_text(json.dumps(found, indent=2))
    bars(found, "bits a note, held out", args.picture / "music-voices.png")
    rows = [f"| {name} | {value:.3f} |" for name, value in found.items()]
    about = f"{len(out)} chorales held out of {len(out) + len(learned)}, {count:,} notes"
    return [f"| {about} | bits a note |", "|---|---|", *rows]


def bars(found: dict[str, float], title: str, path: Path) -> None:
    """A bar for each value."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.4 * len(found) + 0.8), layout="constrained")
    axes = figure.subplots()
    names = list(found)[::-1]
    shown = axes.barh(names, [found[name] for name in names], color=["#06c" if "deco" in n else "#999" for n in names])
    axes.bar_label(shown, fmt="%.2f", padding=3, fontsize=8)
    axes.set_title(title, loc="left", fontsize=10)
    axes.margins(x=0.1)
    figure.savefig(path, dpi=90)


def prompts() -> list[Path]:
    """The spoken prompts of Asterisk, fetched once."""
    from anyformer.data import debian

    folder = debian.fetch("asterisk-core-sounds-en-wav", r".*\.wav", 60, "CC-BY-SA-3.0")
    return sorted(folder.rglob("*.wav"))


def mu_law(x: np.ndarray, bits_each: int) -> np.ndarray:
    """Samples after mu-law with so many bits: sign(x) log(1 + mu |x|) / log(1 + mu), mu = 255, in even steps."""
    half = 2**bits_each / 2
    y = np.sign(x) * np.log1p(255 * np.abs(x)) / math.log(256)
    y = np.clip((np.floor(y * half) + 0.5) / half, -1, 1)
    return np.sign(y) * np.expm1(np.abs(y) * math.log(256)) / 255


def plain(x: np.ndarray, rate: int, bandwidth: float, bits_each: int) -> np.ndarray:
    """A sound by mu-law at `bandwidth` bits a second: as few samples as that leaves."""
    import soxr

    fewer = bandwidth / bits_each
    again = soxr.resample(mu_law(soxr.resample(x, rate, fewer), bits_each), fewer, rate)
    return np.pad(again, (0, max(0, len(x) - len(again))))[: len(x)]


def scored(true: list[np.ndarray], made: list[np.ndarray], rate: int) -> tuple[float, float]:
    """SNR in dB over all samples, and the mean difference of log-mel spectra (ln, windows of 512, 64 mels)."""
    from anyformer.train.sound_objectives import SoundDistance

    noise = sum(float(np.square(a - b).sum()) for a, b in zip(true, made, strict=True))
    power = sum(float(np.square(a).sum()) for a in true)
    look, apart, count = SoundDistance(rate), 0.0, 0
    for pair in zip(true, made, strict=True):
        one, other = (look._log_mels(torch.from_numpy(np.float32(x))[None, :, None], 512, 64) for x in pair)
        apart, count = apart + float((one - other).abs().sum()), count + one.numel()
    return 10 * math.log10(power / noise), apart / count


def codec(args: argparse.Namespace) -> list[str]:
    """The table of the codec."""
    import soundfile

    from anyformer.generate import recoding

    files = [f for f in prompts() if soundfile.info(f).frames >= 2048]
    folder = args.out / "prompts"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, file in enumerate(f for i, f in enumerate(files) if i % 10):
        shutil.copy(file, folder / f"{number:04}.wav")
    given: dict[str, Any] = {name: getattr(args, name) for name in ("steps", "batch", "lr", "seed")}
    done: Any = train("encodec", "mini", data=folder, out=args.out / "codec", device="cpu", **given)
    model = af.load(done.checkpoint)
    out = files[::10]
    true = [soundfile.read(f, dtype="float32")[0] for f in out]
    seconds = sum(map(len, true)) / model.rate
    rows = [f"| {len(out)} prompts held out, {seconds:.0f} seconds | bits a second | SNR, dB | log-mel distance |",
            "|---|---|---|---|"]  # fmt: skip
    for bandwidth in model.bandwidths:
        said = [recoding.decode(model, recoding.encode(model, str(f), bandwidth)).samples for f in out]
        choices = {n: [plain(x, model.rate, 1000 * bandwidth, n) for x in true] for n in (2, 3, 4, 5, 6, 8)}
        best = max(choices, key=lambda n: scored(true, choices[n], model.rate)[0])
        other = f"mu-law, {best} bits of {1000 * bandwidth / best:.0f} Hz"
        for label, made in (("EnCodec", said), (other, choices[best])):
            snr, apart = scored(true, made, model.rate)
            rows.append(f"| {label} | {1000 * bandwidth:,.0f} | {snr:.2f} | {apart:.3f} |")
            print(rows[-1], flush=True)
    return rows


USUAL = {
    "voices": {"steps": 1200, "batch": 8, "lr": 3e-3, "dim": 96, "depth": 2},
    "codec": {"steps": 120, "batch": 8, "lr": 2e-3},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="what", required=True)
    for name, usual in USUAL.items():
        own = verbs.add_parser(name)
        own.add_argument("--out", type=Path, default=Path("runs/music"))
        own.add_argument("--into", type=Path, help="a text whose table, between its marks, is written anew")
        own.add_argument("--seed", type=int, default=0)
        if name == "voices":
            own.add_argument("--patterns", nargs="+", choices=list(PATTERNS), default=list(PATTERNS))
        for option, value in usual.items():
            own.add_argument(f"--{option}", type=type(value), default=value)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    args.picture = args.out if args.into is None else args.into.parent
    table = "\n".join({"voices": voices, "codec": codec}[args.what](args))
    print(table)
    if args.into is not None:
        documents.put(args.into, *MARKS[args.what], table)


if __name__ == "__main__":
    main()
