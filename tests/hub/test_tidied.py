"""clean_up_tokenization_spaces: `decode` leaves out spaces before marks as transformers does; so does a stream."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from anyformer.hub.text.tokenizer import Tokenizer
from tests.hub.texts import streamed

WORDS = [
    "[UNK]",
    "don",
    "n",
    "'",
    "t",
    "do",
    "n't",
    "it",
    "'s",
    "s",
    "'m",
    "'ve",
    "'re",
    "v",
    ".",
    ",",
    "?",
    "!",
    "...",
    "next",
]
TEXTS = (
    "don ' t", "do n't", "do n ' t", "it 's it ' s", "n next n", "' '", "it . it , it ? it !", "it ... it", "' it '",
    "do n", "'ve 're 'm", "it '", "n ' n't", "' 's . t", ". . .", "do ' ' t",
)  # fmt: skip


def written(folder: Path, kind: str, said: Mapping[str, object]) -> Path:
    """A tokenizer of words."""
    model = {
        "WordLevel": lambda: models.WordLevel({w: i for i, w in enumerate(WORDS)}, "[UNK]"),
        "WordPiece": lambda: models.WordPiece(vocab={w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"),
        "BPE": lambda: models.BPE({w: i for i, w in enumerate(WORDS)}, [], unk_token="[UNK]"),
    }[kind]()
    core = Core(model)
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if kind == "WordPiece":
        core.decoder = decoders.WordPiece(cleanup=False)
    folder.mkdir()
    core.save(str(folder / "tokenizer.json"))
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", **said}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    return folder


@pytest.mark.parametrize("asked", [True, False, None], ids=str)
@pytest.mark.parametrize("kind", ["WordLevel", "WordPiece", "BPE"])
def test_texts_are_decoded_as_transformers_does(tmp_path: Path, kind: str, asked: bool | None) -> None:
    said = {} if asked is None else {"clean_up_tokenization_spaces": asked}
    folder = written(tmp_path / "tokenizer", kind, said)
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for text in TEXTS:
        ids = [WORDS.index(word) if word in WORDS else 0 for word in text.split()]
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids)
        assert streamed(ours, ids, skip_special=False) == ours.decode(ids, skip_special=False), text
        found.append(ours.decode(ids, skip_special=False) != text)
    assert any(found) is (asked is True and kind != "BPE")
    assert ours.tidies is (asked is True and kind != "BPE")
    assert [line.status for line in ours.ledger["tokenizer_config.json"] if line.key.startswith("clean")] == (
        [] if asked is None else ["used"]
    )
    ours.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").tidies is ours.tidies


@pytest.mark.parametrize("value", ["yes", 1, []])
def test_a_value_that_is_no_switch_is_refused(tmp_path: Path, value: object) -> None:
    folder = written(tmp_path / "tokenizer", "WordPiece", {"clean_up_tokenization_spaces": value})
    with pytest.raises(ValueError, match=r"clean_up_tokenization_spaces: expected true, false or null"):
        Tokenizer.load(folder)
