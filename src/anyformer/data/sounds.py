"""Sounds with what is said in them: a text beside each sound, or Kaldi's lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from anyformer.data import files


def beside(root: Path, paths: Sequence[Path]) -> Iterator[dict[str, str]]:
    """Rows of a folder in which each sound has a text of its name: `1.wav`, `1.txt`; or none has one.

    Raises:
        ValueError: for a sound without a text, or a text without a sound.
    """
    texts = {path.with_suffix(""): path for path in paths if files.suffix(path) == ".txt"}
    said = bool(texts)
    for path in paths:
        if files.suffix(path) == ".txt":
            continue
        text = texts.pop(path.with_suffix(""), None)
        if not said:
            yield {"sound": str(path.relative_to(root))}
            continue
        if text is None:
            raise ValueError(f"{path} has no {path.stem}.txt beside it, which says what is said in it")
        yield {"sound": str(path.relative_to(root)), "text": "".join(files.decoded(text)).strip()}
    if texts:
        raise ValueError(f"{next(iter(texts.values()))} has no sound of its name beside it")


def kaldi(root: Path, paths: Sequence[Path]) -> Iterator[dict[str, str]]:
    """Rows of Kaldi's lists: `wav.scp` has a name and a file on each line, `text` a name and what is said.

    Raises:
        ValueError: for a command in place of a file, which is not run, or a name in one list only.
    """
    said = _named(root / "text")
    for name, place in _named(root / "wav.scp").items():
        if place.endswith("|"):
            raise ValueError(f"{root / 'wav.scp'}: {name} is a command ({place[:40]}), which is not run; write a file")
        if name not in said:
            raise ValueError(f"{root / 'text'} has no line for {name}, which is in wav.scp")
        yield {"sound": place, "text": said.pop(name)}
    if said:
        raise ValueError(f"{root / 'wav.scp'} has no line for {next(iter(said))}, which is in text")


def _named(path: Path) -> dict[str, str]:
    """The lines of a list: the first word, and the rest."""
    rows: dict[str, str] = {}
    for line in filter(str.strip, files.lines(path)):
        name, _, rest = line.strip().partition(" ")
        if name in rows:
            raise ValueError(f"{path}: {name} has two lines")
        rows[name] = rest.strip()
    return rows
