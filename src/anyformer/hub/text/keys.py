"""The keys of tokenizer_config.json and special_tokens_map.json, and the tokens and rules that only these hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from tokenizers import AddedToken, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Core

from anyformer.hub.formats.guard import refuse
from anyformer.hub.ledger import Keys
from anyformer.hub.tables.config import Line

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MORE = ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens")
GENERAL = (None, "PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend")  # classes of any model
SWITCHES = (
    "split_special_tokens", "do_lower_case", "strip_accents",
    "tokenize_chinese_chars", "add_prefix_space", "clean_up_tokenization_spaces",
)  # fmt: skip
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_ADDED = "special tokens, added where tokenizer.json lacks them"
_CALLER = "`batch`, `embed` and `generate` pad and cut as their callers say; text is never cut silently"
_RULES = "tokenizer.json holds the vocabulary and the rules themselves"
CONFIG_KEYS = Keys(
    used={
        **dict.fromkeys(ROLES, "the token of that role"),
        **dict.fromkeys(MORE, _ADDED),
        "added_tokens_decoder": "tokens, added where tokenizer.json lacks them",
        "chat_template": "how `chat` writes a conversation",
        "model_max_length": "the longest text that `embed` does not cut",
        "split_special_tokens": "true: special tokens in a text are read as text",
        "do_lower_case": "for BERT's rules, of its class: texts are lowercased",
        "strip_accents": "for BERT's rules: accents are left out",
        "tokenize_chinese_chars": "for BERT's rules: Chinese characters stand alone",
        "clean_up_tokenization_spaces": "`decode` leaves out spaces before marks, but with BPE",
        "word_delimiter_token": "the token of a space, of spoken letters",
        "replace_word_delimiter_char": "what that token is in a text",
        "add_prefix_space": "for byte-level rules, of a class of one model: a space before the text",
    },
    ignored={
        "identifies the file": (
            "tokenizer_class", "name_or_path", "special_tokens_map_file", "tokenizer_file", "processor_class",
            "backend", "is_local", "local_files_only", "use_fast", "verbose", "transformers_version", "vocab_size",
            "_commit_hash", "device_map", "trust_remote_code", "tokenizer_type", "init_inputs", "from_slow",
            "vocab_file", "merges_file", "clean_text",
        ),
        _CALLER: (
            "padding_side", "truncation_side", "max_length", "truncation", "truncate", "truncation_strategy", "stride",
            "pad_to_multiple_of", "pad_token_type_id", "padding", "model_input_names", "return_attention_mask",
            "return_token_type_ids",
        ),
        _RULES: (
            "add_bos_token", "add_eos_token", "errors", "legacy",
            "legacy_behaviour", "sp_model_kwargs", "extra_ids", "trim_offsets", "vocab_type",
            "split_by_punct", "do_basic_tokenize", "never_split", "separate_vocabs", "keep_accents", "remove_space",
            "do_split", "unk_id", "byte_fallback", "mask_ids", "wordpieces_prefix", "suffix", "normalize",
            "src_lang", "tgt_lang", "source_lang", "target_lang", "language", "task", "predict_timestamps",
        ),
        "for tokenizers without a tokenizer.json, which are not read": ("spaces_between_special_tokens",),
        "the caller passes a system prompt as a message": ("use_default_system_prompt",),
        "for the processor of its sounds": ("do_normalize", "do_phonemize", "phonemizer_lang", "phonemizer_backend"),
        "how an answer is parsed; the caller decides": ("response_schema", "response_template"),
    },
    refused={"auto_map": "the tokenizer is code of its repository, which is not run here"},
)  # fmt: skip
SPECIAL_KEYS = Keys(used={**dict.fromkeys(ROLES, "the token of that role"), **dict.fromkeys(MORE, _ADDED)})


def account(where: object, keys: Keys, content: Mapping[str, Any], ignore: Collection[str]) -> list[Line]:
    """The lines of one of the two files. Keys such as `image_token` name more special tokens.

    Raises:
        ValueError: naming file and key, if one is unknown.
    """
    known = {*keys.used, *(key for more in keys.ignored.values() for key in more)}
    named = [key for key in content if key.endswith("_token") and key not in {*known, *ignore}]
    lines = keys.account(where, {k: v for k, v in content.items() if k not in named}, ignore)
    for key in SWITCHES:
        if key not in ignore and not isinstance(content.get(key), bool | None):
            raise refuse(where, key, "true, false or null", content[key])
    return lines + [Line(key, content[key], "used", "a special token") for key in named]


def add_tokens(core: Core, where: object, files: list[Mapping[str, Any]], older: Mapping[str, Any]) -> None:
    """Adds the tokens that are beside tokenizer.json and not in it.

    Args:
        files: the two files, without the keys that the caller passes over. older: the content of added_tokens.json.

    Raises:
        FileRefused: naming the token, if it would get another id than the file's.
    """
    declared = [(_id(where, i), _token(where, i, t)) for f in files for i, t in _decoder(where, f).items()]
    known = {token.content for _, token in declared}
    declared += [(_id(where, i), AddedToken(t, normalized=False)) for t, i in older.items() if t not in known]
    for place, token in sorted(declared, key=lambda pair: pair[0]):
        held = core.get_added_tokens_decoder().get(place)
        if core.token_to_id(token.content) != place or held is None or held.special != token.special:
            (core.add_special_tokens if token.special else core.add_tokens)([token])
        if (got := core.token_to_id(token.content)) != place:
            raise refuse(where, f"token {token.content!r}", f"the id {place} of added_tokens_decoder", got)
    special = {token.content for token in core.get_added_tokens_decoder().values() if token.special}
    for file in files:
        more = [t for key in MORE for t in _listed(where, key, file.get(key))]
        more += [
            (k, v)
            for k, v in file.items()
            if k.endswith("_token") and k not in (*ROLES, "add_bos_token", "add_eos_token") and v is not None
        ]
        for key, value in more:
            token = _token(where, key, value if isinstance(value, dict) else {"content": value}, special=True)
            if token.content not in special:
                core.add_special_tokens([token])


def follow(core: Core, config: Mapping[str, Any]) -> None:
    """Overrides the rules of tokenizer.json with those of the config.

    As in `transformers`, for the classes of one model; for the general class, tokenizer.json alone counts.
    """
    core.encode_special_tokens = bool(config.get("split_special_tokens"))
    if config.get("tokenizer_class") in GENERAL:
        return
    if isinstance(core.normalizer, normalizers.BertNormalizer):
        rules = core.normalizer
        for key, name in (("do_lower_case", "lowercase"), ("tokenize_chinese_chars", "handle_chinese_chars")):
            if isinstance(config.get(key), bool):
                setattr(rules, name, config[key])
        if "strip_accents" in config:
            rules.strip_accents = config["strip_accents"]
        core.normalizer = rules
    if isinstance(core.pre_tokenizer, pre_tokenizers.ByteLevel) and isinstance(config.get("add_prefix_space"), bool):
        cut = core.pre_tokenizer
        cut.add_prefix_space = config["add_prefix_space"]
        core.pre_tokenizer = cut


def _decoder(where: object, file: Mapping[str, Any]) -> Mapping[str, Any]:
    tokens = file.get("added_tokens_decoder") or {}
    if not isinstance(tokens, dict):
        raise refuse(where, "added_tokens_decoder", "an object of id: token", tokens)
    return tokens


def _id(where: object, value: Any) -> int:
    if isinstance(value, bool) or not str(value).isdecimal() or len(str(value)) > 9:
        raise refuse(where, "added token", "an id, a whole number", value)
    return int(value)


def _token(where: object, key: str, value: Any, special: bool = False) -> AddedToken:
    text = value.get("content") if isinstance(value, dict) else None
    if not isinstance(text, str) or not text:
        raise refuse(where, key, "a token, or an object with its content", value)
    flags = {name: bool(value[name]) for name in FLAGS if isinstance(value.get(name), bool)}
    return AddedToken(
        text, **{"normalized": False, "special": special, **flags, **({"special": True} if special else {})}
    )


def _listed(where: object, key: str, value: Any) -> list[tuple[str, Any]]:
    """The tokens of a list, or of an object of name: token."""
    if value is None:
        return []
    if not isinstance(value, list | dict):
        raise refuse(where, key, "a list of tokens", value)
    return [(key, token) for token in (value.values() if isinstance(value, dict) else value)]
