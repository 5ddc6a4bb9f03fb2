"""Descriptions of packages in two languages: their form, what is paired, what is held out, what apt says."""

import pytest

from examples.translation_texts import descriptions as module
from examples.translation_texts.descriptions import descriptions, paragraphs

TEXT = "a title\n first line\n  - an item\n .\n second  paragraph,\n of two lines"


def stanza(name, language, text):
    return f"Package: {name}\nDescription-md5: {name.encode().hex()}\nDescription-{language}: {text}"


def lists(folder, pairs):
    """Lists in the form of Debian's, in the cache's place; a package for each pair."""
    home = folder / "debian-descriptions"
    home.mkdir(exist_ok=True)
    for place, language in enumerate(("en", "de")):
        text = "\n\n".join(stanza(name, language, pair[place]) for name, pair in pairs.items())
        (home / f"de.{language}").write_text(text + "\n\n", encoding="utf-8")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path))
    return tmp_path


def test_paragraphs_are_parted_by_a_full_stop_and_lists_left_empty():
    assert paragraphs(TEXT) == ["a title", "", "second paragraph, of two lines"]
    assert paragraphs("only a title") == ["only a title", ""]


def test_pairs_are_titles_and_paragraphs_of_the_same_description(home):
    lists(home, {"one": (TEXT, TEXT.replace("title", "Titel").replace("second", "zweiter")),
                 "two": ("same\n text", "same\n Text"),
                 "three": ("a\n b\n .\n c", "a\n b c")})  # fmt: skip
    learn, held = descriptions(share=0.0)
    assert learn == [("a title", "a Titel"), ("second paragraph, of two lines", "zweiter paragraph, of two lines"),
                     ("text", "Text")]  # fmt: skip
    assert held == []


def test_variants_of_a_package_are_on_one_side_and_nothing_is_on_both(home):
    names = [f"p{i}{kind}" for i in range(60) for kind in ("", "-doc", "-dev")]
    lists(home, {name: (f"{name} title\n Common text.", f"{name} Titel\n Gemeinsamer Text.") for name in names})
    learn, held = descriptions(share=0.3)
    sides = [{source.split()[0].split("-")[0] for source, _ in side} - {"Common"} for side in (learn, held)]
    assert sides[0] | sides[1] == {f"p{i}" for i in range(60)} and not sides[0] & sides[1]
    assert 8 <= len(sides[1]) <= 28
    assert not {s for s, _ in learn} & {s for s, _ in held} and ("Common text.", "Gemeinsamer Text.") in learn


def test_without_apt_and_where_it_fails_it_says_what_to_do(home, monkeypatch):
    with pytest.raises(ValueError, match=r"a language is named as Debian does.*'../de'"):
        descriptions("../de")
    programs = home / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(OSError, match=r"no apt-get here. What to do: copy.*Translation-fr"):
        descriptions("fr")
    (programs / "apt-get").write_text("#!/bin/sh\necho 'E: no network' >&2; exit 100\n")
    (programs / "apt-get").chmod(0o755)
    with pytest.raises(OSError, match=r"could not fetch the descriptions in 'en': E: no network"):
        descriptions("fr")
    assert sorted(p.name for p in (home / "debian-descriptions").iterdir()) == [".lock"]


def test_what_apt_fetched_is_moved_into_the_cache(home, monkeypatch):
    programs = home / "programs"
    programs.mkdir()
    lists(home, {"one": ("title\n text", "Titel\n Text")})
    made = home / "debian-descriptions"
    script = '#!/bin/sh\nfor o in "$@"; do case $o in -oDir::State::Lists=*) d=${o#*=};; esac; done\n'
    for language in ("en", "de"):
        script += f"/bin/cp {made}/old.{language} $d/mirror_Translation-{language}\n"
        (made / f"de.{language}").rename(made / f"old.{language}")
    (programs / "apt-get").write_text(script)
    (programs / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    learn, held = module.descriptions()
    assert learn + held == [("title", "Titel"), ("text", "Text")]
