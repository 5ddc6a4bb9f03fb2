"""Spoken sentences, and the counting of wrong words."""

from __future__ import annotations

from pathlib import Path

import pytest

from anyformer.data import debian
from anyformer.data.speech import clips, lines, word_errors, words


def test_words_are_compared_without_letter_case_and_marks() -> None:
    assert words(" Mr. Dashwood's ill-disposed, young-man!") == [
        "mister",
        "dashwood's",
        "ill",
        "disposed",
        "young",
        "man",
    ]
    assert words(" … ") == []


@pytest.mark.parametrize(
    ("found", "expected", "errors"),
    [("a b c", "a b c", 0), ("", "a b", 2), ("a b", "", 2), ("a x c", "a b c", 1), ("a c", "a b c", 1),
     ("a b b c", "a b c", 1), ("b a", "a b", 2), ("x a b c y", "a b c", 2)],
)  # fmt: skip
def test_errors_are_the_fewest_changes(found: str, expected: str, errors: int) -> None:
    assert word_errors(found.split(), expected.split()) == errors


def test_the_clips_are_five_sentences() -> None:
    try:
        found = clips()
    except OSError as error:
        pytest.skip(f"pocketsphinx-testdata is not to be had here: {error}")
    assert len(found) == 5 and all(clip.path.stat().st_size > 50_000 for clip in found)
    assert found[1].text == "he was not an ill disposed young man"


def test_lines_of_the_game_have_the_text_of_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    game = tmp_path / "usr/share/games/fillets-ng"
    level, sounds = game / "script/share/jokes", game / "sound/share/jokes/nl"
    for folder in (level, sounds):
        folder.mkdir(parents=True)
    (level / "bore_dialogs_nl.lua").write_text(
        'dialogId("a-1", "font_big", "What (a) day")\ndialogStr("Wat een dag, één!")\n\n'
        'dialogId("silent", "font", "no sound")\ndialogStr("geen geluid")\n\n'
        'dialogId("hum", "", "")\ndialogStr("")\n'
    )
    (level / "bore_dialogs_cs.lua").write_text('dialogId("a-1", "font_big", "What")\ndialogStr("Co")\n')
    for name in ("a-1", "hum", "other"):
        (sounds / f"{name}.ogg").touch()
    monkeypatch.setattr(debian, "fetch", lambda *_: tmp_path)
    assert [(clip.path, clip.text) for clip in lines("nl")] == [(sounds / "a-1.ogg", "Wat een dag, één!")]
    with pytest.raises(ValueError, match="is spoken in cs, nl; got 'en'"):
        lines("en")
