"""Files as documents: their text, where its paragraphs are and under which headings, and the line of every character.

```
file ── decode ──> text ── paragraphs ──> blocks (begin, end, headings)        marks: offset -> line (PDF: page)
```
Text, Markdown, reStructuredText and Python keep the text of their file; of HTML and PDF it is taken out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from anyformer.know.document import Block, Document, NotRead
from anyformer.know.markup import html

MARKS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig"))
TITLE = 1000  # characters of a heading
FENCE = re.compile(r" {0,3}(```+|~~~+)")
HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$")
UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*$")
RULE = re.compile(r"([!-/:-@\[-`{-~])\1{2,}\s*$")  # under or around a title of reStructuredText
DEFINITION = re.compile(r"( {0,4})(?:async[ ]+def|def|class)[ ]+(\w+)")


def document(name: str, data: bytes) -> Document:
    """The document of the content of a file.

    Raises:
        NotRead: with the reason: its kind, its encoding, a lock, no text.
    """
    reader = READERS.get(Path(name).suffix.lower())
    if reader is None:
        raise NotRead(f"{Path(name).suffix or 'no suffix'} is not read")
    found = reader(data)
    if not found.blocks:
        raise NotRead(found.note or "no text in it")
    return found


def of_lines(text: str, blocks: Sequence[Block]) -> Document:
    """A document whose text is that of its file."""
    marks = [0, *(found.end() for found in re.finditer("\n", text))]
    return Document(text, tuple(blocks), marks, range(1, len(marks) + 1))


def decoded(data: bytes) -> str:
    """The text of a file, with \\n at the end of lines.

    Raises:
        NotRead: for anything but UTF-8, or UTF-16 that says so.
    """
    name = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(name)
    except UnicodeDecodeError as error:
        raise NotRead(f"not {name.upper()} at byte {error.start:,}") from None
    if "\0" in text:
        raise NotRead("zero bytes in it: not a text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def lines(text: str) -> Iterator[tuple[int, str]]:
    """(offset, line without its end)."""
    at = 0
    for line in text.split("\n"):
        yield at, line
        at += len(line) + 1


def paragraphs(rows: Sequence[tuple[int, str]], trail: tuple[str, ...] = ()) -> list[Block]:
    """The blocks between empty lines; code between fences is one block, with its empty lines."""
    made, begin, end, fence = list[Block](), -1, 0, ""
    for at, line in rows:
        mark = FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence):
            fence = ""
        if line.strip():
            begin, end = (at if begin < 0 else begin), at + len(line)
        elif begin >= 0 and not fence:
            made.append(Block(begin, end, trail))
            begin = -1
    return [*made, Block(begin, end, trail)] if begin >= 0 else made


def sections(text: str, level: Callable[[list[tuple[int, str]], int], tuple[int, str, int] | None]) -> Document:
    """A document with headings.

    Args:
        level: of (rows, i): (depth, title, rows that it takes) if a heading begins in row i.
    """
    rows, blocks = list(lines(text)), list[Block]()
    trail, begin, i, fence = list[tuple[int, str]](), 0, 0, ""
    while i < len(rows):
        mark = FENCE.match(rows[i][1])
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        found = None if fence else level(rows, i)
        if found is None:
            i += 1
            continue
        depth, title, taken = found
        blocks += paragraphs(rows[begin:i], tuple(t for _, t in trail))
        trail = [*(one for one in trail if one[0] < depth), (depth, title)]
        last, line = rows[i + taken - 1]
        blocks.append(Block(rows[i][0], last + len(line), tuple(t for _, t in trail), True))
        begin = i = i + taken
    return of_lines(text, blocks + paragraphs(rows[begin:], tuple(t for _, t in trail)))


def plain(data: bytes) -> Document:
    """Text: paragraphs between empty lines."""
    text = decoded(data)
    return of_lines(text, paragraphs(list(lines(text))))


def markdown(data: bytes) -> Document:
    """Markdown: headings of both forms; a fence holds what is in it together."""

    def level(rows: list[tuple[int, str]], i: int) -> tuple[int, str, int] | None:
        if len(rows[i][1]) <= TITLE and (found := HEADING.match(rows[i][1])):
            return len(found[1]), found[2], 1
        title = rows[i][1].strip()
        alone = i == 0 or not rows[i - 1][1].strip()
        under = UNDERLINE.match(rows[i + 1][1]) if title and alone and i + 1 < len(rows) else None
        return (1 if under[1][0] == "=" else 2, title, 2) if under else None

    return sections(decoded(data), level)


def restructured(data: bytes) -> Document:
    """reStructuredText: a title has a line of one sign under it, perhaps one above; signs are levels as they come."""
    order = list[str]()

    def depth(sign: str) -> int:
        if sign not in order:
            order.append(sign)
        return order.index(sign)

    def level(rows: list[tuple[int, str]], i: int) -> tuple[int, str, int] | None:
        def row(j: int) -> str:
            return rows[j][1].rstrip() if j < len(rows) else ""

        def rules(j: int, title: str) -> bool:
            return bool(title) and bool(RULE.match(row(j))) and len(row(j)) >= len(title)

        if RULE.match(row(i)) and rules(i + 2, row(i + 1).strip()) and row(i) == row(i + 2):
            return depth(row(i)[0] * 2), row(i + 1).strip(), 3
        title, alone = row(i), i == 0 or not row(i - 1)
        if alone and title and not title[0].isspace() and not RULE.match(title) and rules(i + 1, title):
            return depth(row(i + 1)[0]), title, 2
        return None

    return sections(decoded(data), level)


def python(data: bytes) -> Document:
    """Python: a class, and each function of it or of the module, begins a section with its name."""
    text = decoded(data)
    rows, blocks = list(lines(text)), list[Block]()
    trail, begin = list[tuple[int, str]](), 0
    starts = [(i, found) for i, (_, line) in enumerate(rows) if (found := DEFINITION.match(line))]
    for i, found in starts:
        first = i
        while first > begin and re.match(rf"{found[1]}[@#]", rows[first - 1][1]):  # decorators and comments above it
            first -= 1
        blocks += paragraphs(rows[begin:first], tuple(t for _, t in trail))
        trail, begin = [*(one for one in trail if one[0] < len(found[1])), (len(found[1]), found[2])], first
    return of_lines(text, blocks + paragraphs(rows[begin:], tuple(t for _, t in trail)))


def page(data: bytes) -> Document:
    """HTML: see `know.markup`."""
    return html(decoded(data))


def pages(data: bytes) -> Document:
    """PDF, by pypdf: the text of each page.

    Raises:
        NotRead: without pypdf, for a file that needs a password, and for one that cannot be read.
    """
    try:
        import pypdf
    except ImportError:
        raise NotRead("PDF needs pypdf: pip install 'anyformer[know]'") from None
    from io import BytesIO

    texts, empty = list[str](), 0
    try:
        reader = pypdf.PdfReader(BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise NotRead("encrypted: it needs a password")
        for sheet in reader.pages:
            texts.append(re.sub(r"[\0\r\x0b\x0c]", " ", sheet.extract_text() or ""))
            empty += not texts[-1].strip()
    except NotRead:
        raise
    except Exception as error:  # pypdf raises what it meets
        raise NotRead(f"not a readable PDF: {type(error).__name__}: {str(error)[:100]}") from None
    text, blocks, marks = "", list[Block](), list[int]()
    for one in texts:
        marks.append(len(text))
        blocks += [Block(b.begin + len(text), b.end + len(text)) for b in paragraphs(list(lines(one)))]
        text += one + "\n\n"
    note = f"{empty} of {len(texts)} pages have no text (pictures of text are not read)" if empty else ""
    return Document(text, tuple(blocks), marks or [0], range(1, max(2, len(marks) + 1)), "page", note)


READERS: dict[str, Callable[[bytes], Document]] = {
    ".txt": plain, ".md": markdown, ".rst": restructured, ".html": page, ".htm": page, ".py": python, ".pdf": pages,
}  # fmt: skip
