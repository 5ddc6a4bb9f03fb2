"""Tokenizers of proteins: `vocab.txt` of `EsmTokenizer`, which has no tokenizer.json."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tokenizers import AddedToken, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Core

from anyformer.hub.formats.guard import FileRefused, inside, read_bytes

VOCABULARY = "vocab.txt"
MOST = 1 << 20  # bytes of a vocabulary; ESM-2's has 93


def reads(folder: str | os.PathLike[str]) -> bool:
    """True for a folder whose tokenizer is `vocab.txt` of ESM-2."""
    config = Path(folder) / "tokenizer_config.json"
    try:
        kind = json.loads(config.read_bytes()).get("tokenizer_class")
    except (OSError, ValueError, AttributeError):
        return False
    return kind == "EsmTokenizer" and os.path.lexists(Path(folder) / VOCABULARY)


def core(folder: str | os.PathLike[str]) -> Core:
    """A token for each line of the file: residues and `<…>`; other runs of characters are `<unk>`, spaces nothing.

    A text becomes `<cls>` residues `<eos>`.

    Raises:
        FileRefused: if a needed token is missing, or one stands there twice.
    """
    path = inside(folder, VOCABULARY)
    tokens = read_bytes(path, MOST).decode("utf-8", "replace").split()
    if len(set(tokens)) < len(tokens):
        twice = sorted({token for token in tokens if tokens.count(token) > 1})
        raise FileRefused(f"{path}: a vocabulary has each token once; {', '.join(twice)} stands there twice")
    if missing := [token for token in ("<cls>", "<eos>", "<unk>") if token not in tokens]:
        raise FileRefused(f"{path}: the vocabulary of a protein model has {', '.join(missing)}, too")
    made = Core(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_tokens([AddedToken(t, normalized=False, special=t.startswith("<")) for t in tokens])
    around = [(token, tokens.index(token)) for token in ("<cls>", "<eos>")]
    made.post_processor = processors.TemplateProcessing(single="<cls> $A <eos>", special_tokens=around)
    return made
