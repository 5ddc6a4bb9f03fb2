"""Pictures with captions in English, for models of both: Tux Paint's stamps, and emoji with their Unicode names.

| source | pictures | captions             | package                            | licence |
|--------|----------|----------------------|------------------------------------|---------|
| stamps | 785      | "A great blue heron." | tuxpaint-stamps-default (161 MB)   | GPL-2   |
| emoji  | 1,390    | "cat face"           | fonts-noto-color-emoji (10 MB)     | OFL-1.1 |

Both are fetched by apt on first use and kept in the cache. Stamps that are drawings (SVG) are left out.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anyformer.data import debian
from anyformer.media.picture import coloured, picture, pillow

SIZE = 109  # of the bitmaps in the font
SYMBOLS = ("So", "Sm", "Po", "Sk")  # general categories of characters that the font draws in colours
STAMPS = "usr/share/tuxpaint/stamps"
FONT = "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"


@dataclass(frozen=True)
class Captioned:
    """A picture (Pillow, RGB on white), its caption, its kind in the source, and the file in which it is spoken."""

    image: Any
    text: str
    kind: str
    spoken: Path | None = None


def captions() -> list[Captioned]:
    """All stamps and emoji, in the order of their names.

    Raises:
        OSError: if they are not in the cache and cannot be fetched. ImportError: without Pillow.
    """
    return stamps() + emoji()


def stamps() -> list[Captioned]:
    """Tux Paint's stamps that are bitmaps, with the first line of their description; the kind is the folder."""
    wanted = rf"{STAMPS}/.*[.](png|txt)"
    root = debian.fetch("tuxpaint-stamps-default", wanted, 161, "GPL-2") / STAMPS
    return [one for file in sorted(root.rglob("*.txt")) if (one := _stamp(file, root))]


def _stamp(file: Path, root: Path) -> Captioned | None:
    """A stamp by the file of its description, if it is a bitmap."""
    bitmap, text = file.with_suffix(".png"), file.read_text("utf-8", "replace").partition("\n")[0].strip()
    if not bitmap.exists() or not text:
        return None
    return Captioned(coloured(picture(bitmap), 3), text, bitmap.relative_to(root).parts[0])


def spoken_stamps(language: str) -> list[Captioned]:
    """The stamps whose description is spoken in a language ("fr", "es", "ru" …) in the package; the text is English."""
    wanted = rf"{STAMPS}/.*([.]png|[.]txt|_desc_{re.escape(language)}[.]ogg)"
    root = debian.fetch("tuxpaint-stamps-default", wanted, 161, "GPL-2", part=language) / STAMPS
    made = [(file, file.with_name(f"{file.stem}_desc_{language}.ogg")) for file in sorted(root.rglob("*.txt"))]
    return [replace(one, spoken=sound) for file, sound in made if sound.exists() and (one := _stamp(file, root))]


def emoji() -> list[Captioned]:
    """Noto's colour bitmaps of single characters, each with its name in lower case; the kind is "emoji"."""
    path = debian.fetch("fonts-noto-color-emoji", FONT, 10, "OFL-1.1") / FONT
    return [Captioned(image, unicodedata.name(char).lower(), "emoji") for char, image in _drawn(path)]


def _drawn(path: Path) -> list[tuple[str, Any]]:
    pil, draw = pillow(), pillow("PIL.ImageDraw")
    font = pillow("PIL.ImageFont").truetype(str(path), SIZE)
    drawings = []
    for char in map(chr, range(0x80, 0x1FC00)):
        if unicodedata.category(char) in SYMBOLS and font.getmask(char, mode="RGBA").getbbox():
            canvas = pil.new("RGBA", font.getbbox(char)[2:], (255, 255, 255, 0))
            draw.Draw(canvas).text((0, 0), char, font=font, embedded_color=True)
            drawings.append((char, coloured(canvas, 3)))
    return drawings


def split(pairs: list[Captioned], share: float = 0.1) -> tuple[list[Captioned], list[Captioned]]:
    """The pairs to train on, and the held-out pairs: split by a hash of the caption, so that no caption is in both and
    more data moves none. Held-out pairs have one picture for each caption."""
    learn, measure, seen = [], [], set()
    for pair in pairs:
        words = " ".join("".join(c if c.isalnum() else " " for c in pair.text.lower()).split())
        if zlib.crc32(words.encode()) % 1000 >= share * 1000:
            learn.append(pair)
        elif words not in seen:
            seen.add(words)
            measure.append(pair)
    return learn, measure
