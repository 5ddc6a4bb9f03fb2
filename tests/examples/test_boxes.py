"""The example of boxes runs from canvases to the table in a document, on drawings of its own."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLE = Path(__file__).parents[2] / "examples" / "boxes.py"


def test_boxes(tmp_path, monkeypatch, capsys):
    module = runpy.run_path(str(EXAMPLE))
    drawings = [Image.new("RGB", (40, 30 + i), (20 * i, 10, 90)) for i in range(len(module["KINDS"]))]
    main = module["main"]
    monkeypatch.setitem(main.__globals__, "glyphs", lambda: drawings)
    document = tmp_path / "doc.md"
    document.write_text(f"before\n{module['BEGIN']}\nold\n{module['END']}\nafter\n")
    small = ["--canvases", "20", "--test", "6", "--steps", "2", "--batch", "4", "--table", str(document)]
    monkeypatch.setattr(sys, "argv", ["boxes.py", "--out", str(tmp_path / "out"), *small])
    main()
    text, said = document.read_text(), capsys.readouterr().out
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    table = text.split(f"{module['BEGIN']}\n")[1].split(f"\n{module['END']}")[0]
    assert table in said and "connected components" in table and "DETR" in table
    with Image.open(tmp_path / "out" / "drawn-0.png") as drawn:
        assert drawn.size == (512, 512)
    content = json.loads((tmp_path / "out" / "learn" / "annotations.json").read_text())
    assert len(content["images"]) == 20 and len(content["categories"]) == len(module["KINDS"])
    monkeypatch.setattr(sys, "argv", ["boxes.py", "--table", str(tmp_path / "none.md")])
    with pytest.raises(SystemExit):
        main()
