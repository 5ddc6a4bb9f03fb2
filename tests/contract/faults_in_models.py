"""Faults in behaviour, kernels, training and features."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from anyformer.compress.int8 import Int8Linear
from anyformer.compress.nf4 import Nf4
from anyformer.contract.hyper import fingerprint
from anyformer.core.flow import Flow
from anyformer.core.recipe import Recipe
from anyformer.core.state import State
from anyformer.core.taps import Taps
from anyformer.generate.options import Options
from anyformer.parts import MLP, ExpertChoice, Logits, MoE, Rotary, TopK, Window
from anyformer.parts.attention.cache import KeysValues, Sliding
from anyformer.parts.attention.masks import Causal, Full
from anyformer.parts.positions import Linear
from anyformer.skeletons.decoder import CausalLM
from anyformer.train.lora import DoraLinear, LoraLinear
from anyformer.train.objectives import counted
from tests.contract.planting import around, fault, module

# --------------------------------------------------------------------------------------------- behaviour


@fault("batching changes nothing", on="gpt/tiny", says="hidden, row .: differs")
def padding_is_seen(patch: pytest.MonkeyPatch) -> None:
    change = lambda plain, *args: dataclasses.replace(plain(*args), keep=None)  # noqa: E731
    around(patch, module("anyformer.parts.attention.attention"), "view", change)


@fault("content of padding changes nothing", on="gpt/tiny", says="other padding: hidden: differs")
def padding_is_read(patch: pytest.MonkeyPatch) -> None:
    padding_is_seen(patch)
    patch.setattr(Flow, "keep_now", lambda self, count: None)


@fault("nothing leaks from padding", on="gpt/tiny", says=r"NaN at padding \(left\): hidden: not finite")
def padding_is_let_in(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Flow, "keep_now", lambda self, count: None)


@fault("rows of padding are harmless", on="llama/tiny", says="an empty row gives values")
def nothing_is_not_a_number(patch: pytest.MonkeyPatch) -> None:
    def sdpa(plain: Any, q: Any, k: Any, v: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        y = plain(q, k, v, mask, *rest, **options)
        return y if mask is None else y.masked_fill(~mask.any(-1, keepdim=True), float("nan"))

    around(patch, module("anyformer.parts.attention.kernels"), "_sdpa", sdpa)


@fault("encoder is bidirectional", on="bert/tiny", says="position 0 does not see")
def an_encoder_looks_back(patch: pytest.MonkeyPatch) -> None:
    change = lambda plain, *args: dataclasses.replace(plain(*args), mask=Causal())  # noqa: E731
    around(patch, module("anyformer.parts.attention.attention"), "view", change)


@fault(
    "future tokens change nothing",
    "no gradient from the future",
    on="gpt/tiny",
    says="(hidden|logits) (before|of) (token )?[0-9]",
)
def the_future_is_seen(patch: pytest.MonkeyPatch) -> None:
    change = lambda plain, *args: dataclasses.replace(plain(*args), mask=Full())  # noqa: E731
    around(patch, module("anyformer.parts.attention.attention"), "view", change)


@fault("caching changes nothing", on="gpt/tiny", says="tokens . to . of row .: differs")
def kept_keys_change(patch: pytest.MonkeyPatch) -> None:
    around(patch, KeysValues, "append", lambda plain, self, k, v: plain(self, k * (1.001 if self.length else 1.0), v))


@fault("cached after reorder", on="gpt/tiny", says="tokens .* of row .: differs")
def rows_stay(patch: pytest.MonkeyPatch) -> None:
    around(patch, KeysValues, "reorder", lambda plain, self, index: plain(self, index.sort().values))


@fault("cached after rollback", on="gpt/tiny", says="tokens .* of row .: differs")
def nothing_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    def trim(plain: Any, self: Any, length: int) -> None:
        plain(self, length)
        self.memory = self.memory.roll(1, 3)

    around(patch, KeysValues, "trim", trim)


@fault("cached at window boundaries", on="llama/window", says="tokens 11 to 12 of row 0: differs")
def window_is_short(patch: pytest.MonkeyPatch) -> None:
    around(patch, Sliding, "__init__", lambda plain, *args: plain(*args[:6], args[6] - 1, *args[7:]))


@fault("cache refuses unsupported operations", on="gpt/tiny", says="expected an error with 'cannot trim'")
def any_length_goes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(State, "trim", lambda self, length: None)


@fault("long text continues with its rope scaling", on="llama/longrope", says="tokens 11 to 13 of row 0: differs")
def late_keys_change(patch: pytest.MonkeyPatch) -> None:
    kept_keys_change(patch)


@fault("padding inside a cache is correct or refused", on="t5/tiny", says="row 1 after its padding: differs")
def gaps_are_accepted(patch: pytest.MonkeyPatch) -> None:
    def advance(self: State, keep: Any, batch: int, count: int) -> Any:
        past = torch.ones(batch, self.length, dtype=torch.bool) if self.keep is None else self.keep
        now = torch.ones(batch, count, dtype=torch.bool) if keep is None else keep[:, -count:]
        self.keep, self.length = torch.cat((past, now), 1), self.length + count
        return self.keep

    patch.setattr(State, "advance", advance)


# ----------------------------------------------------------------------------------------------- kernels


@fault("kernels agree in the model", "kernels agree while decoding", on="gpt/tiny", says="auto.*: differs by")
@fault("kernels agree", on="", says="auto over .*: differs by")
def fused_is_off(patch: pytest.MonkeyPatch) -> None:
    around(
        patch,
        module("anyformer.parts.attention.kernels"),
        "_sdpa",
        lambda plain, *args, **options: plain(*args, **options) * 1.001,
    )


@fault("flex agrees", "flex agrees compiled", on="", says="flex over .*: differs by")
def flex_is_off(patch: pytest.MonkeyPatch) -> None:
    around(patch, module("anyformer.parts.attention.kernels"), "_flex", lambda plain, *args: plain(*args) * 1.01)


@fault("mask properties match the mask", on="", says="reaches further than")
def window_says_less(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Window, "reach", lambda self: (max(0, self.left - 1), self.right))


@fault("wide window equals full attention", on="gpt/tiny", says="window >= length: hidden")
def window_without_itself(patch: pytest.MonkeyPatch) -> None:
    around(patch, Window, "allowed", lambda plain, self, query, key: plain(self, query, key) & (key != query))


@fault("chunk size does not matter", on="mamba/tiny", says="Mamba, chunk 1: hidden")
def chunks_count(patch: pytest.MonkeyPatch) -> None:
    scan: Callable[..., Any] = lambda plain, *args: (lambda y, h: (y * (1.0 + args[6] / 100), h))(*plain(*args))  # noqa: E731
    around(patch, module("anyformer.parts.recurrent.mamba"), "scan", scan)


@fault("scan equals recurrence", "scan equals convolution", on="", says="(scan|convolution): differs")
def scan_is_off(patch: pytest.MonkeyPatch) -> None:
    scan: Callable[..., Any] = lambda plain, *args: (lambda y, h: (y * 1.001, h))(*plain(*args))  # noqa: E731
    around(patch, module("anyformer.parts.recurrent.mamba"), "scan_in_blocks", scan)


@fault("matrix recurrences equal single steps", on="", says="sum: differs")
def chunks_forget(patch: pytest.MonkeyPatch) -> None:
    change = lambda plain, *args: plain(*args) * 1.001  # noqa: E731
    around(patch, module("anyformer.parts.recurrent.chunked"), "chained", change)


@fault("grouped heads equal repeated heads", on="llama/tiny", says="all heads: hidden")
def groups_are_mixed_up(patch: pytest.MonkeyPatch) -> None:
    def attend(plain: Any, q: Any, k: Any, *rest: Any) -> Any:
        return plain(q, k if k.shape[1] == q.shape[1] else k.roll(1, 1), *rest)

    around(patch, module("anyformer.parts.attention.attention"), "attend", attend)


@fault("rotary pairings are permutations", on="llama/tiny", says="adjacent pairs: hidden")
def pairs_are_ignored(patch: pytest.MonkeyPatch) -> None:
    around(patch, Rotary, "__init__", lambda plain, self, dim, *args, **options: plain(self, dim, *args[:3]))


@fault("only distances count", on="llama/tiny", says="moved by 17 positions: hidden")
def places_are_bent(patch: pytest.MonkeyPatch) -> None:
    def bent(plain: Any, self: Any, flow: Any, dtype: Any) -> Any:
        return plain(self, dataclasses.replace(flow, positions=flow.positions.float() ** 1.1), dtype)

    around(patch, Rotary, "tables", bent)


@fault("rope scaling by one changes nothing", on="", says=r"Linear\(factor=1.0\): differs")
def one_is_not_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Linear, "scale", lambda self, frequencies, theta, length: (frequencies / (self.factor + 0.1), 1.0))


@fault("all experts equal the dense mixture", on="mixtral/tiny", says="dense mixture: differs")
def answers_are_mixed_up(patch: pytest.MonkeyPatch) -> None:
    grouped = lambda plain, self, x, weights, sent, flow: plain(self, x, weights.roll(1, -1), sent, flow)  # noqa: E731
    around(patch, MoE, "_grouped", grouped)


@fault("upcycling changes nothing", on="gpt/tiny", says="upcycled: differs")
def weights_do_not_sum_to_one(patch: pytest.MonkeyPatch) -> None:
    def mixture(plain: Any, self: Any, dim: int, **options: Any) -> None:
        plain(self, dim, **options | {"renormalise": False})

    around(patch, TopK, "__init__", mixture)


@fault("ample capacity equals no capacity", on="switch/tiny", says="an expert of capacity 1 takes 0")
def one_place_is_lost(patch: pytest.MonkeyPatch) -> None:
    taken = lambda plain, self, chosen, *rest: (  # noqa: E731
        plain(self, chosen, *rest) & (chosen.cumsum(1) < (self.capacity or 99))
    )
    around(patch, TopK, "_taken", taken)


@fault("expert choice is refused in decoders", on="", says="a causal decoder runs with experts that choose")
def nobody_says_causal(patch: pytest.MonkeyPatch) -> None:
    seen = lambda plain, self, x, flow: plain(self, x, dataclasses.replace(flow, causal=False))  # noqa: E731
    around(patch, ExpertChoice, "forward", seen)


@fault("auxiliary losses ignore padding", on="mixtral/tiny", says="auxiliary losses: balance")
def padding_is_counted(patch: pytest.MonkeyPatch) -> None:
    around(patch, module("anyformer.parts.moe"), "load_balance", lambda plain, p, chosen, keep: plain(p, chosen))


# ---------------------------------------------------------------------------------------------- training


@fault("every parameter gets a gradient", on="gpt/tiny", says="ffn.up.weight gets no gradient")
def gradient_is_cut(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MLP, "forward", lambda self, x, flow: self.down(self.act(self.up(x)).detach()))


@fault("overfits one batch", on="gpt/tiny", says="the loss went from")
def gradients_are_lost(patch: pytest.MonkeyPatch) -> None:
    def logits(plain: Any, self: Any, x: Any, flow: Any) -> Any:
        y = plain(self, x, flow)
        return y.detach() + (y - y.detach()) * 1e-12

    around(patch, Logits, "forward", logits)


@fault("activation checkpointing changes nothing", on="gpt/tiny", says="recompute: loss")
def other_when_recomputed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("anyformer.core.recompute._again", lambda forward, x, flow: forward(x, flow) * 1.001)


@fault("compiling changes nothing", on="gpt/tiny", says="torch.compile, aot_eager: loss")
@fault("compiling with inductor changes nothing", on="gpt/tiny", says="torch.compile, inductor: loss")
def other_when_compiled(patch: pytest.MonkeyPatch) -> None:
    def forward(plain: Any, self: Any, x: Any, flow: Any) -> Any:
        return plain(self, x, flow) * (1.01 if torch.compiler.is_compiling() else 1.0)

    around(patch, MLP, "forward", forward)


@fault("gradient accumulation equals one batch", on="gpt/tiny", says="accumulated: loss")
def mean_of_each_batch(patch: pytest.MonkeyPatch) -> None:
    def entropy(plain: Any, logits: Any, labels: Any, count: Any, *rest: Any) -> Any:
        return plain(logits, labels, counted(labels).clamp(min=1), *rest)

    around(patch, module("anyformer.train.objectives"), "_cross_entropy", entropy)


@fault("recipe survives serialisation", on="gpt/tiny", says="JSON changes the recipe")
def an_option_is_lost(patch: pytest.MonkeyPatch) -> None:
    read = Recipe.from_json
    patch.setattr(Recipe, "from_json", staticmethod(lambda data: read(data).but(context=7)))


@fault("initial weights depend only on the seed", on="gpt/tiny", says="the same seed gives other weights")
def chance_of_its_own(patch: pytest.MonkeyPatch) -> None:
    noise = torch.Generator()
    patch.setattr(MLP, "reset_parameters", lambda self: [w.data.normal_(0.0, 0.02, generator=noise)
                                                         for w in (self.up.weight, self.down.weight)])  # fmt: skip


# ---------------------------------------------------------------------------------------------- features


@fault("taps change nothing", on="gpt/tiny", says="with taps: hidden")
def listening_changes(patch: pytest.MonkeyPatch) -> None:
    recorder: Callable[..., Any] = lambda plain, self, name: lambda *args: plain(self, name)(*args) or args[-1] * 1.001  # noqa: E731
    around(patch, Taps, "_recorder", recorder)


@fault("copies are independent", on="gpt/tiny", says="after the copy changed: hidden")
def a_part_is_shared_with_copies(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MLP, "__deepcopy__", lambda self, memo: self, raising=False)


@fault("lora merges to the same function", on="gpt/tiny", says="merged: hidden")
def scale_is_lost(patch: pytest.MonkeyPatch) -> None:
    def merged(plain: Any, self: LoraLinear) -> Any:
        self.scale = 1.0
        return plain(self)

    around(patch, LoraLinear, "merged", merged)


@fault("dora merges to the same function", on="gpt/tiny", says="merged: hidden")
def lengths_are_lost(patch: pytest.MonkeyPatch) -> None:
    around(patch, DoraLinear, "merged", lambda plain, self: (self.lora_m.data.fill_(1.0), plain(self))[1])


@fault("adapters on 4 bits merge to the same function", on="gpt/tiny", says="merged: hidden")
def levels_move(patch: pytest.MonkeyPatch) -> None:
    around(patch, LoraLinear, "whole", lambda plain, self: plain(self) * 1.001)


@fault("four bit error is within its bound", on="gpt/tiny", says="mixer.q: off by")
def levels_are_wrong(patch: pytest.MonkeyPatch) -> None:
    around(patch, Nf4, "dequantised", lambda plain, self: plain(self).roll(1, 1))


@fault("int8 error is within its bound", on="gpt/tiny", says="mixer.q: off by")
def steps_are_too_long(patch: pytest.MonkeyPatch) -> None:
    around(patch, Int8Linear, "product", lambda plain, self, x: plain(self, x) * 1.1)


@fault("export runs and matches", on="gpt/tiny", says="refused by `export`")
def another_program(patch: pytest.MonkeyPatch) -> None:
    def traced(plain: Any, model: Any, example: Any) -> Any:
        other = copy.deepcopy(model)
        other.norm.weight.data.add_(0.1)
        return plain(other, example)

    around(patch, module("anyformer.edge.export"), "_traced", traced)


@fault("generation honours zero", on="gpt/tiny", says="seed=0 is not reproducible")
def seed_0_is_none(patch: pytest.MonkeyPatch) -> None:
    around(patch, Options, "seeds", lambda plain, self, rows: [seed or None for seed in plain(self, rows)])


@fault("zero differs from the default", on="gpt/tiny", says="ffn.hidden=0 acts as None")
def zero_is_4(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("anyformer.contract.features.tried_before", lambda subject: frozenset())  # as if it were the first
    fingerprint.cache_clear()
    around(
        patch,
        MLP,
        "__init__",
        lambda plain, self, dim, hidden=None, **options: plain(self, dim, hidden or None, **options),
    )


@fault("logits of the last position", on="gpt/tiny", says="last=True gives 7 positions")
def all_places(patch: pytest.MonkeyPatch) -> None:
    around(patch, CausalLM, "forward", lambda plain, self, last=False, **inputs: plain(self, **inputs))


@fault("tampered directories are refused", on="gpt/tiny", says="weights: .*: it was loaded")
def overlap_is_accepted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("anyformer.hub.formats.safetensors._check_cover", lambda *args: None)


@fault("pickles are refused", on="gpt/tiny", says="the code in the pickle ran")
def pickles_are_run(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        "anyformer.hub.formats.safetensors.torch.load", lambda path, **options: pickle.loads(path.read_bytes())
    )


@fault("bad recipes are refused", on="vit, grouped heads", says="a part that does not exist: it was loaded")
def any_part_will_do(patch: pytest.MonkeyPatch) -> None:
    around(
        patch,
        module("anyformer.core.recipe"),
        "find",
        lambda plain, name, what: plain("Encoder" if name == "os.system" else name, what),
    )


# ---------------------------------------------------------------------------------------------- packing


@fault("packing changes nothing", on="gpt/tiny", says="document .: hidden: differs")
@fault("no gradient between documents", on="gpt/tiny", says="depend on others")
def documents_are_seen(patch: pytest.MonkeyPatch) -> None:
    change = lambda plain, *args: dataclasses.replace(plain(*args), mine=None, theirs=None)  # noqa: E731
    around(patch, module("anyformer.parts.attention.attention"), "view", change)


@fault("packed documents are separate or refused", on="bert/tag", says="expected an error with 'one piece'")
def documents_in_pieces(patch: pytest.MonkeyPatch) -> None:
    around(
        patch,
        module("anyformer.skeletons.base"),
        "positions_in_documents",
        lambda plain, ids: plain(ids.sort(1).values),
    )
