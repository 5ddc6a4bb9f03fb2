"""A cascade from text to sound: each stage sees what the one before made, codes stay in their books, lengths follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

import anyformer as af
from anyformer.cli import main
from anyformer.contract.subjects import redrawn
from anyformer.generate import cascade as cascades
from anyformer.generate.cascade import Cascade, compose_stages, load_cascade, save_cascade, stage
from anyformer.generate.composing import compose
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.media.stages import SEGMENTS, Layout

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    models: dict[str, Any] = {
        name: redrawn(af.build("musiclm", "tiny", stage=name, vocab=300, context=200), seed=i).eval()
        for i, name in enumerate(SEGMENTS)
    }
    models["semantic"].tokenizer = Tokenizer.bytes_level()
    codec = redrawn(af.build("encodec", "tiny", bandwidths=(0.4,))).eval()  # five books, 20 frames a second
    return {**models, "codec": codec}


@pytest.mark.parametrize("name", SEGMENTS)
def test_the_ids_of_a_stage_are_a_bijection(name: str) -> None:
    layout = Layout(stage=name, text=30, semantic=7, codes=5, coarse=2, fine=3)
    noise, seen = torch.Generator().manual_seed(0), list[int](range(len(layout.segments)))
    for segment in layout.segments:
        books, each = layout.books(segment), layout.each(segment)
        codes = torch.randint(0, each, (2, 4, books), generator=noise)
        ids = layout.ids(segment, codes)
        assert torch.equal(layout.codes_of(segment, ids), codes)
        for place in range(ids.shape[1]):
            first, behind = layout.allowed(segment, place)
            assert bool(((ids[:, place] >= first) & (ids[:, place] < behind)).all())
        seen += range(layout.first(segment), layout.first(segment) + books * each)
    assert seen == list(range(layout.vocab))  # no id means two things
    with pytest.raises(ValueError, match="is outside 0 to"):
        layout.ids(layout.segments[-1], torch.full((1, 1, layout.books(layout.segments[-1])), 99))
    with pytest.raises(ValueError, match="in this order"):
        layout.row({"fine": torch.zeros(1, 1, 3, dtype=torch.long)} if name != "fine" else {"text": torch.zeros(1, 1)})


def test_lengths_follow_from_the_rates_and_codes_stay_in_their_books(parts: dict[str, Any]) -> None:
    for rate, seconds in ((10.0, 0.5), (4.0, 1.2), (7.0, 0.01)):
        whole = Cascade(**parts, semantic_rate=rate)
        first, frames = whole.frames(seconds)
        assert first == max(1, round(seconds * rate)) and frames == max(1, round(seconds * 20))
        made = compose_stages(whole, "a waltz", seconds=seconds, seed=1)
        assert made.rate == 120 and len(made.samples) == frames * 6
    codes = stage(parts["coarse"], {"text": torch.zeros(2, 3, dtype=torch.long),
                                    "semantic": torch.ones(2, 5, 1, dtype=torch.long)}, 7, seed=0)  # fmt: skip
    assert codes.shape == (2, 7, 2) and int(codes.min()) >= 0 and int(codes.max()) < 16


def test_a_stage_sees_what_the_one_before_made_and_nothing_else(parts: dict[str, Any], monkeypatch: Any) -> None:
    whole, seen = Cascade(**parts, semantic_rate=10.0), dict[str, Any]()
    plain = cascades.stage

    def noted(model: Any, given: dict[str, Any], frames: int, **options: Any) -> Any:
        seen[model.layout.stage] = ({n: v.clone() for n, v in given.items()}, plain(model, given, frames, **options))
        return seen[model.layout.stage][1]

    monkeypatch.setattr(cascades, "stage", noted)
    compose_stages(whole, "a waltz", seconds=0.4, seed=3)
    assert {name: set(given) for name, (given, _) in seen.items()} == {n: set(s[:-1]) for n, s in SEGMENTS.items()}
    assert torch.equal(seen["coarse"][0]["semantic"], seen["semantic"][1])
    assert torch.equal(seen["fine"][0]["coarse"], seen["coarse"][1])
    # what it sees decides what it writes: other semantic codes are other coarse codes, another text is another start
    given = seen["coarse"][0]
    other = {**given, "semantic": (given["semantic"] + 1) % 20}
    assert not torch.equal(plain(parts["coarse"], other, 8, temperature=0.0), seen["coarse"][1])
    texts = [compose_stages(whole, text, seconds=0.4, temperature=0.0).samples.tolist() for text in ("a", "b", "")]
    assert texts[0] != texts[1] != texts[2]


def test_rows_and_the_cache_change_nothing(parts: dict[str, Any]) -> None:
    model, layout = parts["fine"], parts["fine"].layout
    coarse = torch.randint(0, 16, (3, 4, 2), generator=torch.Generator().manual_seed(0))
    together = stage(model, {"coarse": coarse}, 4, temperature=0.0)
    for row in range(3):
        assert torch.equal(stage(model, {"coarse": coarse[row : row + 1]}, 4, temperature=0.0), together[row : row + 1])
    ids = torch.cat((layout.row({"coarse": coarse}), torch.full((3, 1), 1), layout.ids("fine", together)), 1)
    with torch.no_grad():
        scores = model(input_ids=ids).logits
    start = ids.shape[1] - 12
    for place in range(12):
        first, behind = layout.allowed("fine", place)
        best = scores[:, start - 1 + place, first:behind].argmax(-1) + first
        assert torch.equal(best, ids[:, start + place])


def test_a_cascade_in_a_directory_composes(parts: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    whole = Cascade(**parts, semantic_rate=10.0)
    save_cascade(whole, tmp_path / "all")
    again = load_cascade(tmp_path / "all")
    one, two = (compose(c, "drums", seconds=0.5, seed=2, top_k=None)[0].samples for c in (whole, again))
    assert (one == two).all()
    argv = ["compose", "drums", "--model", str(tmp_path / "all"), "--seconds", "0.5", "--out", str(tmp_path / "a.wav")]
    assert main(argv) == 0 and soundfile.info(tmp_path / "a.wav").frames == 60
    assert main([*argv, "--guidance", "3"]) == 2 and "has no guidance" in capsys.readouterr().err
    assert main([*argv, "--seconds", "60"]) == 2 and "the stage semantic needs" in capsys.readouterr().err
    (tmp_path / "all" / "semantic_rate.txt").write_text("fast")
    assert main(argv) == 2 and "semantic_rate.txt with the semantic codes a second" in capsys.readouterr().err


def test_stages_that_do_not_fit_are_refused_by_name(parts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="coarse must be a model of the page musiclm with stage=coarse"):
        Cascade(**{**parts, "coarse": parts["fine"]}, semantic_rate=10.0)
    with pytest.raises(ValueError, match="the stages differ in semantic"):
        Cascade(
            **{**parts, "coarse": af.build("musiclm", "tiny", stage="coarse", vocab=300, semantic=9)}, semantic_rate=1.0
        )
    with pytest.raises(ValueError, match="the stages say 5 books of 16 codes, and the codec has 3 of 16"):
        Cascade(**{**parts, "codec": af.build("encodec", "tiny")}, semantic_rate=10.0)
    with pytest.raises(ValueError, match="semantic_rate must be above 0"):
        Cascade(**parts, semantic_rate=0.0)
    with pytest.raises(ValueError, match="goes on from no prompt"):
        compose(Cascade(**parts, semantic_rate=10.0), "a", prompt="tune.wav")
