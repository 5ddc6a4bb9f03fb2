"""The navigation: the order of the documents is written here, everything else is listed from the folders."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from anyformer.core import pages

ROOT = Path(__file__).parents[2]
Nav = list[tuple[str, Any]]  # (title, page of the site or Nav); no title: the index of the branch

# Page of the site -> file of the repository, by chapter. tests/test_site.py: no file of docs/ is forgotten.
DOCUMENTS: dict[str, dict[str, str]] = {
    "Guide": {
        "index.md": "README.md",
        "concepts.md": "docs/concepts.md",
    },
    "How to": {
        "command-line.md": "docs/command-line.md",
        "serving.md": "docs/serving.md",
        "engine.md": "docs/engine.md",
        "data.md": "docs/data.md",
        "tasks.md": "docs/tasks.md",
        "finetuning.md": "docs/finetuning.md",
        "alignment.md": "docs/alignment.md",
        "evaluation.md": "docs/evaluation.md",
        "federated.md": "docs/federated.md",
        "retrieval.md": "docs/retrieval.md",
        "rag.md": "docs/rag.md",
        "distributed.md": "docs/distributed.md",
        "compress.md": "docs/compress.md",
        "edge.md": "docs/edge.md",
        "scaling.md": "docs/scaling.md",
        "understanding.md": "docs/understanding.md",
        "long-context.md": "docs/long-context.md",
        "translation.md": "docs/translation.md",
        "pictures.md": "docs/pictures.md",
        "sound.md": "docs/sound.md",
        "music.md": "docs/music.md",
        "vision.md": "docs/vision.md",
        "flamingo.md": "docs/flamingo.md",
        "dalle.md": "docs/dalle.md",
        "multimodal.md": "docs/multimodal.md",
        "traps.md": "docs/traps.md",
        "proteins.md": "docs/proteins.md",
        "decisions.md": "docs/decisions.md",
        "series.md": "docs/series.md",
        "molecules.md": "docs/molecules.md",
        "adding-an-architecture.md": "docs/adding-an-architecture.md",
    },
    "Parts": {
        "parts.md": "docs/parts.md",
        "positions.md": "docs/positions.md",
    },
    "Measured": {
        "benchmarks.md": "docs/benchmarks.md",
        "attention.md": "docs/attention.md",
        "choose-an-attention.md": "docs/choose-an-attention.md",
        "log.md": "docs/log.md",
    },
    "Project": {
        "changelog.md": "CHANGELOG.md",
        "contributing.md": "CONTRIBUTING.md",
        "security.md": "SECURITY.md",
    },
}
TITLES = {"index.md": "Start"}  # in the navigation; the others are called by their first heading


def navigation() -> Nav:
    """Every page of the site, by chapter."""
    chapters: dict[str, Nav] = {
        name: [(title(page, file), page) for page, file in files.items()] for name, files in DOCUMENTS.items()
    }
    chapters["Guide"] += [
        ("Tutorials", [(docline(file), f"tutorials/{file.stem}.md") for file in tutorials()]),
        ("Examples", [(file.stem, f"examples/{file.stem}.md") for file in examples()]),
    ]
    gallery: Nav = [("", "architectures/index.md")]
    gallery += [(name, f"architectures/{name}.md") for name in pages.names()]
    order = ["Guide", "How to", "Parts", "Architectures", "Measured", "API", "Project"]
    return [
        (name, x) for name in order for x in [{"Architectures": gallery, "API": api()}.get(name, chapters.get(name))]
    ]


def title(page: str, file: str) -> str:
    """The first heading of a document."""
    return TITLES.get(page) or (ROOT / file).read_text().partition("# ")[2].partition("\n")[0]


def docline(file: Path) -> str:
    """The first sentence of a file's docstring, without its full stop."""
    paragraph = (ast.get_docstring(ast.parse(file.read_text())) or file.stem).partition("\n\n")[0]
    return " ".join(paragraph.split()).partition(". ")[0].rstrip(".:")


def tutorials() -> list[Path]:
    """The tutorials, in their order."""
    return sorted((ROOT / "examples" / "tutorials").glob("*.py"))


def examples() -> list[Path]:
    """The larger examples."""
    return sorted((ROOT / "examples").glob("*.py"))


def modules() -> list[str]:
    """Every public module: no part of its name begins with an underscore."""
    files = (file.relative_to(ROOT / "src").with_suffix("") for file in (ROOT / "src" / "anyformer").rglob("*.py"))
    names = (file.parent if file.name == "__init__" else file for file in files)
    return sorted(".".join(n.parts) for n in names if not any(part.startswith("_") for part in n.parts))


def api() -> Nav:
    """The public modules as a tree; a package is the index of its branch."""
    names = modules()

    def branch(name: str) -> Nav:
        children = [n for n in names if n.rpartition(".")[0] == name]
        return [
            ("", api_page(name)),
            *((c.rpartition(".")[2], branch(c) if package(c) else api_page(c)) for c in children),
        ]

    return branch("anyformer")


def api_page(module: str) -> str:
    """The page of a module: `api/core/recipe.md` for `anyformer.core.recipe`, `api/core/index.md` for the package; of a
    module that is called index, `api/cli/index_.md`."""
    _, *path = module.split(".")
    if package(module):
        return "/".join(["api", *path, "index.md"])
    return "/".join(["api", *path]) + ("_.md" if path[-1] == "index" else ".md")


def package(module: str) -> bool:
    """True for a package, False for a module that is a file."""
    return (ROOT / "src" / Path(*module.split("."))).is_dir()


def flat(nav: Nav) -> list[str]:
    """All pages of a navigation."""
    return [page for _, entry in nav for page in ([entry] if isinstance(entry, str) else flat(entry))]


def toml(nav: Nav) -> str:
    """The navigation as a value of TOML."""
    values = ((name, quoted(x) if isinstance(x, str) else toml(x)) for name, x in nav)
    rows = (f"{{ {quoted(name)} = {value} }}" if name else value for name, value in values)
    return "[" + ", ".join(rows) + "]"


def quoted(text: str) -> str:
    """A string of TOML."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
