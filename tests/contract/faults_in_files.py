"""Faults in pages, numbers and files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import anyformer as af
from anyformer.hub.tables.config import ACTS, Lens
from anyformer.hub.tables.rope import NAMES, rope
from anyformer.hub.tables.weights import Link, Split
from anyformer.parts import MLP, First, LayerNorm
from anyformer.parts.positions import Dynamic
from tests.contract.planting import around, fault, module

# ------------------------------------------------------------------------------------------------ pages


@fault("page is short", on="gpt")
def long_page(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("anyformer.contract.form.LINES", 10)


@fault("page explains itself", on="gpt")
def silent_page(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(af.page("gpt").module, "__doc__", "GPT-2 (Radford et al., 2019). Differs from LLaMA. No drawing.")


@fault("page has its parts", on="gpt")
def case_that_is_tiny(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(af.page("gpt").module, "CASES", {"same": {}})


@fault("page needs no oracle", on="gpt")
def page_that_imports_the_oracle(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("anyformer.contract.form.OUTSIDE", ("torch",))


@fault("every hyperparameter is read", "every hyperparameter changes the recipe", on="gpt")
def ignored_hyperparameter(patch: pytest.MonkeyPatch) -> None:
    page = af.page("gpt").module
    names = [f.name for f in dataclasses.fields(page.GPT) if f.name != "eps"]
    fixed: Callable[..., Any] = lambda plain, c: plain(SimpleNamespace(eps=1e-5, **{n: getattr(c, n) for n in names}))  # noqa: E731
    around(patch, page, "gpt", fixed)


@fault("every option has an effect", on="gpt")
def ignored_activation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("anyformer.parts.ffn.activation", lambda owner, name: F.gelu)


@fault("published counts", on="gpt")
def wrong_count(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(af.page("gpt").module, "PARAMETERS", {"small": 1})


@fault("counts are the oracles", on="gpt")
def another_parameter(patch: pytest.MonkeyPatch) -> None:
    around(
        patch,
        module("anyformer.core.pages"),
        "empty",
        lambda plain, recipe: plain(recipe.but(head=recipe.head.but(bias=True))),
    )


# ----------------------------------------------------------------------------------------------- numbers


@fault("files say every case", on="gpt")
def unmapped_hyperparameter(patch: pytest.MonkeyPatch) -> None:
    page = af.page("gpt").module
    hub = dataclasses.replace(page.HUBS[0], config=tuple(e for e in page.HUBS[0].config if "act" not in e.fields))
    patch.setattr(page, "HUBS", (hub,))


@fault("parity", "parity of random hyperparameters", on="gpt/tiny")
def another_eps(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        LayerNorm, "forward", lambda self, x: F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps + 1e-3)
    )


@fault("parity of gradients in training", on="gpt/tiny")
def another_training(patch: pytest.MonkeyPatch) -> None:
    around(patch, MLP, "forward", lambda plain, self, x, flow: plain(self, x, flow) * (1.001 if self.training else 1.0))


@fault("activations by every name", on="")
def one_name_means_another(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(ACTS, "gelu_new", "gelu")


@fault("parity with padding", on="bert/tiny")
def padding_is_pooled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(First, "forward", lambda self, x, flow: x[:, 0])


@fault("parity at the edges", on="llama/dynamic")
def no_stretch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Dynamic, "scale", lambda self, frequencies, theta, length: (frequencies, 1.0))


@fault("round trip", "ours opens there", on="gpt/tiny")
def written_in_another_order(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Split, "write", lambda self, tensors: [torch.cat(tensors[::-1])])


@fault("save and load", on="gpt/tiny")
def rounded_on_disk(patch: pytest.MonkeyPatch) -> None:
    def rounded(plain: Any, folder: Any, tensors: Any, *rest: Any) -> Any:
        return plain(folder, {n: t.bfloat16().float() for n, t in tensors.items()}, *rest)

    around(patch, module("anyformer.hub.save"), "write_safetensors", rounded)


@fault("stored type is told", on="gpt/tiny")
def old_type_is_told(patch: pytest.MonkeyPatch) -> None:
    around(
        patch,
        module("anyformer.hub.save"),
        "_words",
        lambda plain, *of: (plain(*of)[0] | {"dtype": "float32"}, plain(*of)[1]),
    )


# ------------------------------------------------------------------------------------------------ ledger


@fault("ledger is complete", on="gpt/tiny")
def a_line_is_lost(patch: pytest.MonkeyPatch) -> None:
    around(
        patch,
        module("anyformer.hub.tables.config"),
        "read",
        lambda plain, *a: (lambda hyper, lines: (hyper, lines[:-1]))(*plain(*a)),
    )


@fault("missing tensor is named", "unexpected tensor is named", on="gpt/tiny")
def nothing_is_missed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module("anyformer.hub.load"), "_refuse", lambda *args: None)


@fault("wrong shape is named", on="llama/tiny")
def tensors_are_cut(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Link, "read", lambda self, tensor, shapes: [tensor[: shapes[0][0]]])


@fault("second copy must agree", on="gpt/tiny")
def copies_are_not_compared(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module("anyformer.hub.load"), "_same", lambda *args: None)


@fault("unknown words are named", on="gpt/tiny")
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


@fault("an absent key means what it means there", on="llama/tiny")
def another_default(patch: pytest.MonkeyPatch) -> None:
    with_rope(patch, rope(theta=500000.0))


@fault("both generations of rope keys", on="llama/linear")
def old_words_are_dropped(patch: pytest.MonkeyPatch) -> None:
    lens = rope()
    get = lambda config: lens.get({k: v for k, v in config.items() if k != "rope_scaling"})  # noqa: E731
    with_rope(patch, Lens(NAMES, lens.fields, get, lens.put))
