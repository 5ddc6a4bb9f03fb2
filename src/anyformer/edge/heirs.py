"""Heirs: small models that begin with a teacher's own layers, a space of their own beside the searched one.

    dim = the teacher's        its first layers        of each the hidden columns that weigh most, 1, 2 or 4 x dim
    the token table: the rows of the pieces that the texts have most (`edge.pieces`)

A narrow model that begins anew learns from the rows alone what words mean; an heir has that in its first layer. What it
costs is width: most of its bytes are its table, so few bits are what fits. Weights are found by path and shape: the
teacher is any encoder with a stack of blocks and the skeleton of the searched page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.compress import few
from anyformer.core import pages
from anyformer.core.recipe import Recipe
from anyformer.edge.pieces import cuttable
from anyformer.edge.shared import sliced
from anyformer.edge.space import LAYER, MODEL, Choice, Space, space
from anyformer.edge.targets import Target
from anyformer.parts.embeddings import Table, Tokens
from anyformer.parts.pooling import AdditivePool

MARK = "heir"  # of a choice: the layers of the teacher
RATE = 3e-4  # the largest rate: above a teacher's, below that of models that begin anew
TABLE = "embed.tokens.weight"
STEP = 1024  # tokens between two vocabularies
NEW = ("pool", "heads")  # parts that an heir has of its own


class Heirs:
    """The heirs of a teacher.

    Args:
        teacher: a loaded model of texts. base: the recipe of the searched page, with the head of the task. known: the
            space of the search, whose vocabularies and bits they have.

    Raises:
        ValueError: for a teacher that has no heirs, with the reason.
    """

    def __init__(self, teacher: Any, base: Recipe[Any], known: Space):
        own = teacher.recipe
        if own.part is not base.part or not own["embed"].part is base["embed"].part is Tokens:
            raise ValueError(f"it is {own.part.__name__} over {own['embed'].part.__name__}, unlike the page")
        if not cuttable(teacher.tokenizer):
            raise ValueError("its tokenizer is no WordPiece")
        self.teacher, there = teacher, dict(own.walk())
        self.hidden, layers = there.get("blocks.0.ffn.hidden"), len(own["blocks"])
        heads, kv_heads = (there.get(f"blocks.0.mixer.{n}") for n in ("heads", "kv_heads"))
        most, least = max(known.model["vocab"]), min(known.model["vocab"])
        values: dict[str, tuple[Any, ...]] = {
            "dim": (own["dim"],), "depth": tuple(d for d in MODEL["depth"] if d <= layers),
            "vocab": (*range(least, most, STEP), most), "bits": known.model["bits"],
            "pool": ("own",), "mixer": ("own",),
        }  # fmt: skip
        if heads is not None:
            values |= {"heads": (heads,), "kv_heads": (kv_heads or 0,)}
        if self.hidden is not None:
            values["hidden"] = tuple(k for k in LAYER["hidden"] if k * own["dim"] <= self.hidden)
        self.mark = layers
        self.space = space(own.but({"pool": AdditivePool.of(), "heads": base["heads"]}), known.tokens, values)
        self._check()

    def _check(self) -> None:
        """Raises ValueError if the largest heir has a weight that the teacher lacks, or a larger one."""
        known = {n: t.shape for n, t in self.teacher.state_dict().items()}
        for name, weight in pages.empty(self.recipe(self.choices()[0])).named_parameters():
            shape = known.get(name, torch.Size())
            if name.startswith(NEW) or name == TABLE:
                continue
            if len(shape) != weight.ndim or any(a > b for a, b in zip(weight.shape, shape, strict=True)):
                raise ValueError(f"its {name} is {tuple(shape)}, and an heir's {tuple(weight.shape)}")

    def recipe(self, choice: Choice) -> Recipe[Any]:
        """The recipe of a choice."""
        return self.space.recipe(choice)

    def choices(self) -> list[Choice]:
        """Every heir whose layers are alike, the fewest bits first; of these the one with the most pieces and numbers
        of layers, as (pieces^2) x depth x (mixer + hidden widths): fewer pieces cost more than fewer layers."""
        made: list[Choice] = []
        for choice in self.space.uniform():
            choice |= {f"kv_heads.{i}": v for i in range(choice["depth"]) for v in self.space.layer.get("kv_heads", ())}
            for hidden in self.space.layer.get("hidden", (None,)):
                wide = {} if hidden is None else {f"hidden.{i}": hidden for i in range(choice["depth"])}
                made += [{**choice, **wide, "bits": bits, MARK: self.mark} for bits in self.space.model["bits"]]
        work = {id(c): c["vocab"] ** 2 * c["depth"] * (2 + c.get("hidden.0", 0)) for c in made}
        return sorted(made, key=lambda c: (-c["bits"], work[id(c)], c["depth"]), reverse=True)

    def weights(self, tokenizer: Any, taught: Any = None) -> dict[str, Tensor]:
        """The weights that all heirs are cut from: the first layers, with hidden columns in the order of what they
        weigh, and the table of another tokenizer's tokens, all of which the teacher's has.

        Args:
            taught: the teacher with the head of `learn.teach`, once it has learned the task.
        """
        model = self.teacher if taught is None else taught
        headed = model.recipe["pool"] == self.space.base["pool"] and model.recipe["heads"] == self.space.base["heads"]
        state = {n: t.detach().float() for n, t in model.state_dict().items() if self._kept(n, headed)}
        core, words = self.teacher.tokenizer.core, tokenizer.core
        rows = state[TABLE][[core.token_to_id(words.id_to_token(i)) for i in range(tokenizer.vocab_size)]]
        empty = rows.mean(0).expand(max(0, max(self.space.model["vocab"]) - len(rows)), -1)
        made = {**state, TABLE: torch.cat([rows, empty])}
        if self.hidden is not None and self.hidden != self.space.base["dim"]:
            for i in range(max(self.space.model["depth"])):
                made |= self._ordered({n: t for n, t in made.items() if n.startswith(f"blocks.{i}.ffn.")})
        return {n: t.clone() for n, t in made.items()}

    def _kept(self, name: str, headed: bool) -> bool:
        steps = name.split(".")
        if steps[0] == "blocks":
            return int(steps[1]) < max(self.space.model["depth"])
        return headed or not name.startswith(NEW)

    def _ordered(self, layer: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights of one layer's hidden columns, those first whose product of lengths is largest."""
        weigh = torch.ones(self.hidden or 0)
        places = {n: [a for a, size in enumerate(t.shape) if size == self.hidden] for n, t in layer.items()}
        for name, axes in places.items():
            if layer[name].ndim > 1 and axes:
                weigh = weigh * layer[name].movedim(axes[0], 0).flatten(1).norm(dim=1)
        order = weigh.argsort(descending=True)
        return {n: t.index_select(places[n][0], order) if places[n] else t for n, t in layer.items()}

    @torch.no_grad()
    def standing(self, choice: Choice, weights: Mapping[str, Tensor]) -> Any:
        """A model of a choice, cut from the weights."""
        made: Any = pages.build(self.recipe(choice), seed=0)
        wide = self.space.base["dim"]
        for name, own in made.named_parameters():
            if name in weights:
                own.copy_(sliced(weights[name], own.shape, wide, wide, False))
        if "pool.query.weight" not in weights:
            nn.init.zeros_(made.pool.query.weight)  # the mean of the tokens, at first
        return made


def planned(model: Any, choice: Choice, target: Target) -> list[few.Entry]:
    """The matrices of a model and their bits in a target's file; of an heir the table of tokens too has those of the
    choice."""
    bits = choice.get("bits", few.FINE)
    entries = target.plan(model, bits)
    if MARK not in choice:
        return entries
    return [replace(e, bits=bits) if e.bits and isinstance(model.get_submodule(e.path), Table) else e for e in entries]
