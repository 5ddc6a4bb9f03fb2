"""Texts, chats and small vocabularies that several tests here use."""

import json
import re
import string
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from tokenizers import Tokenizer as Core
from tokenizers import models, normalizers, pre_tokenizers, trainers

from anyformer.data import sources
from anyformer.hub.formats.gguf import GGUF
from anyformer.hub.text.tokenizer import Tokenizer

ODD = [
    "",
    "a",
    " ",
    "  ",
    "   indented",
    "trailing   ",
    "\n\n\n",
    "\t\tx",
    "a\r\nb\r\n",
    "1234567890",
    "3.14159, 2² + 1/2",
    "don't we'll I'M THEY'RE",
    "def f(x):\n    return x * 2  # twice\n",
    "日本語テキスト と 中文",
    "Привет мир, γειά σου Κόσμε",
    "🤷🏽‍♂️ 👨‍👩‍👧‍👦 🇫🇷",
    "e\u0301 é ﬁ Å",
    "עברית العربية",
    "\u200b zero\u00a0width",
    "०१२३ 12",
    "\ufffd\ufffd",
    "http://a.b/c?d=e&f=%20",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<s>x</s> [CLS] y [SEP]",
    "x" * 300,
]
CHAT = [
    {"role": "user", "content": "Hello there"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "2+2?"},
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def texts() -> list[str]:
    """A few hundred: prose, code, tables, and random mixtures of scripts."""
    prose = sources.text("pydoc")
    pieces = [prose[i : i + 250] for i in range(0, 350_000, 4_000)]
    code = Path(json.__file__).with_name("decoder.py").read_text()
    pieces += [code[i : i + 200] for i in range(0, 8_000, 250)]
    rng = np.random.default_rng(0)
    ranges = [(32, 127), (32, 127), (10, 11), (32, 33), (160, 0x600), (0x3000, 0x9FFF), (0x1F300, 0x1FA00)]
    for _ in range(80):
        chosen = rng.integers(0, len(ranges), rng.integers(1, 50))
        pieces.append("".join(chr(rng.integers(*ranges[i])) for i in chosen))
    return ODD + pieces


TEXTS = texts()


def oracle(folder: Path, **options):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, **options)


def streamed(tokenizer: Tokenizer, ids: list[int], skip_special: bool = True) -> str:
    stream = tokenizer.stream(skip_special)
    parts = [stream.put(i) for i in ids]
    assert not any("\ufffd" in part[-1:] for part in parts)
    return "".join(parts) + stream.end()


def gguf_metadata(path: Path, tokens: list[str], types: list[int], keys: dict) -> dict:
    writer = GGUFWriter(path, "llama")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for name, value in keys.items():
        match value:
            case list():
                writer.add_array(f"tokenizer.ggml.{name}", value)
            case bool():
                writer.add_bool(f"tokenizer.ggml.{name}", value)
            case int():
                writer.add_uint32(f"tokenizer.ggml.{name}", value)
            case str():
                writer.add_string(f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GGUF(path).metadata


def byte_level(path: Path, pre: str, **keys) -> dict:
    """A GGUF with a small byte-level BPE vocabulary, trained on words cut by spaces alone."""
    core = Core(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "merged_with_next"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False))
    model = json.loads(core.to_str())["model"]
    tokens = [*model["vocab"], "<|begin|>", "<|end|>", "<think>"]
    types = [1] * len(model["vocab"]) + [3, 3, 4]
    merges = [" ".join(pair) for pair in model["merges"]]
    ids = {"bos_token_id": len(tokens) - 3, "eos_token_id": len(tokens) - 2}
    return gguf_metadata(path, tokens, types, {"model": "gpt2", "pre": pre, "merges": merges, **ids, **keys})


def sentencepiece(path: Path, **keys) -> tuple[dict, Core]:
    """A GGUF with a small SentencePiece-like vocabulary: scores instead of merges; and a tokenizer with these."""
    core = Core(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    letters = list("▁" + string.ascii_letters + string.digits + string.punctuation + "\n")
    core.train_from_iterator(
        [re.sub(r"[^ -~\n]", "", t) for t in TEXTS],
        trainers.BpeTrainer(vocab_size=700, initial_alphabet=letters, show_progress=False),
    )
    merges = [tuple(pair) for pair in json.loads(core.to_str())["model"]["merges"]]
    made = list(dict.fromkeys(a + b for a, b in merges))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *made]
    tokens += [c for c in letters if c not in tokens]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
    scores = [0.0] * 259 + [-float(i) for i in range(len(tokens) - 259)]
    ids = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    metadata = gguf_metadata(path, tokens, types, {"model": "llama", "scores": scores, **ids, **keys})
    return metadata, core
