"""Patching of a text that is being continued, and along paths: with a cache as without, and as by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.contract.subjects import redrawn
from anyformer.explain.features import Explained
from anyformer.explain.patching import found, patch, patched, recorded
from anyformer.explain.patching_more import DIRECT, Patching, branches, patch_path
from anyformer.generate import generate
from anyformer.generate.steering import blocks_of
from tests.generate.subjects import each_page, model
from tests.generate.test_generate import WARM, rows

CLEAN, CORRUPT = [5, 6, 7, 8, 9], [5, 6, 11, 8, 9]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", each_page())
def test_a_patched_step_is_the_same_with_and_without_a_cache(name):
    """One position of the prompt and two of what is written have another value behind the last block."""
    m = model(name)
    row = rows(m)[-1]
    count = min(8, (getattr(m, "context", None) or 64) - len(row))
    begin = 1 if m.reads_source else len(row)
    width = getattr(m, "decoder", m).width
    values = {blocks_of(m)[-1]: 8 * torch.randn(1, begin + count, width, generator=torch.Generator().manual_seed(1))}
    options: dict[str, Any] = {"max_new_tokens": count, **WARM, "seed": 1}
    made = generate(Patching(m, values, [begin - 1, begin + 1, begin + 2]), row, **options)
    assert made == generate(Patching(m, values, [begin - 1, begin + 1, begin + 2]), row, **options, cache=False)
    assert made != generate(m, row, **options)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in m.modules())


@pytest.mark.parametrize("name", ["llama:", "gpt:", "t5:", "mamba:"])
@pytest.mark.parametrize("what", ["block", "mixer", "heads"])
def test_the_value_of_a_step_is_that_of_a_pass_over_all(name, what):
    """The token behind a patched position, and the one after, are the likeliest of a pass with that position patched:
    the text is written by hand, a pass over all of it for each token."""
    m = model(name)
    paths = [p for p in found(m, ["**"]) if p.endswith({"block": "blocks.1", "mixer": ".mixer"}.get(what, ".heads"))]
    path = next((p for p in reversed(paths) if not p.startswith("encoder.") and ".cross" not in p), None)
    if path is None:
        pytest.skip("a recurrence has no heads that are read side by side")
    prompt, other = [1, 2, 3, 4], [4, 3, 2, 1, 1, 2, 3]
    target = f"{m.target}input_ids"
    begin = [m.begin_id] if m.reads_source else prompt
    at = len(begin) + 1
    with recorded(m, [path]) as values, torch.no_grad():
        m(**{target: torch.tensor([other]), **({"input_ids": torch.tensor([prompt])} if m.reads_source else {})})
    values = {path: 8 * values[path]}
    ids = list(begin)
    for _ in range(5):
        call = {target: torch.tensor([ids]), **({"input_ids": torch.tensor([prompt])} if m.reads_source else {})}
        if len(ids) > at:
            mask = torch.zeros(len(ids), 1, dtype=torch.bool)
            mask[at] = True
            full = torch.zeros(1, len(ids), values[path].shape[-1])
            full[:, at] = values[path][:, at]
            out = patched(Explained(m, call), {path: full}, {path: mask})
        else:
            out = m(**call)
        assert out.logits is not None
        ids.append(int(out.logits[0, -1].argmax()))
    assert generate(Patching(m, values, [at]), prompt, max_new_tokens=5, stop=()) == ids[len(begin) :]


def _deep() -> Any:
    return redrawn(af.build("llama", "tiny", depth=2, seed=0)).eval()


def test_a_path_is_what_the_formula_says():
    """Two blocks x + m + f: the clean first attention reaches the head directly, or through one receiver."""
    m, ids = _deep(), torch.tensor([CORRUPT])
    assert branches(m) == ["blocks.0.mixer", "blocks.0.ffn", "blocks.1.mixer", "blocks.1.ffn"]
    with recorded(m, [*branches(m), "embed"]) as clean, torch.no_grad():
        m(torch.tensor([CLEAN]))
        sent = clean["blocks.0.mixer"]
    with recorded(m, branches(m)) as own, torch.no_grad():
        m(ids)
        held = dict(own)
    made = patch_path(m, CLEAN, CORRUPT, "blocks.0.mixer", [DIRECT, "blocks.0.ffn", "blocks.1.ffn"], 3)

    def score(stream: torch.Tensor) -> torch.Tensor:
        return m.head.proj(m.norm(stream))[0, -1, 3]

    with torch.no_grad():
        embedded = m.embed.tokens(ids)
        rest = embedded + sum(v for p, v in held.items() if p != "blocks.0.mixer")
        torch.testing.assert_close(made.scores[DIRECT][0].float(), score(rest + sent))
        block = m.blocks[0]
        ffn = block.ffn(block.norm["ffn"](embedded + sent), None)
        after = patched(Explained(m, {"input_ids": ids}), {"blocks.0.ffn": ffn}).logits
        assert after is not None
        torch.testing.assert_close(made.scores["blocks.0.ffn"][0].float(), after[0, -1, 3])
        late = m.blocks[1]
        stream = embedded + sent + held["blocks.0.ffn"] + held["blocks.1.mixer"]
        value = late.ffn(late.norm["ffn"](stream), None)
        torch.testing.assert_close(made.scores["blocks.1.ffn"][0].float(), score(rest + held["blocks.0.mixer"]
                                   - held["blocks.1.ffn"] + value))  # fmt: skip
    back = patch_path(m, CLEAN, CORRUPT, "blocks.1.ffn", ["blocks.0.ffn", DIRECT], 3)
    assert torch.equal(back.scores["blocks.0.ffn"], back.corrupt)  # a later place reaches no earlier one
    whole = patch(m, CLEAN, CORRUPT, "blocks.1.ffn", 3)
    torch.testing.assert_close(back.scores[DIRECT], whole.scores["blocks.1.ffn"])  # nothing stands behind it
    heads = [patch_path(m, CLEAN, CORRUPT, "blocks.1.mixer.heads", DIRECT, 3, number=n) for n in range(4)]
    every = patch_path(m, CLEAN, CORRUPT, "blocks.1.mixer.heads", DIRECT, 3)
    assert len({float(h.scores[DIRECT]) for h in heads}) == 4 and float(every.scores[DIRECT]) != float(every.corrupt)


@pytest.mark.parametrize("name", ["bert", "t5", "mixtral", "mamba", "vit", "gemma3"])
def test_paths_on_other_pages(name):
    m = redrawn(af.build(name, "tiny", seed=0)).eval()
    one, two = (m.complete(m.example(1, {}, torch.Generator().manual_seed(s))) for s in (0, 1))
    every = [p for p in branches(m) if not p.startswith("encoder.")]
    made = patch_path(m, one, two, every[0], [*every[1:], DIRECT], 3, at=None if name in ("vit", "mamba") else 2)
    assert all(float((v - made.corrupt).abs()) > 0 for v in made.scores.values())


def test_mistakes_are_named():
    m = _deep()
    with pytest.raises(ValueError, match=r"blocks.1: the value has the positions 0 to 3; got at=\[9\]"):
        Patching(m, {"blocks.1": torch.zeros(1, 4, 64)}, [9])
    with pytest.raises(ValueError, match=r"'blocks\.9' is no place of this model"):
        Patching(m, {"blocks.9": torch.zeros(1, 4, 64)}, [1])
    with pytest.raises(ValueError, match=r"'blocks.1' is no branch of a layer; receivers are direct and"):
        patch_path(m, CLEAN, CORRUPT, "blocks.0.mixer", "blocks.1")
    with pytest.raises(ValueError, match=r"number=9: blocks.0.mixer.heads has 4 parts"):
        patch_path(m, CLEAN, CORRUPT, "blocks.0.mixer.heads", DIRECT, number=9)
