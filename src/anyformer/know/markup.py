"""The text of HTML, its headings, and the line of the file from which each piece comes."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from anyformer.know.document import Block, Document

SILENT = {"script", "style", "template", "noscript", "svg", "math"}
BREAKS = {
    "address", "article", "aside", "blockquote", "body", "dd", "details", "div", "dl", "dt", "fieldset", "figcaption",
    "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "html", "li", "main", "nav", "ol",
    "p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "title", "tr", "ul",
}  # fmt: skip


class Reader(HTMLParser):
    """Collects paragraphs as the parser meets them."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.blocks = list[str](), list[Block]()
        self.length, self.begin = 0, 0
        self.marks, self.numbers = list[int](), list[int]()
        self.silent, self.kept, self.level = 0, 0, 0
        self.trail = list[tuple[int, str]]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.silent += tag in SILENT
        if tag in BREAKS:
            self.close_block()
            self.kept += tag == "pre"
            self.level = int(tag[1]) if re.fullmatch("h[1-6]", tag) else 0
        elif tag == "br":
            self.put("\n")
        elif tag in ("td", "th"):
            self.put(" ")

    def handle_endtag(self, tag: str) -> None:
        self.silent = max(0, self.silent - (tag in SILENT))
        if tag in BREAKS:
            self.close_block()
            self.kept = max(0, self.kept - (tag == "pre"))
            self.level = 0

    def handle_data(self, data: str) -> None:
        if self.silent:
            return
        line = self.getpos()[0]
        for i, part in enumerate(data.split("\n")):
            if i:
                self.put("\n" if self.kept else " ")
            if part:
                self.marks.append(self.length)
                self.numbers.append(line + i)
                self.put(part.replace("\0", ""))

    def put(self, text: str) -> None:
        self.text.append(text)
        self.length += len(text)

    def close_block(self) -> None:
        """Ends the paragraph."""
        whole = "".join(self.text[self.begin :])
        first = self.length - len(whole)
        self.put("\n\n")
        self.begin = len(self.text)
        if not whole.strip():
            return
        begin, end = first + len(whole) - len(whole.lstrip()), first + len(whole.rstrip())
        if self.level:
            title = " ".join(whole.split())
            self.trail = [*(one for one in self.trail if one[0] < self.level), (self.level, title)]
        self.blocks.append(Block(begin, end, tuple(t for _, t in self.trail), self.level > 0))


def html(source: str) -> Document:
    """The document of HTML: paragraphs are block elements; scripts, styles and pictures have no text."""
    reader = Reader()
    reader.feed(source)
    reader.close()
    reader.close_block()
    return Document("".join(reader.text), tuple(reader.blocks), reader.marks or [0], reader.numbers or [1])
