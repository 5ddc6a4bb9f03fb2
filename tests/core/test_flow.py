"""The flow of a pass, front-ends, state and taps: what the parts of any model rely on."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer.core.flow import Companion, Flow
from anyformer.core.init import initialise
from anyformer.core.part import Part
from anyformer.core.recompute import recompute
from anyformer.parts import (
    MLP,
    Block,
    BlockWindow,
    Causal,
    Dilated,
    ExpertChoice,
    Forget,
    Fourier,
    Global,
    LayerNorm,
    Linformer,
    Mamba,
    Mean,
    MoE,
    Nystrom,
    Prefix,
    ProbSparse,
    Random,
    Rotary,
    Strided,
    TopK,
    Window,
    deepnorm,
)
from anyformer.parts.attention.masks import Mask
from anyformer.parts.embeddings import Cells


class Halving(Part):
    """The mean of each two neighbours, padding on the right: a part that changes the length. Shape: (B, T / 2, D)."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(dim))

    def reset_parameters(self) -> None:
        torch.nn.init.normal_(self.weight)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        x = flow.clear(x) * self.weight
        return x.unflatten(1, (x.shape[1] // 2, 2)).mean(2)

    def behind(self, flow: Flow) -> Flow:
        keep = None if flow.keep is None else flow.keep[:, ::2]
        return flow.inside(flow.positions[..., ::2] // 2, keep)


def halved(page: str = "bert", **changes: Any) -> Any:
    """A model with three blocks that halves its sequence behind the first one."""
    path = "encoder.blocks" if page == "t5" else "blocks"
    recipe = af.recipe(page, "tiny", **changes)
    block = recipe[f"{path}.0"]
    recipe = recipe.but({path: [block, Halving.of(), block, block]})
    return af.build(recipe, seed=0).eval()


def test_the_fields_of_flow_are_few_and_serve_all_parts() -> None:
    assert len(dataclasses.fields(Flow)) <= 12


def test_a_stack_may_change_its_length() -> None:
    model, ids = halved(task="none"), torch.randint(0, 90, (2, 12))
    keep = torch.ones_like(ids)
    keep[1, 8:] = 0
    with af.Taps(model, "blocks.0", "blocks.2", "blocks.2.mixer.weights") as taps:
        out = model(ids, keep)
    assert out.hidden.shape[1] == 6 and taps["blocks.0"].shape[1] == 12 and taps["blocks.2"].shape[1] == 6
    assert out.keep.tolist() == [[True] * 6, [True] * 4 + [False] * 2]
    assert bool((taps["blocks.2.mixer.weights"][1, :, :, 4:] == 0).all())
    alone = model(ids[1:, :8], keep[1:, :8]).hidden
    torch.testing.assert_close(out.hidden[1:, :4], alone)


def test_a_shorter_sequence_is_recomputed_as_it_was() -> None:
    ids, keep = torch.randint(0, 90, (2, 12)), torch.ones(2, 12)
    keep[1, 6:] = 0
    slopes = []
    for patterns in ((), ("blocks.*",)):
        model = halved(task="none")
        recompute(model, *patterns)
        model.train()(ids, keep).hidden.square().mean().backward()
        slopes.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, slope in slopes[0].items():
        torch.testing.assert_close(slopes[1][name], slope)


def test_the_memory_of_a_shorter_encoder_has_its_own_padding() -> None:
    model, ids = halved("t5"), torch.randint(0, 90, (2, 8))
    keep = torch.ones_like(ids)
    keep[1, 4:] = 0
    both = model(ids, keep, decoder_input_ids=ids[:, :3])
    assert both.memory.shape[1] == 4
    alone = model(ids[1:, :4], decoder_input_ids=ids[1:, :3])
    torch.testing.assert_close(both.logits[1:], alone.logits)
    together = model.generate([ids[0].tolist(), ids[1, :4].tolist()], max_new_tokens=4)
    assert together[1] == model.generate([ids[1, :4].tolist()], max_new_tokens=4)[0]


def test_a_decoder_refuses_to_change_its_length_while_it_decodes() -> None:
    recipe = af.recipe("gpt", "tiny")
    model = af.build(recipe.but({"blocks": [recipe["blocks.0"], Halving.of()]}), seed=0)
    with pytest.raises(ValueError, match="Halving changes the number of positions"):
        model.generate([[1, 2, 3, 4]], max_new_tokens=2)


def test_a_companion_is_found_by_its_type_and_missed_by_name() -> None:
    class Left(Companion):
        left_by: ClassVar[str] = "the part Leaver"

    flow = Flow(torch.arange(3))
    assert flow.find(Left) is None
    with pytest.raises(ValueError, match="Reader reads Left, which the part Leaver leaves in the flow"):
        flow.get(Left, "Reader")
    left = Left()
    flow.put(left)
    flow.put(Cells(1, 3))
    assert flow.get(Left, "Reader") is left
    inside = flow.inside(torch.arange(2), None)
    assert inside.find(Left) is left and inside.find(Cells) is None and flow.find(Cells) == Cells(1, 3)


MASKS: list[Mask] = [
    Window(2), Window(1, 2), Window(2) | Prefix(1), Global(2), BlockWindow(3), Random(2, 1), Dilated(2, 2, 1),
    Strided(3), ~Window(1) | Window(0), Causal() | Prefix(3), BlockWindow(2, 1, 0) & Window(3, 3),
]  # fmt: skip


@pytest.mark.parametrize("page", ["gpt", "bert"])
@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_masks_count_the_text_and_not_its_padding(mask: Mask, page: str) -> None:
    model = af.build(af.recipe(page, "tiny").but({"blocks.*.mixer.mask": mask}), seed=0).eval()
    ids, keep = torch.randint(0, 90, (2, 11)), torch.ones(2, 11, dtype=torch.bool)
    keep[1, :4] = False
    rows = model(ids, keep).hidden
    torch.testing.assert_close(rows[1:, 4:], model(ids[1:, 4:]).hidden)
    if model.generates:
        prompts = [ids[0].tolist(), ids[1, 4:].tolist()]
        together = model.generate(prompts, max_new_tokens=9)
        assert together == [model.generate([prompt], max_new_tokens=9, cache=False)[0] for prompt in prompts]


ENCODERS = {
    "Fourier": Fourier.of(),
    "Linformer": Linformer.of(length=16, rank=4, heads=2),
    "Nystrom": Nystrom.of(heads=2, landmarks=4),
    "ProbSparse": ProbSparse.of(heads=2),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_needs_no_mixer_that_decodes(name: str) -> None:
    recipe = af.recipe("t5", "tiny").but({"encoder.blocks.*.mixer": ENCODERS[name], "encoder.bias": None})
    model = af.build(recipe, seed=0).eval()
    cached = model.generate([[1, 2, 3]], max_new_tokens=5)
    assert cached == model.generate([[1, 2, 3]], max_new_tokens=5, cache=False)
    assert all(m in set(model.decoder.modules()) for m in model.start(1).slots)


def test_experts_that_choose_may_stand_in_a_generating_encoder() -> None:
    experts = MoE.of(router=ExpertChoice.of(experts=3), expert=MLP.of(hidden=20))
    model = af.build(af.recipe("t5", "tiny").but({"encoder.blocks.*.ffn": experts}), seed=0).eval()
    assert len(model.generate([[1, 2, 3]], max_new_tokens=5)[0]) <= 5


@pytest.mark.parametrize("option", [{"positions": Rotary.of()}, {"mask": Window(0)}])
def test_cross_attention_takes_no_option_that_it_would_drop(option: dict[str, Any]) -> None:
    recipe = af.recipe("t5", "tiny").but({f"decoder.blocks.*.cross.{name}": v for name, v in option.items()})
    with pytest.raises(ValueError, match="cross=True"):
        af.build(recipe)


@pytest.mark.parametrize("name", ["mamba", "gpt with a window", "t5"])
def test_a_gap_in_a_text_is_refused_where_it_would_be_read(name: str) -> None:
    page = name.split()[0]
    recipe = af.recipe(page, "tiny")
    recipe = recipe.but({"blocks.*.mixer.mask": Window(2)}) if "window" in name else recipe
    model = af.build(recipe, seed=0).eval()
    ids, gap = torch.tensor([[5, 6, 0, 7]]), torch.tensor([[1, 1, 0, 1]])
    more = {"decoder_input_ids": ids} if model.reads_source else {}
    with pytest.raises(ValueError, match="padding in the middle"):
        model(input_ids=ids, attention_mask=gap, **more)
    if not model.reads_source:
        state = model.start(1)
        model(ids[:, :2], state=state)
        with pytest.raises(ValueError, match="padding must be on the left"):
            model(torch.tensor([[0, 7]]), torch.tensor([[0, 1]]), state=state)


def test_a_gap_changes_nothing_where_no_position_counts_it() -> None:
    model = af.build("bert", "tiny", seed=0).eval()
    ids, gap = torch.tensor([[5, 6, 0, 7]]), torch.tensor([[1, 1, 0, 1]])
    hidden = model(ids, gap).hidden[:, [0, 1, 3]]
    torch.testing.assert_close(hidden, model(ids[:, [0, 1, 3]]).hidden)


def test_padding_of_an_output_is_that_of_its_call() -> None:
    model = af.build("gpt", "tiny", seed=0).eval()
    state, keep = model.start(2), torch.tensor([[0, 1, 1], [1, 1, 1]])
    model(torch.ones(2, 3, dtype=torch.long), keep, state=state)
    out = model(torch.ones(2, 1, dtype=torch.long), state=state)
    assert out.hidden.shape[:2] == out.keep.shape == (2, 1)


def test_inputs_that_nobody_reads_or_that_are_missing_are_named() -> None:
    bert, vit, t5 = (af.build(page, "tiny", seed=0) for page in ("bert", "vit", "t5"))
    ids = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="no part of this model reads 'pixel_values'"):
        bert(input_ids=ids, pixel_values=torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"no part of this model reads 'token_type_id' \(did you mean token_type_ids"):
        bert(input_ids=ids, token_type_id=ids)
    with pytest.raises(ValueError, match="no part of this model reads 'input_ids'"):
        vit(input_ids=ids)
    with pytest.raises(ValueError, match=r"reads pixel_values of shape \(batch, channels, height, width\)"):
        vit()
    with pytest.raises(ValueError, match="reads input_ids of shape"):
        t5(decoder_input_ids=ids)
    with pytest.raises(ValueError, match="segment id 9 in token_type_ids is outside"):
        bert(input_ids=ids, token_type_ids=ids * 9)
    with pytest.raises(ValueError, match="token id 1000000 in input_ids is outside"):
        bert(input_ids=ids * 1_000_000)


@pytest.mark.parametrize("page", af.names())
def test_every_model_declares_inputs_that_it_accepts(page: str) -> None:
    model = af.build(page, "tiny", seed=0).eval()
    example = model.example(2, {}, torch.Generator().manual_seed(0))
    reads = model.inputs()
    assert set(example) <= set(reads) and model.takes in example
    assert {name for name, read in reads.items() if read.required} <= set(example)
    for name, value in example.items():
        assert value.ndim == 1 + len(reads[name].axes) and value.is_floating_point() != reads[name].ids
    assert all(e.front.main == next(iter(e.front.inputs())) for e in model.entrances())
    assert len(model(**example).hidden if model.entrances()[0].front.vocab else example[model.takes]) == 2


def test_taps_name_what_records_nothing() -> None:
    model, ids = af.build("bert", "tiny", seed=0), torch.ones(1, 3, dtype=torch.long)
    for pattern in ("blocks", "blocks.0.norm", "heads"):
        with pytest.raises(ValueError, match="has no output"), af.Taps(model, pattern):
            model(ids)
    with pytest.raises(ValueError, match="recorded nothing: its module did not run"), af.Taps(model, "pool"):
        model.embed({"input_ids": ids}, Flow(torch.arange(3)))
    with pytest.raises(ValueError, match="no module offers such a value"), af.Taps(model, "blocks.0.mixer.wieghts"):
        model(ids)
    moe = af.build("mixtral", "tiny", seed=0)
    with af.Taps(moe, "blocks.0.ffn.router") as taps:  # which returns two tensors
        moe(ids)
    assert {name for name, _ in taps.items()} == {"blocks.0.ffn.router.0", "blocks.0.ffn.router.1"}


def test_a_state_of_another_model_is_refused() -> None:
    one, other = (af.build("gpt", "tiny", seed=0) for _ in range(2))
    with pytest.raises(ValueError, match="started by another model"):
        one(torch.ones(1, 2, dtype=torch.long), state=other.start(1))


def test_the_gain_of_deepnorm_reaches_parts_that_draw_their_own_weights() -> None:
    options = deepnorm(3) | {"gain": 0.01}
    block = Block.of(mixer=Mamba.of(state=4), norm=LayerNorm.of(), **options)
    models = [af.build(af.recipe("gpt", "tiny").but({"blocks": [b]}), seed=0) for b in (block, block.but(gain=1.0))]
    for name in ("blocks.0.mixer.step", "blocks.0.mixer.out"):
        small, plain = (m.get_submodule(name).weight for m in models)
        torch.testing.assert_close(small, 0.01 * plain)
    before = models[0].get_submodule("blocks.0.mixer.step").weight.clone()
    initialise(models[0], seed=0)
    torch.testing.assert_close(
        models[0].get_submodule("blocks.0.mixer.step").weight.std(), before.std(), rtol=0.5, atol=0
    )
    models[0].blocks[0].reset_parameters()  # draws nothing of its own, and makes nothing smaller
    assert models[0].get_submodule("blocks.0.mixer.step").weight.std() > 0.2 * before.std()


def test_a_head_of_its_own_needs_no_token_table() -> None:
    recipe = af.recipe("vit", "tiny").but({"heads": {"logits": af.parts.Logits.of(vocab=7)}, "pool": Mean.of()})
    image = af.build(recipe, seed=0).example(2, {}, torch.Generator().manual_seed(0))
    assert af.build(recipe, seed=0)(**image).logits.shape == (2, 17, 7)
    with pytest.raises(ValueError, match="Logits with tied=True reads Unembedding"):
        af.build(recipe.but({"heads.logits.tied": True}), seed=0)(**image)


def test_random_masks_do_not_depend_on_the_interpreter() -> None:
    assert Random(2, 1, seed=7).show(12) == Random(2, 1, seed=7).show(12)
    noise = torch.Generator().manual_seed(7 * 1_000_003 + 5)
    drawn = int(torch.randperm(5, generator=noise)[0])
    seen = Random(1, 1, seed=7).allowed(torch.tensor([[5]]), torch.arange(6)[None])
    assert bool(seen[0, drawn])


@pytest.mark.parametrize(
    "part", [TopK.of(experts=2), ExpertChoice.of(experts=2), Forget.of()], ids=lambda r: r.part.__name__
)
def test_what_works_over_time_is_no_mixer_by_that(part: Any) -> None:
    with pytest.raises(ValueError, match=r"Block.mixer: expected a recipe of a Mixer or None"):
        Block.of(mixer=part, norm=LayerNorm.of())
