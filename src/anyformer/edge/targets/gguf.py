"""GGUF: one file for llama.cpp, with the tokens of bytes inside: language models of pages that have such a map.

Matrices are blocks of 32 whole numbers and a scale (Q8_0, Q4_0), in the file and in memory. llama.cpp rounds the other
factor of a product with them to 8 bits, so the answers of a design are those of the file, and the check of every number
is that of the same model in float32.

A file of a page has one number of heads, key/value heads and hidden columns for all layers: they are alike here.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from anyformer.compress import few
from anyformer.core import pages
from anyformer.core.recipe import Recipe
from anyformer.edge import artefact
from anyformer.edge.shared import GROUP
from anyformer.edge.space import LAYER, PATHS, Choice, Space
from anyformer.edge.targets.base import HELD, Probe, Run, Sums, Target, Written
from anyformer.hub.save_gguf import save_gguf
from anyformer.hub.text.tokenizer import Tokenizer

BLOCKS = f"rows are no whole blocks of {GROUP} numbers, which a GGUF file has"
# hyperparameters of pages, and where a recipe has them
FOUND = {**PATHS, "context": "context", "head_dim": "blocks.0.mixer.head_dim"}
OWN = Path(__file__).parents[1]


class Gguf(Target):
    """llama.cpp."""

    name, file, packages, install = "gguf", "model.gguf", ("llama_cpp",), "pip install llama-cpp-python"
    needs, imports, opens, calls = "llama-cpp-python", "import llama_cpp", "", ("", "")
    beside, exact = 2, False
    alone = (
        "bits",
        "a file for llama.cpp is written of language models alone; choose --target onnx, executorch or torch for "
        "classes and scores, or --metric bits with --model llama and running text",
    )

    def runtime(self) -> str:
        return f"llama-cpp-python {version('llama-cpp-python')}"

    def write(self, model: Any, path: Path, facts: Mapping[str, Any] | None = None, whole: bool = False) -> Written:
        made = copy.copy(model)
        made.page, made.config = paged(model.recipe)
        made.tokenizer = model.tokenizer or Tokenizer.bytes_level()
        save_gguf(made, path, "float32", overwrite=True)
        return Written()

    def opened(self, path: Path, exact: bool = False) -> Run:
        """The file as a function. `exact`: with nothing rounded on the way but the factors of blocks."""
        from anyformer.edge.llama import Session

        session = Session(path, self.tokens, self.threads, exact)
        return lambda input_ids: np.stack([session.over(row)().copy() for row in input_ids.tolist()])

    def difference(self, path: Path, model: Any, batches: Sequence[dict[str, Tensor]]) -> float:
        return artefact.difference(self.opened(path, exact=True), model, batches)

    def measured(self, path: Path, model: Any) -> list[list[float]]:
        loaded = f'run = Session(path, {self.tokens}, int(threads)).over(feed["input_ids"][0])'
        return artefact.measured(
            path, self.example(model), self.threads, loaded=((OWN / "llama.py").read_text(encoding="utf-8"), loaded)
        )

    def plan(self, model: Any, bits: int) -> list[few.Entry]:
        """Every matrix, its zeros in the middle; those without whole blocks are left."""
        made = [replace(e, centred=True) for e in few.plan(model, bits, GROUP)]
        odd = {f"{e.path}.weight" for e in made if e.bits}
        odd = {n.removesuffix(".weight") for n, w in model.named_parameters() if n in odd and w.shape[1] % GROUP}
        return [replace(e, bits=None, why=BLOCKS) if e.path in odd else e for e in made]

    def marks(self, choice: Choice) -> Choice:
        """The bits: products with blocks of four take less time."""
        return {HELD: choice.get("bits", 8)}

    def script(self, medium: Any) -> bytes:
        """The script, with the state that llama.cpp keeps: a byte costs one step."""
        return (OWN / "gguf.txt").read_bytes()

    def files(self, model: Any, facts: Mapping[str, Any]) -> dict[str, bytes]:
        return {"facts.json": json.dumps({"tokens": facts["tokens"]}).encode()}

    def fitted(self, space: Space, asked: Sequence[str] = ()) -> Space:
        return super().fitted(replace(space, alike=tuple(n for n in LAYER if n in space.layer)), asked)

    def probes(
        self, parts: Mapping[str, Choice], own: Choice, build: Callable[[Choice], Any], folder: Path
    ) -> tuple[dict[str, Probe], Sums]:
        """Layers of one file are alike: a layer is half of what three of them have more than one."""
        runs, sums = dict[str, Probe](), Sums()
        probe = self._prober(runs, build, folder)
        for name, part in parts.items():
            stream = {n: v for n, v in part.items() if "." not in n and n != "tied"}
            layer = own if part["depth"] == 0 else {n: v for n, v in part.items() if "." in n}
            one, three = (
                probe({**stream, "depth": d, **{f"{n[:-2]}.{i}": v for i in range(d) for n, v in layer.items()}})
                for d in (1, 3)
            )
            sums[name] = [(0.5, three), (-0.5, one)]
            if part["depth"] == 0:
                sums[name] = [(1, probe({**part, "depth": 1, **own})), (-0.5, three), (0.5, one)]
        return runs, sums


def paged(recipe: Recipe[Any]) -> tuple[str, Any]:
    """The page whose GGUF files hold a recipe, and the hyperparameters.

    Raises:
        ValueError: naming the first path at which the recipe differs from the page that is nearest.
    """
    there, nearest = dict(recipe.walk()), dict[int, tuple[str, str]]()
    for page in [p for p in pages.pages() if any(h.format == "gguf" for h in p.module.HUBS)]:
        for base in page.sizes.values():
            known = {f.name for f in dataclasses.fields(base)} & {n for n, path in FOUND.items() if path in there}
            sizes = {n: len(recipe["blocks"]) if n == "depth" else there[FOUND[n]] for n in known}
            try:
                config = replace(base, **sizes)
                made = page.recipe(config)
            except (ValueError, TypeError):
                continue
            if made == recipe:
                return page.name, config
            theirs = dict(made.walk())
            off = [(p, there.get(p), theirs.get(p)) for p in {**there, **theirs} if there.get(p) != theirs.get(p)]
            nearest.setdefault(len(off), (page.name, next(_said(*one) for one in off if _leaf(*one[1:]))))
    if not nearest:
        raise ValueError("no page with a map to GGUF files has such a recipe")
    name, what = nearest[min(nearest)]
    raise ValueError(f"a GGUF file, here of {name}, holds no {what}")


def _leaf(ours: Any, theirs: Any) -> bool:
    """True for values that differ themselves, and not by what is below them alone."""
    if isinstance(ours, Recipe) and isinstance(theirs, Recipe):
        return ours.part is not theirs.part
    return not isinstance(ours, tuple | list)


def _said(path: str, ours: Any, theirs: Any) -> str:
    ours, theirs = (v.part.__name__ if isinstance(v, Recipe) else repr(v) for v in (ours, theirs))
    return f"{path} = {ours} (it has {theirs})"
