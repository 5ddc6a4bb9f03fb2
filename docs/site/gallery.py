"""Pages of the gallery of architectures, made from the pages of `anyformer.models`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anyformer.core import pages
from anyformer.core.pages import Page
from anyformer.explain.wiring import draw

ORACLES = "https://huggingface.co/docs/transformers/model_doc/"
GGUF = "https://github.com/ggml-org/ggml/blob/master/docs/gguf.md"


def index() -> str:
    """The list of all architectures."""
    lines = [
        "# Architectures",
        "",
        "Each architecture is one file of `anyformer.models`: a docstring, hyperparameters, one function that returns",
        "the recipe, sizes, and the table of published names. This gallery is generated from these files.",
        "",
        "| page | architecture | skeleton | parameters |",
        "|---|---|---|---|",
    ]
    for page in pages.pages():
        counts = [parameters(page, size) for size in page.sizes if size not in ("tiny", "mini")]
        span = " to ".join(dict.fromkeys(map(short, (min(counts), max(counts))))) if counts else "-"
        skeleton = page.recipe(page.at("tiny")).part.__name__
        lines.append(f"| [`{page.name}`]({page.name}.md) | {page.summary} | `{skeleton}` | {span} |")
    return "\n".join(lines) + "\n"


def entry(page: Page) -> str:
    """One architecture: docstring, picture, differences, sizes, files and recipe."""
    text, differences = split(page.module.__doc__ or "")
    sections = [f"# {page.name}", text]
    if differences:
        sections += ["## Differences", linked(differences, page.name)]
    sections += [
        "## Wiring",
        f"`anyformer draw {page.name} --out {page.name}.svg` makes this picture, of the size `tiny`: each kind of "
        "block with its residual streams, and at the right the positions that each query may see.",
        f"![Wiring and masks of {page.name}]({page.name}.svg){{ .wiring }}",
        "## Sizes",
        "\n".join(sizes(page)),
        "## Files",
        "\n".join(files(page)),
        "## Recipe",
        f"`anyformer inspect {page.name}` prints the recipe of the size `tiny`; "
        f"the hyperparameters are those of [`anyformer.models.{page.name}`](../api/models/{page.name}.md).",
        "```python\n" + recipe(page) + "\n```",
    ]
    return "\n\n".join(sections) + "\n"


def picture(page: Page, path: Path) -> None:
    """The wiring of a page as SVG."""
    draw(page.recipe(page.at("tiny")), path, page.name)


def split(docstring: str) -> tuple[str, str]:
    """A page's docstring without its paragraph "Differs from …", and that paragraph."""
    paragraphs = re.split(r"\n\n", docstring.strip())
    differences = [p for p in paragraphs if "differs from" in p.lower() and not p.startswith("```")]
    return "\n\n".join(p for p in paragraphs if p not in differences), " ".join("\n".join(differences).split())


def relatives() -> dict[str, str]:
    """Names of architectures, as the first lines of docstrings have them, to pages: {"GPT-2": "gpt"}."""
    names = {page.name: page.summary.removeprefix("The ").partition(" (")[0] for page in pages.pages()}
    return {name: page for page, name in names.items()}


def linked(differences: str, own: str) -> str:
    """The paragraph, with a link to the page of each relative that it begins with."""
    for name, page in sorted(relatives().items(), key=lambda pair: -len(pair[0])):
        if page != own:
            begin = rf"([Dd]iffers from (?:the )?(?:2017 )?)({re.escape(name)})(?![\w-])"
            differences = re.sub(begin, rf"\1[\2]({page}.md)", differences)
    return differences


def sizes(page: Page) -> Iterator[str]:
    """A table of the sizes: parameters, and the hyperparameters that differ from the defaults."""
    yield "| size | parameters | hyperparameters other than the defaults |"
    yield "|---|---|---|"
    for name, config in page.sizes.items():
        changes = ", ".join(f"`{key}={value}`" for key, value in changed(config))
        yield f"| `{name}` | {parameters(page, name):,} | {changes or 'the defaults'} |"


def changed(config: Any) -> Iterator[tuple[str, str]]:
    """The fields of a configuration that differ from its class's defaults, with their values as Python."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield field.name, f"{type(value).__name__}({', '.join(f'{k}={v}' for k, v in changed(value))})"
        elif value != field.default:
            yield field.name, repr(value)


def files(page: Page) -> Iterator[str]:
    """The published files that the page reads and writes, and the reference that it is compared with."""
    hubs = getattr(page.module, "HUBS", ())
    if hubs:
        yield "| format | `model_type` | classes, in the documentation of their reference |"
        yield "|---|---|---|"
    for hub in hubs:
        if hub.format == "gguf":
            yield f"| [GGUF]({GGUF}) | `{hub.name}` | read, not written |"
        else:
            classes = ", ".join(f"[`{name}`]({oracle(hub)})" for name in hub.architectures)
            form = "a Hugging Face directory" if hub.format == "hf" else hub.format
            yield f"| {form} | `{hub.name}` | {classes} |"
    if hubs and any(hub.format == "hf" for hub in hubs):
        yield ""
        yield "Logits, hidden states and gradients equal those of these classes (the contract checks it)."
    if hasattr(page.module, "ORACLE"):
        yield f"No files are published in a form that is read here. The numbers are compared with: {page.module.ORACLE}"


def oracle(hub: Any) -> str:
    """The address of a family in transformers' documentation: that of its folder there."""
    return ORACLES + re.sub(r"_(text|thinker|decoder|(text|vision)_model)$", "", hub.name)


def recipe(page: Page) -> str:
    """The recipe of `tiny`, wrapped."""
    from anyformer.explain.tree import wrapped

    return wrapped(repr(page.recipe(page.at("tiny"))))


def parameters(page: Page, size: str) -> int:
    """The parameters of a size: the published count, or counted without memory."""
    published = page.module.PARAMETERS.get(size)
    return published or sum(p.numel() for p in pages.empty(page.recipe(page.sizes[size])).parameters())


def short(count: int) -> str:
    """124439808 -> 124 M"""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * scale:
            return f"{count / scale:.3g} {unit}"
    return str(count)
