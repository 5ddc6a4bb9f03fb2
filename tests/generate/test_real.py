"""Real weights: the same tokens and the same vectors as the references."""

import pytest
import torch

import anyformer as af
from anyformer.core.init import initialise
from anyformer.data import sources
from anyformer.generate import chat, embed, generate, stream
from anyformer.models.clip import Image
from anyformer.models.flamingo import Latents, around
from tests.apart import apart

torch.set_num_threads(1)
PROMPTS = ["The capital of France is", "Water boils at", "def add(a, b):"]


def smollm():
    """In half precision, in which the model holds 0.3 GB."""
    return af.load(sources.get("smollm2"), dtype=torch.bfloat16)


@pytest.mark.slow
@apart
def test_smollm2_writes_what_transformers_writes():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = sources.get("smollm2")
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    expected = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        new = theirs.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
        expected.append(tokenizer.decode(new, skip_special_tokens=True))
    del theirs
    assert generate(af.load(path), PROMPTS, max_new_tokens=24) == expected


@apart
def test_smollm2_answers():
    question = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
    answer = "".join(chat(smollm(), question, max_new_tokens=20))
    assert "Paris" in answer and "<|im_end|>" not in answer


@apart
def test_smollm2_streams_what_it_generates_alone_and_in_a_batch():
    model = smollm()
    batch = generate(model, PROMPTS, max_new_tokens=2)  # sure ones: in 16 bits rows of a batch round differently
    assert batch[0] == " Paris."
    assert "".join(stream(model, PROMPTS[0], max_new_tokens=2)) == batch[0]


@pytest.mark.slow
@apart
def test_smollm2_with_media_is_smollm2_until_its_gates_open():
    smollm2 = smollm()
    latents, hole = Latents(latents=4, depth=1, heads=2, head_dim=16), smollm2.tokenizer.role_id("eos_token")
    tower = Image(dim=32, depth=1, heads=2, hidden=64, image=32, patch=16)
    model = around(smollm2.recipe, tower, latents, every=10, heads=9, placeholder=hole).build().eval().bfloat16()
    initialise(model, seed=0)
    missing, unexpected = model.load_state_dict(smollm2.state_dict(), strict=False)
    assert not unexpected and all(name.startswith(("images.", "gated.")) for name in missing)
    ids = torch.tensor([[hole, *smollm2.tokenizer.encode(PROMPTS[0])]])
    pixels = torch.randn(1, 1, 3, 32, 32, dtype=torch.bfloat16)
    with torch.no_grad():
        plain = smollm2(ids).logits
        assert torch.equal(model(ids, pixel_values=pixels).logits, plain)
        model.gated[1].scale["cross"].weight.fill_(0.5)
        assert not torch.equal(model(ids, pixel_values=pixels).logits, plain)


def test_minilm_gives_the_vectors_of_sentence_transformers():
    from transformers import AutoModel, AutoTokenizer

    folder = sources.get("minilm")
    m = af.load(folder)
    texts = ["A cat sleeps.", "Stocks fell sharply on Monday.", "", "naïve café — 東京 🙂", "word " * 400]
    with pytest.warns(UserWarning, match="1 of 5 texts are longer than 256 tokens .*402"):
        found = embed(m, texts, batch=2)
    theirs, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    given = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        hidden, mask = theirs(**given).last_hidden_state, given.attention_mask[..., None]
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (1 - (found * expected).sum(1)).abs().max() < 1e-6


def test_minilm_ranks_by_meaning():
    m = af.load(sources.get("minilm"))
    texts = ["The kitten naps on the sofa.", "Shares lost a tenth of their value.", "It rains in Bergen."]
    likeness = embed(m, ["A cat is sleeping.", "The stock market fell."]) @ embed(m, texts).T
    assert likeness.argmax(1).tolist() == [0, 1]
