"""The numbers of peers: attention weights of transformers, lens and patching of TransformerLens."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer.contract.subjects import redrawn
from anyformer.explain import lens, patch
from anyformer.explain.features import Explained
from anyformer.explain.lens import behind_each
from anyformer.explain.maps import attention_maps
from anyformer.hub.text.tokenizer import Tokenizer

CLEAN, CORRUPT, TOKEN = torch.tensor([[5, 6, 7, 8, 9]]), torch.tensor([[5, 6, 11, 8, 9]]), 3


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


def _saved(name: str, folder: Path) -> Any:
    model = redrawn(af.build(name, "tiny", vocab=257, seed=0)).eval()
    model.tokenizer = Tokenizer.bytes_level()
    model.save(folder)
    return model


@pytest.mark.parametrize("name", ["gpt", "llama", "bert", "t5"])
def test_transformers_has_the_same_weights_in_eager_mode(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = _saved(name, tmp_path)
    kind = {"bert": "AutoModel", "t5": "AutoModelForSeq2SeqLM"}.get(name, "AutoModelForCausalLM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = getattr(transformers, kind).from_pretrained(tmp_path, attn_implementation="eager").eval()
    call = {"input_ids": CLEAN, **({"decoder_input_ids": CORRUPT[:, :3]} if name == "t5" else {})}
    with torch.no_grad():
        out = other(**call, output_attentions=True)
    names = {"blocks.*.mixer": "attentions"}
    if name == "t5":
        names = {f"{whose}.blocks.*.mixer": f"{whose}_attentions" for whose in ("encoder", "decoder")}
        names["decoder.blocks.*.cross"] = "cross_attentions"
    maps, missing = attention_maps(Explained(model, call))
    assert not missing and {m.kind for m in maps} == set(names)
    for made in maps:
        theirs = torch.cat(getattr(out, names[made.kind]))
        torch.testing.assert_close(made.weights, theirs, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module", params=["gpt", "llama"])
def bridged(request, tmp_path_factory) -> tuple[Any, Any]:
    """A model, and the same weights in TransformerLens."""
    pytest.importorskip("transformer_lens", reason="transformer-lens is not installed")
    from transformer_lens.model_bridge import TransformerBridge

    folder = tmp_path_factory.mktemp(request.param)
    model = _saved(request.param, folder)
    return model, TransformerBridge.boot_transformers(str(folder), device="cpu")


def test_transformer_lens_has_the_same_lens(bridged):
    model, other = bridged
    logits, cache = other.run_with_cache(CLEAN)
    with torch.no_grad(), behind_each(Explained(model, {"input_ids": CLEAN})) as (names, outs, _):
        ours = [out.logits for out in outs]
    theirs = [cache["blocks.0.hook_resid_pre"], *(cache[f"blocks.{i}.hook_resid_post"] for i in range(len(names) - 2))]
    with torch.no_grad():
        for stream, mine in zip(theirs, ours, strict=True):
            torch.testing.assert_close(mine, other.unembed(other.ln_final(stream)), rtol=1e-4, atol=1e-5)
    assert torch.equal(lens(model, CLEAN).top[-1], logits.topk(5, -1).indices)
    maps, _ = attention_maps(Explained(model, {"input_ids": CLEAN}))
    for layer, weights in enumerate(maps[0].weights):
        torch.testing.assert_close(weights, cache[f"blocks.{layer}.attn.hook_pattern"][0], rtol=1e-4, atol=1e-6)


def test_transformer_lens_has_the_same_patches(bridged):
    model, other = bridged
    _, clean = other.run_with_cache(CLEAN)

    def score(at: str, change: Any) -> Tensor:
        with torch.no_grad():
            return other.run_with_hooks(CORRUPT, fwd_hooks=[(at, change)])[0, -1, TOKEN].double()

    def put(value: Tensor, hook: Any, place: Any) -> Tensor:
        value = value.clone()
        value[place] = clean[hook.name][place]
        return value

    made = patch(model, CLEAN, CORRUPT, ["blocks.0", "blocks.0.ffn", "blocks.1.mixer"], TOKEN, positions=True)
    for path, hook in (("blocks.0", "blocks.0.hook_resid_post"), ("blocks.0.ffn", "blocks.0.hook_mlp_out"),
                       ("blocks.1.mixer", "blocks.1.hook_attn_out")):  # fmt: skip
        for position in range(5):
            theirs = score(hook, lambda v, hook, p=position: put(v, hook, (slice(None), p)))
            torch.testing.assert_close(made.scores[path][0, position], theirs, rtol=1e-4, atol=1e-5)
    heads = patch(model, CLEAN, CORRUPT, "blocks.*.mixer.heads", TOKEN)
    for path, scores in heads.scores.items():
        for head in range(scores.shape[1]):

            def change(v: Tensor, hook: Any, h: int = head, count: int = scores.shape[1]) -> Tensor:
                wide = clean[hook.name].reshape(1, 5, count, -1)  # of all heads, side by side or apart
                own = v.clone().reshape(wide.shape)
                own[:, :, h] = wide[:, :, h]
                return own.reshape(v.shape)

            theirs = score(f"{path.removesuffix('mixer.heads')}attn.hook_z", change)
            torch.testing.assert_close(scores[0, head], theirs, rtol=1e-4, atol=1e-5)
