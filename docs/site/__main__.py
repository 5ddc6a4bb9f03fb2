"""Writes all pages into build/docs, then has zensical make the site of them.

python -m docs.site            # build/site; a warning is an error, a link or an anchor that leads nowhere, too
python -m docs.site --serve    # the same on http://127.0.0.1:8000
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from anyformer.core import pages
from docs.site import api, gallery, tutorials
from docs.site.navigation import DOCUMENTS, ROOT, api_page, examples, modules, navigation, toml
from docs.site.navigation import tutorials as scripts

BUILD = ROOT / "build"
LINK = re.compile(r"""(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^()\s]+)\)|(<img[^>]*\bsrc=)"([^"]+)\"""")
PICTURES = (".png", ".svg")


def main() -> int:
    """Stages, then builds or serves; returns an exit status."""
    folder = BUILD / "docs"
    shutil.rmtree(folder, ignore_errors=True)
    stage(folder)
    serve = "--serve" in sys.argv[1:]
    command = [sys.executable, "-m", "zensical", *(["serve"] if serve else ["build", "--strict", "--clean"])]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    if serve:
        return subprocess.run([*command, "-f", str(BUILD / "zensical.toml")], env=environment).returncode
    done = subprocess.run(
        [*command, "-f", str(BUILD / "zensical.toml")],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if not joint(line)]
    print("\n".join(lines))
    wrong = [line for line in lines if line.startswith("griffe:")]
    if wrong:
        print(f"{len(wrong)} docstrings do not fit their functions, see above")
    return done.returncode or bool(wrong)


def joint(line: str) -> bool:
    """A remark about one line of a docstring for several parameters, `heads, buckets: …`, which is as we write."""
    return line.startswith("griffe:") and bool(re.search(r"arameter '\w+(, \w+)+'", line))


def stage(folder: Path) -> None:
    """Writes every page, every picture and the settings."""
    home = {file: page for files in DOCUMENTS.values() for page, file in files.items()}
    home |= {f"examples/{f.name}": f"examples/{f.stem}.md" for f in examples()}
    home |= {f"examples/tutorials/{f.name}": f"tutorials/{f.stem}.md" for f in scripts()}
    home |= {f"src/anyformer/models/{name}.py": f"architectures/{name}.md" for name in pages.names()}
    home |= {"src/anyformer/models": "architectures/index.md"}
    for picture in (ROOT / "docs").rglob("*"):
        if picture.suffix in PICTURES:
            home[str(picture.relative_to(ROOT))] = target = str(picture.relative_to(ROOT / "docs"))
            put(folder / target, picture.read_bytes())
    for files in DOCUMENTS.values():
        for page, file in files.items():
            put(folder / page, relinked((ROOT / file).read_text(), page, file, home))
    for script in scripts():
        page = f"tutorials/{script.stem}.md"
        put(folder / page, relinked(tutorials.page(script), page, f"docs/{page}", home))
    for script in examples():
        put(folder / "examples" / f"{script.stem}.md", source(script))
    for name in modules():
        put(folder / api_page(name), api.page(name))
    put(folder / "architectures" / "index.md", gallery.index())
    for entry in pages.pages():
        put(folder / "architectures" / f"{entry.name}.md", gallery.entry(entry))
        gallery.picture(entry, folder / "architectures" / f"{entry.name}.svg")
    here = Path(__file__).parent
    put(folder / "site.css", (here / "site.css").read_bytes())
    settings = (here / "zensical.toml").read_text()
    (BUILD / "zensical.toml").write_text(settings.replace("[project]\n", f"[project]\nnav = {toml(navigation())}\n", 1))


def put(path: Path, content: str | bytes) -> None:
    """Writes a file, and its folder if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def source(script: Path) -> str:
    """An example as a page: its docstring and its code."""
    code = script.read_text()
    docstring = ast.get_docstring(ast.parse(code)) or ""
    return f"# {script.name}\n\n{docstring}\n\n```python\n{code.rstrip()}\n```\n"


def relinked(text: str, page: str, file: str, home: dict[str, str]) -> str:
    """A document whose links lead to pages of the site. A link to a file of the repository that is no page becomes
    plain text; one that leads nowhere stays, and the build names it.
    """

    def link(match: re.Match[str]) -> str:
        label, target, tag, image = match.groups()
        path, _, anchor = (target or image).partition("#")
        if not path or ":" in path:
            return match[0]
        own = os.path.normpath(os.path.join(os.path.dirname(file), path))
        if own in home:
            new = os.path.relpath(home[own], os.path.dirname(page) or ".") + (f"#{anchor}" if anchor else "")
            return f'{tag}"{new}"' if tag else f"{label}({new})"
        return label.strip("![]") if label and (ROOT / own).exists() else match[0]

    return outside_code(text, lambda prose: LINK.sub(link, prose))


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """Changes a Markdown text, its fenced code excepted."""
    parts = re.split(r"(^```.*?^```)", text, flags=re.M | re.S)
    return "".join(part if part.startswith("```") else change(part) for part in parts)


if __name__ == "__main__":
    sys.exit(main())
