"""The engine of ONNX Runtime: on every page the text is that of PyTorch, or the page is refused by name."""

from __future__ import annotations

import functools
import json
import math
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.generate import generate
from anyformer.generate.engine import with_engine
from anyformer.generate.engine.lower.weights import BLOCK, affine, dequantised, is_affine
from anyformer.generate.engine.processor import exact_products
from anyformer.generate.engine.step import Unsupported
from tests.later import later, needs

from . import test_joining
from .subjects import model, names, reading

needs("onnxruntime", "onnx", "onnxscript", reason='the engine needs pip install "anyformer[engine]"')

REFUSED = {  # page: words of the reason
    "compressive": "keeps a Tail as its state",
    "memorizing": "as its state, and the engine has no buffers",
    "transformerxl": "keeps a Tail as its state",
    "switch": "keeps a capacity, which counts earlier tokens",
    "performer": "cannot be traced: No ONNX function found for <OpOverload(op='aten.cummax'",
    "reformer": "decodes step by step up to",
    "flamingo": "keeps a MediaKeys as its state",
    "llava": "keeps a Read as its state",
    "omni": "keeps a Read as its state",
}
KINDS = ("llama:", "mamba:", "t5:")  # others are made of the same parts; Gemma's windows and Jamba have tests below
COMPUTED = ("performer:relu", "reformer:local")  # variants of these pages
PROMPTS = [[5, 6, 7, 8, 5, 6, 7], [5, 6, 9], [11, 12, 13, 14, 15]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path))
    monkeypatch.setattr("anyformer.generate.engine.build.WINDOWS", 2)


@pytest.fixture(autouse=True, scope="module")
def _translations_listed_once():
    """PyTorch reads the signatures of all its translations for each program, a seventh of what a program takes."""
    from torch.onnx._internal.exporter import _registration

    with pytest.MonkeyPatch.context() as patch:
        for place in (_registration._torchlib_registry, _registration.onnxscript_apis):
            patch.setattr(place, "get_torchlib_ops", functools.cache(place.get_torchlib_ops))
        yield


def same(m: Any, engine: Any, prompts: list[list[int]], **options: Any) -> bool:
    return generate(engine, prompts, **options) == generate(m, prompts, **options)


AGAIN = [n for n in names() if n not in KINDS and n[:-1] not in REFUSED]


@pytest.mark.parametrize("name", [*KINDS, *(f"{page}:" for page in REFUSED), *later(*AGAIN)])
def test_the_text_is_that_of_pytorch_or_the_page_is_refused(name):
    m, page = model(name), name.split(":")[0]
    try:
        engine = with_engine(m, "onnx", "float32")
    except Unsupported as error:
        assert page in REFUSED and REFUSED[page] in str(error)
        return
    assert page not in REFUSED or name in COMPUTED
    count = min(9, (m.context or 64) - 8)
    assert same(m, engine, PROMPTS[:1], max_new_tokens=count)
    assert same(m, engine, PROMPTS, max_new_tokens=count, temperature=1.2, seed=[1, 2, 3])
    assert same(m, engine, PROMPTS[:2], max_new_tokens=count, num_beams=3)
    assert same(m, engine, PROMPTS[:1], max_new_tokens=count, speculate="lookup", logit_bias={5: 4.0, 6: 4.0})


def heads_of_eight(page: str, **changes: Any) -> Any:
    """A model whose heads are wide enough for the node of attention, with weights that matter."""
    made = af.build(page, "tiny", **changes)
    assert any(getattr(part, "head_dim", 0) % 8 == 0 for part in made.modules() if hasattr(part, "head_dim"))
    with torch.no_grad():
        for weight in made.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.3, generator=torch.Generator().manual_seed(weight.numel()))
    return made.eval()


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> tuple[Any, Any]:
    """A model and its engine, for tests that change neither."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYFORMER_CACHE", str(tmp_path_factory.mktemp("engine")))
        patch.setattr("anyformer.generate.engine.build.WINDOWS", 2)
        made = heads_of_eight("llama")
        return made, with_engine(made, "onnx", "float32")


def test_a_window_stays_bounded_and_right_past_its_length():
    m = heads_of_eight("gemma3", head_dim=8, context=256)
    engine = with_engine(m, "onnx", "float32")
    kinds = {held.kind for held in engine.plan.held}
    assert kinds == {"bound"} and len(engine.plan.reaches) == 2 and not engine.plan.single
    assert same(m, engine, PROMPTS[:1], max_new_tokens=60)
    assert same(m, engine, PROMPTS, max_new_tokens=60, temperature=1.0, seed=4)
    state, ids = m.start(1, 8), torch.tensor([[3]])
    with torch.inference_mode():
        for _ in range(200):
            engine(input_ids=ids, state=state, last=True)
    window = min(left for left in engine.plan.reaches)
    sizes = [state.slots[held.mixer].memory.shape[3] for held in engine.plan.held if held.reach == window]
    assert sizes and max(sizes) <= 2 * window + 2 < 200


def test_options_of_attention_are_those_of_pytorch():
    from anyformer.parts.attention.masks import Window
    from anyformer.parts.attention.score_parts import Alibi, SoftCap, Temperature
    from anyformer.parts.norms import RMSNorm
    from anyformer.parts.positions import Rotary, YaRN

    options: list[dict[str, Any]] = [
        {"positions": Rotary.of(fraction=0.5), "bias": "qv"},
        {"positions": Rotary.of(pairs="adjacent", scaling=YaRN(4.0, 8)), "norm": RMSNorm.of()},
        {"positions": None, "scores": [Alibi.of(), SoftCap.of(2.0), Temperature.of(0.5)]},
        {"positions": None, "scores": [Alibi.of()], "mask": Window(4), "scale": 0.3},
        {"mask": Window(5) & ~Window(1) | Window(0), "kv_heads": 1},
    ]
    recipe = af.recipe("llama", "tiny", depth=len(options), context=64)
    changes = {f"blocks.{i}.mixer.{name}": value for i, some in enumerate(options) for name, value in some.items()}
    m = af.build(recipe.but({"blocks.*.mixer.head_dim": 8, **changes}), seed=0).eval()
    engine = with_engine(m, "onnx", "float32")
    assert {held.kind for held in engine.plan.held} == {"bound"}
    assert same(m, engine, PROMPTS, max_new_tokens=20, temperature=2.0, seed=5)


@pytest.mark.parametrize("name", [*later("gemma3:"), "jamba:"])
def test_rows_join_and_leave_a_batch(name, monkeypatch):
    made = heads_of_eight("gemma3", head_dim=8) if name == "gemma3:" else model(name)
    monkeypatch.setattr(test_joining, "model", lambda name: with_engine(made, "onnx", "float32"))
    test_joining.test_a_row_that_joins_gets_what_it_gets_alone(name)


def test_steps_of_both_engines_follow_each_other_on_one_state(llama):
    m, engine = llama
    ids = torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10]])
    with torch.inference_mode():
        whole, state = m(input_ids=ids).logits, m.start(1, 4)
        parts = [
            engine(input_ids=ids[:, :3], state=state).logits,
            m(input_ids=ids[:, 3:5], state=state).logits,
            engine(input_ids=ids[:, 5:6], state=state).logits,
        ]
        state.trim(4)
        state.reorder(torch.tensor([0, 0]))
        again = engine(input_ids=ids[:, 4:5].expand(2, 1), state=state).logits
    assert torch.allclose(torch.cat(parts, 1), whole[:, :6], atol=1e-4)
    assert torch.allclose(again[1], whole[0, 4:5], atol=1e-4) and state.length == 5


def test_a_long_text_is_read_in_chunks(monkeypatch, llama):
    from anyformer.generate.engine import model as module

    (m, engine), ids = llama, torch.randint(0, 99, (1, 21))
    monkeypatch.setattr(module, "CHUNK", 8)
    with torch.inference_mode():
        assert torch.allclose(engine(input_ids=ids, state=m.start(1)).logits, m(input_ids=ids).logits, atol=1e-4)


def test_an_id_outside_the_vocabulary_is_named(llama):
    engine = llama[1]
    with torch.inference_mode(), pytest.raises(ValueError, match="token id 99999"):
        engine(input_ids=torch.tensor([[99999]]), state=engine.start(1))


def four_bits(weight: torch.Tensor) -> torch.Tensor:
    """The matrix as a file in Q4_1 would hold it."""
    codes, missed = affine(weight)
    return dequantised(codes) + missed.repeat_interleave(BLOCK, 1)


def text_model(shift: float = 0.0) -> Any:
    """A model with a tokenizer, whose body has weights of 4 bits; `shift` moves each block, as Q4_1's minimum may."""
    made = reading()
    with torch.no_grad():
        for part in made.modules():
            if type(part) is torch.nn.Linear and part.in_features % BLOCK == 0:
                blocks = part.weight.unflatten(1, (-1, BLOCK))
                noise = torch.randn(blocks.shape[:2], generator=torch.Generator().manual_seed(1))
                part.weight.copy_(four_bits((blocks + shift * noise[..., None]).flatten(1)))
    return made


def test_forms_are_within_their_bounds_and_the_quality_is_printed(capsys):
    m = text_model(shift=0.6)
    engine = with_engine(m, "onnx", "auto")
    assert [program["kind"] for program in engine.report.programs] == ["int4", "int8"]
    for quality in engine.report.quality.values():
        assert quality["text"] and quality["tokens"] > 500
        assert abs(quality["more"]) <= quality["bound"] + 2 * quality["error"] and quality["kld"] < 0.01
    said = capsys.readouterr().err
    assert "4-bit blocks up to 3 rows: perplexity" in said and "±" in said and "KLD" in said


def test_the_command_prints_the_quality_and_a_whole_zero_point_fails_it(tmp_path, monkeypatch, capsys):
    from anyformer.cli import main

    m = text_model(shift=2.0)
    m.save(tmp_path / "model")
    words = ["generate", str(tmp_path / "model"), "the cat", "--max-new-tokens", "6", "--engine", "onnx"]
    assert main([*words, "--precision", "float32"]) == 0
    said = capsys.readouterr()
    assert said.out == "the cat" + generate(m, "the cat", max_new_tokens=6) + "\n"
    assert "float32: perplexity" in said.err and "KLD" in said.err
    from anyformer.generate.engine import build

    exact = build.Blocks
    monkeypatch.setattr(build, "Blocks", lambda bits: exact(bits, exact=False))
    assert main(words) != 0
    said = capsys.readouterr()
    assert "int4 changes this model too much: perplexity" in said.err and not said.out
    assert not list((tmp_path / "engine").glob(".making-*"))  # nothing is left of it


def test_four_bits_store_such_weights_exactly():
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(0)) + 0.3
    assert not is_affine(weight) and is_affine(four_bits(weight))


@pytest.mark.parametrize(
    ("machine", "flags", "kinds"),
    [
        ("x86_64", {"avx2", "avx512f", "avx512_vnni"}, ["int4", "int8"]),
        ("x86_64", {"avx2", "avx_vnni"}, ["int4", "int8"]),
        ("x86_64", {"avx2", "avx512f"}, ["int4", "float32"]),  # sums of 8-bit products would saturate
        ("x86_64", set(), ["int4", "float32"]),
        ("aarch64", set(), ["int4", "int8"]),
    ],
)
def test_the_flags_of_the_processor_decide(machine, flags, kinds, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: machine)
    from anyformer.generate.engine import build

    choices, note = build._choices(text_model(), "auto", frozenset(flags))
    assert [choice.kind for choice in choices] == kinds
    assert exact_products(flags, machine) == ("float32" not in kinds) and bool(note) == ("float32" in kinds)
    if note:
        with pytest.raises(Unsupported, match="no VNNI"):
            build._choices(text_model(), "int8", frozenset(flags))


def test_programs_are_made_once_and_again_for_other_weights(monkeypatch, capsys):
    from anyformer.generate.engine import build

    m, made, real = heads_of_eight("llama"), list[int](), build._build

    def counted(*given: Any) -> None:
        made.append(1)
        real(*given)

    monkeypatch.setattr(build, "_build", counted)
    first = with_engine(m, "onnx", "float32")
    assert with_engine(m, "onnx", "float32").programs[0][1] is first.programs[0][1] and made == [1]
    build.engined(m, "float32")
    assert made == [1]  # from the cache
    with torch.no_grad():
        next(m.parameters()).add_(1.0)
    changed = with_engine(m, "onnx", "float32")
    assert made == [1, 1] and same(m, changed, PROMPTS[:1], max_new_tokens=6)
    report = next(path for path in build.store().rglob("report.json"))
    assert math.isfinite(json.loads(report.read_text())["quality"]["many"]["kld"])


def test_auto_says_why_it_stays_with_pytorch(monkeypatch, capsys):
    from anyformer.generate.engine import build
    from anyformer.generate.engine.model import Engined

    m = model("compressive:")
    assert with_engine(m, "auto") is m
    assert capsys.readouterr().err.startswith("engine: torch, since CompressiveMemory keeps a Tail")
    with monkeypatch.context() as patched:
        patched.setattr(build, "engined", None)  # and does not try again
        assert with_engine(m, "auto") is m and "CompressiveMemory keeps a Tail" in capsys.readouterr().err
    assert isinstance(with_engine(model("gpt:"), "auto"), Engined)


def test_a_missing_package_is_an_error_with_the_command(monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"anyformer\[engine\]"):
        generate(model("gpt:"), [[1]], max_new_tokens=1, engine="onnx")
    generate(model("gpt:"), [[1]], max_new_tokens=1, engine="auto")
    assert "engine: torch" in capsys.readouterr().err


def test_bad_words_for_options():
    with pytest.raises(ValueError, match="engine must be one of 'auto', 'torch', 'onnx'"):
        generate(model("gpt:"), [[1]], engine="tensorrt")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="precision must be one of"):
        generate(model("gpt:"), [[1]], engine="onnx", precision="int2")  # type: ignore[arg-type]
