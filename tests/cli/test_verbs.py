"""Every verb does what it says, on tiny models."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import anyformer as af
from anyformer.core import pages
from anyformer.generate import embed, generate


def test_ls_lists_every_page_and_counts_each_size(cli):
    code, out, _ = cli("ls", "--json")
    found = json.loads(out)
    assert code == 0
    assert [page["name"] for page in found["architectures"]] == pages.names()
    for page in found["architectures"]:
        assert list(page["sizes"]) == list(pages.page(page["name"]).sizes)
        model = af.build(page["name"], "tiny")
        assert page["sizes"]["tiny"] == sum(p.numel() for p in model.parameters())
    assert {w["name"] for w in found["weights"]} >= {"smollm2", "minilm", "bert-tiny"}


def test_ls_for_people_names_sizes(cli):
    code, out, _ = cli("ls")
    assert code == 0 and "124M" in out and "smollm2" in out and "LLaMA (Touvron" in out


def test_generate_prints_the_prompt_and_what_follows(cli, decoder):
    code, out, err = cli("generate", decoder, "Once", "--max_new_tokens", 5)
    assert code == 0
    assert out == "Once" + generate(af.load(decoder), "Once", max_new_tokens=5) + "\n"
    assert "parameters, loaded in" in err


def test_generate_takes_dashes_several_prompts_and_sampling(cli, decoder):
    options = ("--max-new-tokens", 4, "--temperature", 0.8, "--seed", 3, "--json")
    code, out, _ = cli("generate", decoder, "one", "two", *options)
    expected = generate(af.load(decoder), ["one", "two"], max_new_tokens=4, temperature=0.8, seed=3)
    assert code == 0
    assert json.loads(out) == [{"prompt": p, "text": t} for p, t in zip(("one", "two"), expected, strict=True)]


def test_generate_reads_options_from_yaml_and_the_command_line_wins(cli, decoder, tmp_path):
    (tmp_path / "c.yaml").write_text("max_new_tokens: 6\nstop: [zz]\n")
    _, long, _ = cli("generate", decoder, "a", "--config", tmp_path / "c.yaml")
    _, short, _ = cli("generate", decoder, "a", "--config", tmp_path / "c.yaml", "--max_new_tokens", 0)
    assert long == "a" + generate(af.load(decoder), "a", max_new_tokens=6, stop=["zz"]) + "\n" and short == "a\n"


def test_chat_answers_a_question(cli, decoder):
    code, out, _ = cli("chat", decoder, "Who", "are", "you?", "--max_new_tokens", 6)
    ids = af.load(decoder).tokenizer.chat_ids([{"role": "user", "content": "Who are you?"}])
    model = af.load(decoder)
    assert code == 0
    assert out.rstrip("\n") == model.tokenizer.decode(generate(model, ids, max_new_tokens=6)).rstrip("\n")


def test_chat_without_a_question_is_a_conversation_that_remembers(cli, decoder, monkeypatch):
    said = iter(["first", "second", "/new", "third", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(said))
    seen = []

    def talk(model, messages, **options):
        seen.append([m["content"] for m in messages])
        yield f"answer {len(seen)}"

    monkeypatch.setattr("anyformer.generate.chat", talk)
    from anyformer.cli.chat import chat

    chat(str(decoder), None, {}, system="be kind")
    assert seen == [["be kind", "first"], ["be kind", "first", "answer 1", "second"], ["be kind", "third"]]


def test_chat_goes_on_after_a_text_that_is_too_long(cli, decoder, monkeypatch):
    said = iter(["x" * 600, "hello"])

    def reads(prompt=""):
        try:
            return next(said)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", reads)
    code, out, _ = cli("chat", decoder, "--max_new_tokens", 4)
    assert code == 0 and "512" in out and "/new" in out


def test_embed_prints_vectors_and_ranks(cli, encoder):
    vectors = embed(af.load(encoder), ["one", "two three", "q"])
    code, out, _ = cli("embed", encoder, "one", "two three")
    assert code == 0
    torch.testing.assert_close(torch.tensor([row["vector"] for row in json.loads(out)]), vectors[:2])
    code, out, _ = cli("embed", encoder, "one", "two three", "--query", "q")
    scores = F.cosine_similarity(vectors[2:], vectors[:2])
    best = ["one", "two three"][int(scores.argmax())]
    assert code == 0 and out.splitlines()[0].split(maxsplit=1) == [f"{scores.max():+.3f}", best]


def test_embed_writes_npy(cli, encoder, tmp_path):
    code, out, _ = cli("embed", encoder, "one", "two", "--out", tmp_path / "v.npy")
    assert code == 0 and "2 x 32" in out
    np.testing.assert_allclose(
        np.load(tmp_path / "v.npy"), embed(af.load(encoder), ["one", "two"]), rtol=1e-6, atol=1e-6
    )


def test_convert_writes_what_loads_again_and_in_the_asked_dtype(cli, decoder, tmp_path):
    code, out, _ = cli("convert", decoder, tmp_path / "half", "--dtype", "bfloat16")
    half = af.load(tmp_path / "half")
    assert code == 0 and "model_type llama" in out and "model.safetensors" in out
    for name, weight in af.load(decoder).state_dict().items():
        assert torch.equal(half.state_dict()[name], weight.bfloat16()), name
    assert half.tokenizer.encode("a b") == af.load(decoder).tokenizer.encode("a b")


def test_convert_refuses_to_replace_another_model(cli, decoder, encoder, tmp_path):
    assert cli("convert", decoder, tmp_path / "m")[0] == 0
    before = (tmp_path / "m" / "model.safetensors").read_bytes()
    code, _, err = cli("convert", encoder, tmp_path / "m")
    assert code == 2 and "another model" in err
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before
    assert cli("convert", encoder, tmp_path / "m", "--overwrite")[0] == 0
    assert af.load(tmp_path / "m").page == "bert"


def test_train_writes_a_model_that_generates(cli, tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 400)
    options = ("--data", tmp_path / "text.txt", "--out", tmp_path / "run", "--size", "tiny", "--tokenizer", "bytes")
    smaller = ("--overrides.depth", 1, "--overrides.context", 32)
    code, out, err = cli("train", *options, *smaller, "--steps", 3, "--batch", 2)
    assert code == 0, err
    assert "bits per byte" in out and "bigram" in out
    model = af.load(next((tmp_path / "run").glob("step-*")))
    assert len(model.blocks) == 1 and model.context == 32
    assert (tmp_path / "run" / "config.yaml").exists()


def test_finetune_writes_a_model_and_adapters(cli, encoder, tmp_path):
    rows = "".join(f"{word} {i},{word == 'good'}\n" for i in range(20) for word in ("good", "bad"))
    (tmp_path / "reviews.csv").write_text("text,label\n" + rows)
    options = ("--out", tmp_path / "run", "--steps", 3, "--targets", "**.mixer.q", "**.mixer.v", "--trainable", "pool")
    code, out, err = cli("finetune", "--model", encoder, "--data", tmp_path / "reviews.csv", *options)
    assert code == 0, err
    assert (
        "parameters are trained (lora of rank 8 on 4 layers); 36 examples, 4 held out; 2 classes: False, True;" in out
    )
    assert af.load(tmp_path / "run" / "model").config.classes == 2
    assert (tmp_path / "run" / "step-000003" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("name", pages.names())
def test_inspect_every_page(cli, name):
    code, out, _ = cli("inspect", name, "--json")
    facts = json.loads(out)
    model = af.build(name, "tiny")
    assert code == 0
    assert facts["parameters"] == sum(p.numel() for p in model.parameters()) == sum(facts["parts"].values())
    assert facts["recipe"] == repr(model.recipe)
    assert cli("inspect", name, "--tree")[0] == 0


def test_inspect_a_size_that_no_machine_here_could_hold(cli):
    code, out, _ = cli("inspect", "llama", "--size", "3.1-70b")
    assert code == 0 and "70,553,706,496" in out and "282.2 GB float32" in out
    assert "] * 80" in out


def test_inspect_shows_the_ledger(cli, decoder):
    code, out, _ = cli("inspect", decoder, "--tensors", "--keys")
    assert code == 0
    assert "model.layers.0.self_attn.q_proj.weight" in out and "blocks.0.mixer.q.weight" in out
    assert "hidden_size" in out and "chat template" in out
    _, brief, _ = cli("inspect", decoder)
    assert "q_proj" not in brief and "tensors: " in brief


def test_verify_prints_the_table_and_its_exit_code_says_whether_all_passed(cli, encoder, monkeypatch):
    from anyformer import contract

    asked = []

    def short(subject, *, slow, progress, task, ignore):  # two checks of the real ones: all of them take a minute
        asked.append((subject, slow))
        chosen = [c for c in contract.CHECKS if c.checkpoint][:2]
        with monkeypatch.context() as patch:
            patch.setattr("anyformer.contract.report.CHECKS", chosen)
            return contract.report.verify(subject, slow=slow, progress=progress, task=task, ignore=ignore)

    monkeypatch.setattr(contract, "verify", short)
    code, out, err = cli("verify", encoder, "--json")
    found = json.loads(out)
    assert asked == [(str(encoder), False)]
    assert code == 0 and found["ok"] and len(found["rows"]) == 3, err
    weights = encoder / "model.safetensors"
    kept = weights.read_bytes()
    try:
        weights.write_bytes(kept[:-8])
        assert cli("verify", encoder)[0] == 2  # refused before any check
    finally:
        weights.write_bytes(kept)
    monkeypatch.setattr(contract.report.Report, "ok", False)
    code, out, _ = cli("verify", encoder)
    assert code == 1 and "difference" in out


@pytest.mark.slow
def test_demo_twice_side_by_side(cli, tmp_path, monkeypatch):
    """Real weights, a short training; the second run does not touch the first."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the cat sat on the mat and looked at the dog. " * 400)
    options = ("--data", "text.txt", "--steps", 2, "--question", "What is the capital of France?")
    code, out, err = cli("demo", *options)
    assert code == 0, err
    for said in ("bits per byte", "bigram", "Paris", "Kittens", "attention.png", "Commands to try next"):
        assert said in out
    first = tmp_path / "runs" / "demo-1"
    assert (first / "attention.png").read_bytes()[:4] == b"\x89PNG"
    assert af.load(next((first / "gpt").glob("step-*"))).page == "gpt"
    best = next(line for line in out.splitlines() if line.startswith("  +"))
    assert "Kittens" in best
    before = {p: p.stat().st_mtime_ns for p in first.rglob("*")}
    assert cli("demo", *options)[0] == 0
    assert (tmp_path / "runs" / "demo-2" / "attention.png").exists()
    assert before == {p: p.stat().st_mtime_ns for p in first.rglob("*")}


def test_draw_and_diff_go_by_recipes_alone(cli, tmp_path):
    code, out, _ = cli("diff", "llama", "qwen2")
    assert code == 0 and "  blocks.0-1.mixer.bias      False  True\n" in out
    code, out, _ = cli("diff", "llama", "llama", "--json")
    assert code == 0 and json.loads(out) == []
    code, out, _ = cli("draw", "t5", "--out", tmp_path / "t5.svg")
    assert code == 0 and out.strip() == str(tmp_path / "t5.svg") and "<svg" in (tmp_path / "t5.svg").read_text()
