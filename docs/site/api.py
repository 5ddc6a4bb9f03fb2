"""Pages of the reference: mkdocstrings renders each module; a package lists its modules and what it exports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from docs.site.navigation import ROOT, api_page, docline, modules, package


def page(name: str) -> str:
    """The page of a module or a package, as Markdown for mkdocstrings."""
    if not package(name):
        return f"# {name}\n\n::: {name}\n"
    tree = ast.parse(file(name).read_text())
    own = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    own = [member for member in own if not member.startswith("_")]
    lines = [f"# {name}", "", f"::: {name}", "    options:", f"      members: {own or 'false'}", ""]
    if exports := sorted(exported(tree)):
        lines += ["## Names", "", "| name | defined in |", "|---|---|"]
        lines += [f"| {reference(member, home)} | `{home}` |" for member, home in exports]
    children = [n for n in modules() if n.rpartition(".")[0] == name]
    lines += ["", "## Modules", "", "| module | |", "|---|---|"] if children else []
    here = Path(api_page(name)).parent
    for child in children:
        link = Path(api_page(child)).relative_to(here)
        lines.append(f"| [`{child}`]({link}) | {docline(file(child)).replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def reference(name: str, module: str) -> str:
    """A name with a link to its description; constants have none."""
    return f"`{name}`" if name.isupper() else f"[`{name}`][{module}.{name}]"


def exported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The public classes, functions and constants that a package imports from our modules, each with its module."""
    listed = {
        text.value
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
        for text in ast.walk(node.value)
        if isinstance(text, ast.Constant)
    }
    for name, module in imported(tree).items():
        if name in listed and f"{module}.{name}" not in modules():
            yield name, definition(name, module)


def imported(tree: ast.Module) -> dict[str, str]:
    """The names that a file imports from our modules: name -> module."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {a.name: str(n.module) for n in nodes if (n.module or "").startswith("anyformer") for a in n.names}


def definition(name: str, module: str) -> str:
    """The module that defines a name: `module` itself, or one that it imports the name from."""
    tree = ast.parse(file(module).read_text())
    home = imported(tree).get(name)
    return module if home is None else definition(name, home)


def file(name: str) -> Path:
    """The source of a module."""
    path = ROOT / "src" / Path(*name.split("."))
    return path / "__init__.py" if package(name) else path.with_suffix(".py")
