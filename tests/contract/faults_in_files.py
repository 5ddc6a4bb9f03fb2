"""Faults in pages, numbers and files."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import anyformer as af
from anyformer.contract import hyper
from anyformer.contract.form import without_oracle
from anyformer.contract.oracle import SCRATCH
from anyformer.contract.subjects import subjects
from anyformer.hub.fill import Filling
from anyformer.hub.tables.config import ACTS, Lens
from anyformer.hub.tables.rope import NAMES, rope
from anyformer.hub.tables.weights import Link, Split
from anyformer.parts import MLP, First, LayerNorm
from anyformer.parts.positions import Dynamic
from tests.contract.planting import around, fault, module

# ------------------------------------------------------------------------------------------------ pages


def rewritten(patch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """The page of GPT is read as another text."""
    page = af.page("gpt").module
    text = Path(page.__file__).read_text()
    assert old in text
    other = Path(tempfile.gettempdir()) / f"gpt-{os.getpid()}.py"
    other.write_text(text.replace(old, new, 1))
    patch.setattr(page, "__file__", str(other))


@fault("page is short", on="gpt", says="lines are read, at most 80")
def long_page(patch: pytest.MonkeyPatch) -> None:
    rewritten(patch, "    norm = LayerNorm", "    norm = None\n" * 60 + "    norm = LayerNorm")


@fault("page is short", on="gpt", says="CASES stand above the function gpt")
def table_amid_the_wiring(patch: pytest.MonkeyPatch) -> None:
    rewritten(patch, "def gpt(", "CASES = {}\n\n\ndef gpt(")


@fault("page is plain", on="gpt", says=r"GPT\(…\) is given hyperparameters without their names")
def numbers_without_names(patch: pytest.MonkeyPatch) -> None:
    rewritten(patch, "GPT(dim=32, ", "GPT(32, ")


@fault("page is plain", on="gpt", says="a lambda over several lines")
def lambda_over_lines(patch: pytest.MonkeyPatch) -> None:
    rewritten(patch, "HUBS = (", "LATER = lambda c: (\n    c.dim\n)\nHUBS = (")


@fault("page is plain", on="gpt", says="a `fmt:` comment")
def formatter_switched_off(patch: pytest.MonkeyPatch) -> None:
    rewritten(patch, "HUBS = (", "HUBS = (  # fmt: skip")


@fault("page explains itself", on="gpt", says="has no arXiv number")
def silent_page(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(af.page("gpt").module, "__doc__", "GPT-2 (Radford et al., 2019). Differs from LLaMA. No drawing.")


@fault("page has its parts", on="gpt", says="is `tiny`")
def case_that_is_tiny(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(af.page("gpt").module, "CASES", {"same": {}})


@fault("page needs no oracle", on="gpt", says="without transformers: .*import of transformers")
def page_that_imports_the_oracle(patch: pytest.MonkeyPatch) -> None:
    """A copy of the library whose GPT needs transformers stands before it on the path of other processes."""
    place = Path(tempfile.mkdtemp(prefix=SCRATCH))
    package = Path(af.__file__).parent
    shutil.copytree(package, place / "anyformer", ignore=shutil.ignore_patterns("__pycache__"))
    page = place / "anyformer" / "models" / "gpt.py"
    page.write_text("import transformers\n" + page.read_text())
    without_oracle.cache_clear()
    patch.syspath_prepend(place)


@fault("every hyperparameter is read", "every hyperparameter changes the recipe", on="gpt", says=r"\['eps'\]")
def ignored_hyperparameter(patch: pytest.MonkeyPatch) -> None:
    page = af.page("gpt").module
    names = [f.name for f in dataclasses.fields(page.GPT) if f.name != "eps"]
    fixed: Callable[..., Any] = lambda plain, c: plain(SimpleNamespace(eps=1e-5, **{n: getattr(c, n) for n in names}))  # noqa: E731
    around(patch, page, "gpt", fixed)


@fault("every option has an effect", on="gpt", says="'MLP', 'act'.*has any effect")
def ignored_activation(patch: pytest.MonkeyPatch) -> None:
    others = frozenset(key for s in subjects("gpt") for key in hyper.keys(s.recipe) if key != ("MLP", "act"))
    patch.setattr(hyper, "held_before", lambda name: others)  # as if earlier pages held all but this one
    hyper.harvest()
    patch.setattr(hyper.pages, "names", lambda: ("gpt",))  # and there were no others, in which it is searched in vain
    patch.setattr(hyper, "compositions", lambda: [])
    hyper.fingerprint.cache_clear()
    patch.setattr("anyformer.parts.ffn.activation", lambda owner, name: F.gelu)


@fault("published parameter counts", on="gpt", says="tiny has 31,621 parameters")
def a_norm_has_one_more(patch: pytest.MonkeyPatch) -> None:
    def norm(plain: Any, self: Any, *args: Any, **options: Any) -> None:
        plain(self, *args, **options)
        self.more = torch.nn.Parameter(torch.zeros(1))

    around(patch, LayerNorm, "__init__", norm)


@fault("parameter counts match the oracle", on="gpt", says="small has 124,490,065 parameters here")
def another_parameter(patch: pytest.MonkeyPatch) -> None:
    around(
        patch,
        module("anyformer.core.pages"),
        "empty",
        lambda plain, recipe: plain(recipe.but(head=recipe.head.but(bias=True))),
    )


# ----------------------------------------------------------------------------------------------- numbers


@fault("files express every case", on="gpt", says=r"\['act'\]: in no table")
def unmapped_hyperparameter(patch: pytest.MonkeyPatch) -> None:
    page = af.page("gpt").module
    hub = dataclasses.replace(page.HUBS[0], config=tuple(e for e in page.HUBS[0].config if "act" not in e.fields))
    patch.setattr(page, "HUBS", (hub,))


@fault("parity", "parity of random hyperparameters", on="gpt/tiny", says="row 0: differs by")
def another_eps(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        LayerNorm, "forward", lambda self, x: F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps + 1e-3)
    )


@fault("parity of gradients in training", on="gpt/tiny", says="training: logits: differs")
def another_training(patch: pytest.MonkeyPatch) -> None:
    around(patch, MLP, "forward", lambda plain, self, x, flow: plain(self, x, flow) * (1.001 if self.training else 1.0))


@fault("activations by every name", on="", says="activation 'gelu_new': differs")
def one_name_means_another(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(ACTS, "gelu_new", "gelu")


@fault("parity with padding", on="bert/tiny", says="padding left, heads.nsp")
def padding_is_pooled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(First, "forward", lambda self, x, flow: x[:, 0])


@fault("parity at the edges", on="llama/dynamic", says="96 tokens: logits")
def no_stretch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Dynamic, "scale", lambda self, frequencies, theta, length: (frequencies, 1.0))


@fault("round trip", "transformers opens our files", on="gpt/tiny", says=r"c_attn\.bias. came back changed")
def written_in_another_order(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Split, "write", lambda self, tensors: [torch.cat(tensors[::-1])])


@fault("save and load", on="gpt/tiny", says="weight came back changed")
def rounded_on_disk(patch: pytest.MonkeyPatch) -> None:
    def rounded(plain: Any, folder: Any, tensors: Any, *rest: Any) -> Any:
        return plain(folder, {n: t.bfloat16().float() for n, t in tensors.items()}, *rest)

    around(patch, module("anyformer.hub.save"), "write_safetensors", rounded)


@fault("stored dtype is reported", on="gpt/tiny", says="the config names {'float32'}, the tensors are torch.bfloat16")
def old_type_is_told(patch: pytest.MonkeyPatch) -> None:
    around(
        patch,
        module("anyformer.hub.save"),
        "_words",
        lambda plain, *of: (plain(*of)[0] | {"dtype": "float32"}, plain(*of)[1]),
    )


# ------------------------------------------------------------------------------------------------ ledger


@fault("ledger is complete", on="gpt/tiny", says="config keys: {'.*'}")
def a_line_is_lost(patch: pytest.MonkeyPatch) -> None:
    around(
        patch,
        module("anyformer.hub.tables.config"),
        "read",
        lambda plain, *a: (lambda hyper, lines: (hyper, lines[:-1]))(*plain(*a)),
    )


@fault("missing tensor is named", on="gpt/tiny", says="it was loaded, though 'transformer.*' is wrong")
def what_is_missing_is_drawn(patch: pytest.MonkeyPatch) -> None:
    around(patch, Filling, "_fresh", lambda plain, self, *rest: plain(dataclasses.replace(self, fresh=("*",)), *rest))


@fault("unexpected tensor is named", on="gpt/tiny", says="it was loaded, though 'extra.weight' is wrong")
def nothing_is_left_over(patch: pytest.MonkeyPatch) -> None:
    around(
        patch, Filling, "_pass_over", lambda plain, self, stored, *more: (plain(self, stored, *more), stored.clear())[0]
    )


@fault("wrong shape is named", on="llama/tiny", says="it was loaded, though 'model.norm.weight'")
def tensors_are_cut(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Link, "read", lambda self, tensors, shapes: [tensors[0][: shapes[0][0]]])


@fault("tied copies must agree", on="gpt/tiny", says="it was loaded, though 'lm_head.weight'")
def copies_are_not_compared(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module("anyformer.hub.fill"), "_same", lambda *args: None)


@fault("unknown values are named", on="gpt/tiny", says="it was loaded, though 'no_such_key'")
def unknown_keys_are_dropped(patch: pytest.MonkeyPatch) -> None:
    def read(plain: Any, entries: Any, config: Any, *rest: Any) -> Any:
        known = {name for entry in entries for name in entry.names}
        return plain(entries, {k: v for k, v in config.items() if k in known}, *rest)

    around(patch, module("anyformer.hub.tables.config"), "read", read)


def with_rope(patch: pytest.MonkeyPatch, entry: Lens) -> None:
    """LLaMA's maps with this entry for the rope keys."""
    page = af.page("llama").module
    maps = [
        dataclasses.replace(h, config=tuple(entry if "rope_theta" in e.names else e for e in h.config))
        for h in page.HUBS
    ]
    patch.setattr(page, "HUBS", tuple(maps))


@fault(
    "absent keys have their published defaults", on="llama/tiny", says="without 'rope_parameters', transformers means"
)
def another_default(patch: pytest.MonkeyPatch) -> None:
    with_rope(patch, rope(theta=500000.0))


@fault("both forms of rope keys", on="llama/linear", says="the older words .* are read as")
def old_words_are_dropped(patch: pytest.MonkeyPatch) -> None:
    lens = rope()
    get = lambda config: lens.get({k: v for k, v in config.items() if k != "rope_scaling"})  # noqa: E731
    with_rope(patch, Lens(NAMES, lens.fields, get, lens.put))
