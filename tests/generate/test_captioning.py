"""Pictures in prompts, captions and questions: what is written is what the model's own logits say, token by token."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import anyformer as af
from anyformer.cli import main
from anyformer.generate import ask, caption, chat, generate, stream
from anyformer.generate.seeing import placeholder
from anyformer.generate.speculating import Lookup
from anyformer.hub.processors import trained
from anyformer.hub.text.tokenizer import Tokenizer
from tests.hub import test_flamingo, test_omni

MARK = 257  # behind the bytes and their end token


def made(**changes: Any) -> Any:
    """A LLaVA of bytes whose pictures take four positions."""
    overrides = {"text.vocab": 258, "text.context": 256, "token": MARK, **changes}
    model: Any = af.build("llava", "tiny", seed=1, overrides=overrides).eval()
    model.tokenizer = Tokenizer.bytes_level().with_special(MARK, "<image>")
    model.processor = trained("CLIPImageProcessor", 8, 8, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # so that pictures and words change what is written
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return made()


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8))


@torch.no_grad()
def by_hand(model: Any, before: str, images: list[Any], count: int) -> list[int]:
    """The greedy continuation, all of it read again for each token; placeholders are never written."""
    ids = [t for i in model.tokenizer.encode(before) for t in [i] * (4 if i == MARK else 1)]
    first = len(ids)
    for _ in range(count):
        scores = model(input_ids=torch.tensor([ids]), **model.processor(images)).logits[0, -1]
        scores[MARK] = float("-inf")
        if (token := int(scores.argmax())) in model.tokenizer.eos_ids:
            break
        ids.append(token)
    return ids[first:]


def test_pictures_in_prompts_give_what_the_logits_say(model):
    """With a cache or not, together or alone, by beams of one, in a stream."""
    prompts, images = ["<image>\na", "no picture at all", "see <image> and <image>."], [picture(i) for i in range(3)]
    sizes: tuple[list[Any], ...] = (images[:1], [], images[1:])
    wanted = [
        by_hand(model, p, some, 8) if some else generate(model, model.tokenizer.encode(p), max_new_tokens=8)
        for p, some in zip(prompts, sizes, strict=True)
    ]
    rows = [model.tokenizer.encode(p) for p in prompts]
    assert generate(model, rows, images=images, max_new_tokens=8) == wanted
    assert generate(model, rows, images=images, max_new_tokens=8, cache=False) == wanted
    texts = generate(model, prompts, images=images, max_new_tokens=8)
    pieces = ["".join(stream(model, p, images=s, max_new_tokens=8)) for p, s in zip(prompts, sizes, strict=True)]
    assert pieces == texts == [model.tokenizer.decode(row) for row in wanted]
    other = generate(model, rows, images=images[::-1], max_new_tokens=8)
    assert other[1] == wanted[1] and other[0] != wanted[0]


def test_beams_keep_their_pictures(model):
    """A search with and without a cache finds the same; a row alone, too."""
    rows, images = [model.tokenizer.encode(f"{t}<image>{t}") for t in ("a", "bcd")], [picture(5), picture(6)]
    options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 5}
    found = generate(model, rows, images=images, **options)
    assert found == generate(model, rows, images=images, cache=False, **options)
    assert found == [generate(model, row, images=[image], **options) for row, image in zip(rows, images, strict=True)]


@pytest.mark.parametrize("before", ["abcabcabc<image>abc", "<image>abcabcab", "abab<image>\nabab<image>ab"])
def test_guessed_tokens_behind_a_picture_are_verified(model, before, monkeypatch):
    """Speculation reads the picture once, guesses what followed the same words before, and takes back what is wrong."""
    guessed, images = list[int](), [picture(i) for i in range(before.count("<image>"))]
    real = Lookup.guess

    def heard(self: Any, count: int) -> list[int]:
        found = real(self, count)
        guessed.append(len(found))
        return found

    monkeypatch.setattr(Lookup, "guess", heard)
    row, few = model.tokenizer.encode(before), {97: 40.0, 98: 40.0}  # words that come again
    each: list[dict[str, Any]] = [{}, {"logit_bias": few}, {"logit_bias": few, "temperature": 2.0, "seed": 3}]
    for options in each:
        wanted = generate(model, row, images=images, max_new_tokens=24, **options)
        assert generate(model, row, images=images, max_new_tokens=24, speculate="lookup", **options) == wanted
    assert sum(guessed) > 0
    pieces = stream(model, before, images=images, max_new_tokens=24, speculate="lookup")
    assert "".join(pieces) == model.tokenizer.decode(generate(model, row, images=images, max_new_tokens=24))


def test_ids_with_all_placeholders_are_read_as_they_are(model):
    whole = [1, *[MARK] * 4, 65]
    assert generate(model, whole, images=[picture(0)], max_new_tokens=6) == generate(
        model, [1, MARK, 65], images=[picture(0)], max_new_tokens=6
    )


def test_captions_and_answers_are_those_prompts(model):
    images = [picture(i) for i in range(3)]
    wanted = [text.strip() for text in generate(model, ["<image>\nA "] * 3, images=images, max_new_tokens=6)]
    assert caption(model, images, "A ", max_new_tokens=6, batch=2) == wanted
    plain = "".join(ask(model, images[0], "What?", max_new_tokens=6))
    assert plain == generate(model, "<image>\nWhat?\n", images=images[:1], max_new_tokens=6)


def eyes(page: str) -> Any:
    """A model of bytes of each way in which pictures come into a text."""
    if page == "llava":
        return made()
    if page == "flamingo":
        gated = test_flamingo.built(vocab=257, placeholder=MARK)
        gated.tokenizer = Tokenizer.bytes_level().with_special(MARK, "<image>")
        gated.processor = test_flamingo.processor()
        return gated
    omni = test_omni.model()
    for token, name in ((260, "<see>"), (261, "</see>")):
        omni.tokenizer = omni.tokenizer.with_special(token, name)
    return omni


@pytest.mark.parametrize("page", ["llava", "flamingo", "omni"])
def test_captions_and_answers_search_guess_and_need_no_cache(page):
    model, image = eyes(page), picture(0)

    def answer(**options: Any) -> str:
        return "".join(ask(model, image, "abab abab", max_new_tokens=10, **options))

    def text(**options: Any) -> str:
        return caption(model, [image], "abab abab", max_new_tokens=10, **options)[0]

    for write in (answer, text):
        assert write() == write(cache=False) == write(speculate="lookup")
        assert write(num_beams=3) == write(num_beams=3, cache=False)
        with pytest.raises(ValueError, match="leave out temperature"):
            write(num_beams=3, temperature=1.0)
    prompt = f"{placeholder(model)}\nabab abab\n"
    assert answer(num_beams=3) == generate(model, prompt, images=[image], max_new_tokens=10, num_beams=3)
    model.tokenizer.template = TEMPLATES["text"][0]
    found = answer(num_beams=3)
    assert found == generate(model, f"[{prompt[:-1]}]", images=[image], max_new_tokens=10, num_beams=3)


TEMPLATES = {
    "parts": (
        "{% for m in messages %}{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %} {{ c.text }}"
        "{% endif %}{% endfor %}{% endfor %} ASSISTANT:",
        "<image> What? ASSISTANT:",
    ),
    "text": ("{% for m in messages %}[{{ m.content }}]{% endfor %}", "[<image>\nWhat?]"),
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_question_goes_through_the_chat_template(kind):
    template, written = TEMPLATES[kind]
    model = made()
    model.tokenizer.template = template
    answer = "".join(ask(model, picture(0), "What?", max_new_tokens=6))
    assert answer == model.tokenizer.decode(by_hand(model, written, [picture(0)], 6))
    spelt = "".join(ask(model, picture(0), "<image>What?", max_new_tokens=6))  # letters: one picture, as it is given
    assert spelt == "".join(ask(model, picture(0), "< image>What?", max_new_tokens=6))
    message = {"role": "user", "content": "What?" if kind == "text" else [{"type": "text", "text": "What?"}]}
    assert isinstance("".join(chat(model, [message], max_new_tokens=2)), str)


def _plain() -> Any:
    text: Any = af.build("llama", "tiny", vocab=257, seed=0)
    text.tokenizer = Tokenizer.bytes_level()
    return text


def _without(name: str) -> Any:
    model = made()
    setattr(model, name, None)
    return model


def _unnamed() -> Any:
    model = made()
    model.tokenizer = Tokenizer.bytes_level()
    return model


BAD: dict[str, tuple[Any, str]] = {
    "a model of text": (lambda m: generate(_plain(), "a", images=[picture(0)]), "llama sees no pictures inside a text"),
    "a caption by a model of text": (lambda m: caption(_plain(), [picture(0)]), "llama sees no pictures"),
    "no processor": (lambda m: caption(_without("processor"), [picture(0)]), "the model has no processor"),
    "no tokenizer": (lambda m: caption(_without("tokenizer"), [picture(0)]), "texts about pictures need a tokenizer"),
    "a tokenizer without the placeholder": (lambda m: caption(_unnamed(), [picture(0)]), r"with_special\(257, "),
    "no placeholder": (lambda m: generate(m, "a", images=[picture(0)]), "1 images, and prompt 0 has 0 placeholders"),
    "more placeholders than pictures": (
        lambda m: generate(m, ["<image>", "<image><image>"], images=[picture(0)]), "prompt 0 has 1, prompt 1 has 2",
    ),
    "placeholders without pictures": (lambda m: generate(m, ["a", "<image>"]), "prompt 1 has 1 placeholders for media"),
    "no pictures": (lambda m: caption(m, []), "images must be a list of at least one picture"),
    "one picture": (lambda m: caption(m, "cat.png"), "images must be a list"),
    "a batch of none": (lambda m: caption(m, [picture(0)], batch=0), "batch must be a whole number, 1 or more"),
    "no question": (lambda m: ask(m, picture(0), " "), "question is empty"),
    "no picture": (lambda m: caption(m, [b"no picture"]), "picture"),
    "no room": (
        lambda m: generate(m, "<image>" * 9, images=[picture(0)] * 9, max_new_tokens=250), "the prompt has 36 tokens",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_written_is_refused(model, name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call(model)


def test_the_tokenizer_gets_one_more_token():
    plain = Tokenizer.bytes_level()
    more = plain.with_special(plain.vocab_size, "<image>")
    assert more.encode("a<image>b")[1] == plain.vocab_size == more.vocab_size - 1 and more.eos_ids == plain.eos_ids
    assert plain.core.token_to_id("<image>") is None and more.with_special(257, "<image>").vocab_size == 258
    for token, text in ((300, "<other>"), (5, "<image>")):
        with pytest.raises(ValueError, match=f"cannot be token {token}"):
            more.with_special(token, text)


def test_the_same_on_the_command_line(model, tmp_path, capsys):
    model.save(tmp_path / "model")
    picture(0).save(tmp_path / "a.png")
    folder, image = str(tmp_path / "model"), str(tmp_path / "a.png")
    again = af.load(folder)
    assert again.processor == model.processor and again.placeholders == {MARK}
    capsys.readouterr()
    few = ("--max-new-tokens", "6")
    assert main(["caption", folder, image, "--json", *few]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == [{"image": image, "text": caption(model, [picture(0)], max_new_tokens=6)[0]}]
    assert main(["ask", folder, image, "What?", *few]) == 0
    assert capsys.readouterr().out == "".join(ask(model, picture(0), "What?", max_new_tokens=6)) + "\n"
    assert main(["ask", folder, image, "What?", *few, "--num-beams", "3"]) == 0
    assert capsys.readouterr().out == next(ask(model, picture(0), "What?", max_new_tokens=6, num_beams=3)) + "\n"
    assert main(["generate", folder, "a<image>", "--image", image, *few]) == 0
    wanted = generate(model, "a<image>", images=[picture(0)], max_new_tokens=6)
    assert capsys.readouterr().out == f"a<image>{wanted}\n"
    assert main(["generate", folder, "a", "--image", image]) == 2
    assert "prompt 0 has 0 placeholders" in capsys.readouterr().err
    assert main(["caption", folder, str(tmp_path / "b.png")]) == 2
    assert "b.png" in capsys.readouterr().err
