"""The page in a browser: `pip install playwright`, and Debian's chromium."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import anyformer as af
from anyformer.explain.rows import attention_row
from anyformer.generate import generate
from anyformer.know import index
from tests.know.subjects import minilm, write

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api", reason="the page: left out: playwright is not installed")
KEY = "a-key-for-the-page"
DOCUMENTS = {"town.md": "# Drumhaven\n\nIts lighthouse was built in 1846, <img src=x onerror=alert(1)> by Ann.\n",
             "food.txt": "Bread is made of flour, water and salt.\n"}  # fmt: skip
HOSTILE = "</span><img src=x onerror=alert(1)><script>alert(2)</script>"


@pytest.fixture(scope="module")
def page(process, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium = shutil.which("chromium") or pytest.skip("the page: left out: chromium is not installed")
    place = tmp_path_factory.mktemp("page")
    index(write(place / "docs", DOCUMENTS), place / "idx", minilm())
    served = folders["llama"], folders["mamba"], folders["bert"]
    server = process(*served, "--tools", f"search={place / 'idx'}", ANYFORMER_API_KEY=KEY)
    with playwright.sync_playwright() as made:
        browser = made.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = browser.new_context(http_credentials={"username": "me", "password": KEY})
        one = context.new_page()
        one.wrong = []
        one.on("pageerror", lambda error: one.wrong.append(str(error)))
        one.on("dialog", lambda dialog: one.wrong.append("a dialog was opened"))
        one.address = server.url
        yield one
        browser.close()


@pytest.fixture(autouse=True)
def _fresh(page: Any) -> Iterator[None]:
    page.goto(page.address)
    page.locator(".welcome h2", has_text="llama").wait_for()
    for name, value in (("temperature", "0"), ("seed", ""), ("top_p", ""), ("max_tokens", "12")):
        page.evaluate("([id, v]) => { document.getElementById(id).value = v; }", [name, value])
    yield
    assert page.wrong == []


def ask(page: Any, text: str) -> None:
    page.fill("#say", text)
    page.press("#say", "Enter")
    page.locator("#stop").wait_for(state="hidden")


def test_a_conversation_and_its_probabilities(page, folders):
    model = af.load(folders["llama"])
    ask(page, "hello")
    ids = model.tokenizer.chat_ids([{"role": "user", "content": "hello"}])
    said = model.tokenizer.decode(generate(model, ids, max_new_tokens=12))
    assert page.locator(".text").inner_text().strip() == said.strip()
    page.locator(".text span").first.hover()
    rows = page.locator("#tip .row").all_inner_texts()
    assert len(rows) >= 5 and all("%" in row for row in rows)
    page.locator(".text").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.locator(".text span.at").count() == 1
    ask(page, "again")
    assert page.locator(".turn").count() == 2
    page.reload()
    assert page.locator(".turn").count() == 0


def test_two_models_and_a_stop(page, folders):
    mamba, prompts = af.load(folders["mamba"]), [list(b"go on")] * 24
    texts = generate(mamba, prompts, max_new_tokens=240, temperature=1.0, seed=list(range(24)))
    seed = next(seed for seed, text in enumerate(texts) if len(text) == 240)  # it does not end before the stop
    page.select_option("#two", "mamba")
    page.evaluate("document.getElementById('max_tokens').value = 240")
    page.evaluate("document.getElementById('temperature').value = 1")
    page.evaluate("seed => { document.getElementById('seed').value = seed; }", seed)
    page.fill("#say", "go on")
    page.press("#say", "Enter")
    page.locator("#stop").wait_for(state="visible")
    page.locator(".text span").first.wait_for(state="attached")
    page.keyboard.press("Escape")
    page.locator("#stop").wait_for(state="hidden")
    assert page.locator(".answer").count() == 2
    assert any("stopped" in text for text in page.locator(".who").all_inner_texts())


def test_hostile_text_stays_text(page):
    def hostile(route: Any) -> None:
        token = {"token": HOSTILE, "logprob": -0.1}
        told = {"content": [{**token, "top_logprobs": [token]}]}
        choice = {"index": 0, "delta": {"content": HOSTILE}, "finish_reason": "stop", "logprobs": told}
        body = {"choices": [choice]}
        route.fulfill(body=f"data: {json.dumps(body)}\n\ndata: [DONE]\n\n", content_type="text/event-stream")

    page.route("**/v1/chat/completions", hostile)
    ask(page, HOSTILE)
    page.unroute("**/v1/chat/completions")
    assert page.locator(".text").inner_text() == HOSTILE and page.locator(".mine").inner_text() == HOSTILE
    page.locator(".text span").hover()
    assert page.locator("#talk img, #talk script, #tip img").count() == 0
    assert page.evaluate("document.scripts.length") == 1


def test_a_card_and_a_mistake(page):
    page.click("#cards")
    assert (
        "apache-2.0" in page.locator("#facts").inner_text()
        and "CausalLM.of(" in page.locator("#facts pre").inner_text()
    )
    assert page.locator("img.wiring").evaluate("e => e.decode().then(() => e.naturalWidth)") > 100
    page.keyboard.press("Escape")
    page.evaluate("document.getElementById('max_tokens').value = 99999")
    ask(page, "x")
    assert "context of llama is 256" in page.locator("[role=alert]").inner_text()


def test_the_attention_of_an_answer(page, folders):
    ask(page, "hello")
    page.click("text=Attention")
    page.locator("#heads button").first.wait_for()
    model = af.load(folders["llama"])
    ids = model.tokenizer.chat_ids([{"role": "user", "content": "hello"}])
    said = page.locator(".text").text_content()
    answer = model.tokenizer.encode(said, special=False)
    assert page.locator("#heads button").count() == 2 * 4
    assert page.locator("#words .target").count() == len(ids) + len(answer)
    page.locator("#words button").nth(2).click()
    page.locator("#words button.at").nth(0).wait_for()
    looked = attention_row(model, ids, answer, 2)
    page.locator("#heads button").nth(5).hover()
    assert "layer 1, head 1" in page.locator("#looked").inner_text()
    shown = page.locator("#words .target").evaluate_all("list => list.map(e => parseFloat(e.title))")
    expected = [100 * float(w) for w in looked.rows[1].weights[1]]
    assert all(abs(a - b) < 1 for a, b in zip(shown, expected, strict=False)) and max(shown[: len(expected)]) > 1
    page.click("#why")
    inside = reported(page)
    assert page.locator("#reasoned").inner_text() == f"Token 3 of the {len(answer)} that llama wrote."
    assert inside.locator("section").count() >= 4 and inside.locator(".heads canvas").count() == 8
    page.locator("#after").press("Enter")
    page.locator("#reasoned", has_text="Token 4 of").wait_for()
    page.select_option("#way", "occlusion")
    page.locator("#save:enabled").wait_for()
    with page.expect_download() as saved:
        page.click("#save")
    report = saved.value.path().read_text()
    assert report.startswith("<!doctype html>") and '"lens":{"rows"' in report and '"method":"occlusion"' in report
    page.locator("#reasons [data-close]").click()
    assert not page.locator("#reasons").is_visible() and page.locator("#looks").is_visible()
    page.locator("#heads button").nth(5).click()
    page.keyboard.press("ArrowLeft")
    assert "layer 1, head 0" in page.locator("#looked").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("#looks").is_visible()


def reported(page: Any) -> Any:
    """The report that the page shows, once it is drawn: its own script ran under the policy of both pages."""
    inside = page.frame_locator("#reason")
    inside.locator("html[data-ready=yes]").wait_for(state="attached", timeout=20_000)
    return inside


def test_an_answer_without_attention_is_explained_on_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 800})
    page.select_option("#one", "mamba")
    ask(page, "hello")
    assert page.locator(".who >> text=Attention").count() == 0
    page.click(".who >> text=Why?")
    inside = reported(page)
    assert inside.locator("section").count() >= 3 and inside.locator(".heads canvas").count() > 0  # implied maps
    assert inside.locator("html").evaluate("e => e.scrollWidth <= e.clientWidth")
    box = page.locator("#reasons").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["y"] + box["height"] <= 800
    for name in ("#before", "#after", "#way", "#save"):
        part = page.locator(name).bounding_box()
        assert part["x"] >= 0 and part["x"] + part["width"] <= 390
    page.keyboard.press("Escape")
    assert not page.locator("#reasons").is_visible()
    page.set_viewport_size({"width": 1200, "height": 800})


def test_a_citation_opens_the_passage_at_what_it_quotes(page):
    page.select_option("#one", "mamba")  # it has no template, so that the documents' own sentences answer
    page.check("#documents")
    ask(page, "When was the lighthouse of Drumhaven built?")
    assert "built in 1846" in page.locator(".text").inner_text()
    page.locator(".text .cite").first.click()
    assert page.locator("#sr").inner_text() == "[1] town.md:3"
    assert page.locator("#passage mark").inner_text() == DOCUMENTS["town.md"].split("\n")[2]
    assert page.locator("#passage").inner_text().startswith("# Drumhaven") and page.locator("#source img").count() == 0
    page.keyboard.press("Escape")
    assert not page.locator("#source").is_visible()
    assert page.locator(".sources li").first.inner_text() == "[1] town.md:3"
    ask(page, "Wer gewann das Spiel in Madrid?")
    assert "Nothing found" in page.locator(".text").last.inner_text()
    assert "too far: " in page.locator(".sources").last.inner_text()
    page.select_option("#one", "llama")
    page.evaluate("document.getElementById('max_tokens').value = 250")  # does not fit its context
    ask(page, "When was the lighthouse of Drumhaven built?")
    assert "context of 256" in page.locator("[role=alert]").inner_text()
    page.uncheck("#documents")


def test_a_phone_shows_all_of_it(page):
    page.set_viewport_size({"width": 360, "height": 700})
    ask(page, "hello")
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 360
    for name in ("#send", "#one", "#two", "#theme", "#controls", "#documents"):
        box = page.locator(name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360, name
    page.set_viewport_size({"width": 1200, "height": 800})
