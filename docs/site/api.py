"""Pages of the reference: mkdocstrings renders each module; a package lists its modules and the names that it exports."""

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
    """The public classes and functions that a package imports from modules of ours, each with the module."""
    listed = {
        text.value
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
        for text in ast.walk(node.value)
        if isinstance(text, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("anyformer"):
            for alias in node.names:
                if alias.name in listed and f"{node.module}.{alias.name}" not in modules():
                    yield alias.name, definition(str(node.module), alias.name)


def definition(module: str, name: str) -> str:
    """The module that defines a name: a package may import it from another one."""
    if package(module):
        return dict(exported(ast.parse(file(module).read_text()))).get(name, module)
    return module


def file(name: str) -> Path:
    """The source of a module."""
    path = ROOT / "src" / Path(*name.split("."))
    return path / "__init__.py" if package(name) else path.with_suffix(".py")
