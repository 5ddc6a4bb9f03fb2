"""Sounds as the codes of a codec, in a file or not, and as sounds again. N samples, C channels, T frames, Q books."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyformer.generate.decoding import evaluating
from anyformer.hub.formats.guard import atomic_write
from anyformer.hub.processors import CodecProcessor, assumed
from anyformer.media.sound import Sound, sound
from anyformer.parts.sound.pieces import Coded

LONGEST = 600.0  # seconds of one sound: its frames are in memory at once
KINDS = {".wav": "WAV", ".flac": "FLAC"}  # of files that are written
NAMES = ("codes", "counts", "scales", "tables")  # in a file of codes


@torch.inference_mode()
def encode(model: Any, source: Any, bandwidth: float | None = None) -> Coded:
    """A sound as codes.

    Args:
        model: a codec. source: a file, or (samples, rate), as `media.sound` reads it; its rate and channels are changed
            to those of the codec.
        bandwidth: thousand bits a second, one of the codec's; None: all books.

    Raises:
        ValueError: for a model that is no codec, a sound of more than ten minutes, or what `media.sound` refuses.
    """
    steps = processor_of(model)
    heard = sound(source, steps.channels)
    if heard.seconds > LONGEST:
        raise ValueError(
            f"{heard.name} has {heard.seconds:.0f} seconds, and at most {LONGEST:.0f} are coded at once; cut it"
        )
    like = next(model.parameters())
    with evaluating(model):
        return model.codes_of(**{n: v.to(like.device) for n, v in steps(heard).items()}, bandwidth=bandwidth)


@torch.inference_mode()
def decode(model: Any, coded: Coded) -> Sound:
    """The sound of codes: the first of them, if there are several.

    Raises:
        ValueError: for a model that is no codec, or codes that are not its own.
    """
    steps = processor_of(model)
    with evaluating(model):
        samples = model.sound_of(*coded)[0, : int(coded.counts[0])].float().cpu().numpy()
    return Sound(samples[:, 0] if steps.channels == 1 else samples, steps.rate, "the decoded sound")


def processor_of(model: Any) -> CodecProcessor:
    """The processor of a codec.

    Raises:
        ValueError: for another model, or a processor for other sounds than the codec's.
    """
    if not hasattr(model, "codes_of"):
        what = model.page or type(model).__name__
        raise ValueError(f"{what} is no codec of sound; train one: anyformer train --model encodec --data sounds")
    steps = model.processor or assumed(model)
    wanted = (model.rate, model.embed.channels)
    if not isinstance(steps, CodecProcessor) or (steps.rate, steps.channels) != wanted:
        raise ValueError(f"the processor makes {steps}, and the codec reads {wanted[1]} channels of {wanted[0]} Hz")
    return steps


def bits_a_second(model: Any, coded: Coded) -> float:
    """Bits that the codes of a sound take in a second."""
    codes = coded.codes[0]
    seconds = int(coded.counts[0]) / model.rate
    loud = 0 if coded.scales is None else 32 * coded.scales.shape[1]
    return (codes.numel() * (model.codes.vocab - 1).bit_length() + loud) / seconds


def keep(path: str | Path, model: Any, coded: Coded) -> str:
    """Writes codes into a file (.npz), with the digest of the tables that they belong to; its name."""
    if Path(path).suffix != ".npz":
        raise ValueError(f"{path}: codes are kept in files that end in .npz")
    kind = np.uint16 if model.codes.vocab <= 1 << 16 else np.int32
    arrays: dict[str, Any] = {"codes": coded.codes.cpu().numpy().astype(kind), "counts": coded.counts.numpy()}
    if coded.scales is not None:
        arrays["scales"] = coded.scales.numpy()
    made = io.BytesIO()
    np.savez_compressed(made, tables=np.array(digest(model)), **arrays)
    atomic_write(Path(path), made.getvalue())
    return str(path)


def kept(path: str | Path, model: Any) -> Coded:
    """The codes of a file.

    Raises:
        ValueError: naming the file, if it is none, is damaged, or belongs to another codec.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no file {str(path)!r}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # of several libraries, all for a damaged file
        raise ValueError(f"{path} cannot be read as codes: {error}") from None
    if not {"codes", "counts", "tables"} <= set(arrays) <= set(NAMES):
        held = ", ".join(sorted(arrays)) or "nothing"
        raise ValueError(f"{path} holds {held}; a file of codes holds {', '.join(NAMES)}")
    if str(arrays["tables"]) != digest(model):
        raise ValueError(f"{path} holds codes of another codec: in the tables of this one they mean other sounds")
    scales = torch.from_numpy(arrays["scales"]) if "scales" in arrays else None
    return Coded(torch.from_numpy(arrays["codes"].astype(np.int64)), torch.from_numpy(arrays["counts"]), scales)


def digest(model: Any) -> str:
    """A short text that differs for codecs with other tables."""
    tables = torch.stack([book.table for book in model.codes.books]).float().cpu().numpy()
    return hashlib.sha256(tables.tobytes()).hexdigest()[:16]


def write(path: str | Path, made: Sound) -> str:
    """Writes a sound with 16 bits a sample (.wav, .flac), what is beyond -1 … 1 cut off; the name of the file.

    Raises:
        ValueError: for another kind of file. ImportError: without soundfile.
    """
    kind = KINDS.get(Path(path).suffix.lower())
    if kind is None:
        raise ValueError(f"{path}: sounds are written to files that end in {' or '.join(KINDS)}")
    try:
        import soundfile
    except ImportError:
        raise ImportError("sound needs `pip install soundfile soxr`") from None
    content = io.BytesIO()
    soundfile.write(content, np.clip(made.samples, -1.0, 1.0), made.rate, format=kind, subtype="PCM_16")
    atomic_write(Path(path), content.getvalue())
    return str(path)
