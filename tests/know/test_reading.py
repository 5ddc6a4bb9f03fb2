"""Files as documents: text, headings, lines; what is left out, and why."""

import io

import pytest

from anyformer.know.document import NotRead
from anyformer.know.reading import document


def blocks(name, text):
    read = document(name, text.encode())
    return [(read.text[b.begin : b.end], b.trail, read.places(b.begin, b.end)[0][1]) for b in read.blocks]


def test_markdown_has_headings_of_both_forms_and_fences_hold_together():
    found = blocks("a.md", "Top\n===\n\nhello\nthere\n\n## Sub ##\n\n```\n# no heading\n\nx\n```\n\n# Next\ntext\n")
    assert found == [
        ("Top\n===", ("Top",), 1),
        ("hello\nthere", ("Top",), 4),
        ("## Sub ##", ("Top", "Sub"), 7),
        ("```\n# no heading\n\nx\n```", ("Top", "Sub"), 9),
        ("# Next", ("Next",), 15),
        ("text", ("Next",), 16),
    ]


def test_restructured_text_orders_its_signs_as_they_come():
    found = blocks("a.rst", "====\nBook\n====\n\nOne\n---\n\nx\n\nDeep\n~~~~\n\ny\n\nTwo\n---\nz\n")
    assert [(text, trail) for text, trail, _ in found if text in "xyz"] == [
        ("x", ("Book", "One")), ("y", ("Book", "One", "Deep")), ("z", ("Book", "Two"))
    ]  # fmt: skip


def test_python_has_functions_and_methods_as_headings_with_their_decorators():
    source = (
        'import os\n\n\nclass A:\n    """Doc."""\n\n    @property\n    def b(self):\n        return 1\n\n\ndef c():\n'
        "    pass\n"
    )
    found = blocks("a.py", source)
    assert [trail for _, trail, _ in found] == [(), ("A",), ("A", "b"), ("c",)]
    assert found[2][0].startswith("    @property") and found[2][2] == 7


def test_html_keeps_the_lines_of_its_source_and_leaves_scripts_out():
    head = "<title>T</title>\n<script>var x;</script>\n"
    source = head + "<h1>A &amp; B</h1>\n<p>one\ntwo <b>bold</b><p>three\n<pre>x\n  y</pre>"
    found = blocks("a.html", source)
    assert [text for text, _, _ in found] == ["T", "A & B", "one two bold", "three", "x\n  y"]
    assert [line for _, _, line in found] == [1, 3, 4, 5, 6] and found[2][1] == ("A & B",)
    read = document("a.html", source.encode())
    at = read.text.index("two")
    assert read.places(at, at + 3) == [(0, 5)]


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("a.bin", b"x", ".bin is not read"),
        ("a.txt", b"caf\xe9", "not UTF-8 at byte 3"),
        ("a.txt", b"a\0b", "zero bytes"),
        ("a.txt", b" \n\n ", "no text"),
        ("a.html", b"<script>1</script>", "no text"),
        ("a.pdf", b"%PDF-1.4 broken", "not a readable PDF|needs pypdf"),
    ],
)
def test_what_cannot_be_read_says_why(name, data, why):
    with pytest.raises(NotRead, match=why):
        document(name, data)


def test_other_encodings_and_line_ends_that_say_so_are_read():
    for data in ("naïve\nx".encode("utf-16"), b"\xef\xbb\xbfna\xc3\xafve\r\nx", b"na\xc3\xafve\rx"):
        assert document("a.txt", data).text == "naïve\nx"


def test_a_long_row_of_spaces_behind_a_mark_takes_no_time():
    assert document("a.md", ("# a" + " " * 200_000 + "b\n").encode()).blocks


def pdf(*pages):
    """A PDF with a line of text on each page."""
    objects = ["<</Type/Catalog/Pages 2 0 R>>", "", "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    kids = []
    for text in pages:
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET" if text else ""
        objects.append(f"<</Length {len(stream)}>>\nstream\n{stream}\nendstream")
        fonts = "/Resources<</Font<</F1 3 0 R>>>>"
        objects.append(f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]{fonts}/Contents {len(objects)} 0 R>>")
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<</Type/Pages/Count {len(kids)}/Kids[{' '.join(kids)}]>>"
    out, places = "%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    size = len(objects) + 1
    head = f"{out}xref\n0 {size}\n0000000000 65535 f \n{table}trailer<</Size {size}/Root 1 0 R>>\n"
    return f"{head}startxref\n{len(out)}\n%%EOF".encode()


def test_pdf_has_pages_and_says_which_have_no_text():
    pytest.importorskip("pypdf")
    read = document("a.pdf", pdf("Hello world", "", "Third page"))
    assert [read.text[b.begin : b.end] for b in read.blocks] == ["Hello world", "Third page"]
    assert read.unit == "page" and read.places(read.blocks[1].begin, read.blocks[1].end) == [(0, 3)]
    assert read.note.startswith("1 of 3 pages have no text")
    with pytest.raises(NotRead, match="1 of 1 pages have no text"):
        document("b.pdf", pdf(""))


def test_a_pdf_with_a_password_is_left_out():
    pypdf = pytest.importorskip("pypdf")
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf("Secret")))
    writer.encrypt("word", algorithm="RC4-128")
    held = io.BytesIO()
    writer.write(held)
    with pytest.raises(NotRead, match="encrypted: it needs a password"):
        document("a.pdf", held.getvalue())
