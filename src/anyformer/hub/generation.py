"""The keys of generation_config.json, and their use here.

Rules hold for every text that `generate` makes, greedy, drawn or searched. Habits (temperature, beams …) are options of
`generate`, which the caller chooses. Any other key is refused by `generate`, not by `load`: the model is complete.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from anyformer.hub.ledger import Keys, passing
from anyformer.hub.tables.config import Line

RULES = {
    "eos_token_id": "a token that ends a text",
    "decoder_start_token_id": "the token in front of a target",
    "bad_words_ids": "rows of tokens that are never written",
    "suppress_tokens": "tokens that are never written",
    "begin_suppress_tokens": "tokens that never come first",
    "forced_bos_token_id": "the first token of a target",
    "forced_eos_token_id": "the last token, where max_new_tokens is reached",
    "no_repeat_ngram_size": "n-grams of this length are not repeated",
    "min_length": "the least number of tokens in a text, with its prompt",
    "min_new_tokens": "the least number of new tokens",
}
_OPTIONS = (
    "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h",
    "num_beams", "length_penalty", "early_stopping", "num_return_sequences", "max_length", "max_new_tokens",
    "repetition_penalty", "max_time",
)  # fmt: skip
_MARKS = (
    "transformers_version", "_from_model_config", "bos_token_id", "pad_token_id", "use_cache", "output_attentions",
    "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate", "_commit_hash",
    "force_bos_token_to_be_generated", "trust_remote_code", "generation_kwargs", "prefix",
)  # fmt: skip
_SPEED = (
    "cache_implementation", "cache_config", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "assistant_confidence_threshold", "prompt_lookup_num_tokens", "max_matching_ngram_size", "low_memory",
    "assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "compile_config", "disable_compile",
    "prefill_chunk_size", "return_legacy_cache", "continuous_batching_config", "max_cache_len",
    "speculation_type", "use_mtp", "remove_invalid_values", "use_model_defaults", "chat_format",
)  # fmt: skip
_SPEECH = (
    "alignment_heads", "is_multilingual", "lang_to_id", "task_to_id", "language", "task", "no_timestamps_token_id",
    "return_timestamps", "max_initial_timestamp_index", "prev_sot_token_id", "median_filter_width",
)  # fmt: skip
OPENING, SPOKEN = "forced_decoder_ids", "no_timestamps_token_id"  # the second: a file of a speech model
OFF: dict[str, Collection[Any]] = {  # keys that `generate` does not support: the values that switch them off
    "encoder_no_repeat_ngram_size": (0,), "encoder_repetition_penalty": (1.0,), "sequence_bias": ({}, []),
    "exponential_decay_length_penalty": (), "forced_decoder_ids": ([],), "num_beam_groups": (1,),
    "diversity_penalty": (0.0,), "penalty_alpha": (0.0,), "guidance_scale": (1.0,), "dola_layers": (),
    "constraints": (), "force_words_ids": (), "watermarking_config": (), "stop_strings": ([],), "stop_words_ids": ([],),
    "assistant_ensemble_weight": (), "renormalize_logits": (False,), "token_healing": (False,),
}  # fmt: skip
KEYS = Keys(
    used=RULES,
    ignored={
        "a habit: an option of `generate`, which the caller chooses": _OPTIONS,
        "identifies the file, requests outputs, or is for the tokenizer": _MARKS,
        "changes how it is computed, not the result": _SPEED,
        "for `transcribe`, which reads or derives it": _SPEECH,
    },
)


def account(where: object, settings: Mapping[str, Any], ignore: Collection[str] = ()) -> list[Line]:
    """The lines of a generation config; "refused" marks keys with which `generate` will not run.

    Raises:
        ValueError: naming the key, if it is unknown or a rule has a value that makes no sense.
    """
    beyond = {key: value for key, value in settings.items() if key in unmet(settings) and key not in ignore}
    off = {key: value for key, value in settings.items() if key in OFF and key not in beyond and key not in ignore}
    lines = KEYS.account(where, {k: v for k, v in settings.items() if k not in {**beyond, **off}}, ignore)
    why = {OPENING: "names language and task, which are options of `transcribe`"} if SPOKEN in settings else {}
    lines += [Line(key, value, "ignored", why.get(key, "asks for nothing")) for key, value in off.items()]
    lines += [Line(key, value, "refused", f"`generate` cannot do it. {passing(key)}") for key, value in beyond.items()]
    for key in RULES:
        if key in settings and key not in ignore:
            check_rule(where, key, settings[key])
    return lines


def unmet(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that ask for something that `generate` does not support."""
    asked = {k: settings[k] for k, off in OFF.items() if settings.get(k) is not None and settings[k] not in off}
    return {k: value for k, value in asked.items() if not (k == OPENING and SPOKEN in settings)}


def check_rule(where: object, key: str, value: Any) -> None:
    """Raises ValueError, naming the key, if the value of a rule makes no sense."""

    def token(x: Any) -> bool:
        return isinstance(x, int) and not isinstance(x, bool) and x >= 0

    def tokens(x: Any) -> bool:
        return isinstance(x, list) and all(map(token, x))

    if key in ("eos_token_id", "forced_eos_token_id"):
        good, what = token(value) or tokens(value), "a token id or a list of them"
    elif key in ("suppress_tokens", "begin_suppress_tokens"):
        good, what = tokens(value), "a list of token ids"
    elif key == "bad_words_ids":
        good, what = isinstance(value, list) and all(tokens(row) and row for row in value), "rows of token ids"
    else:
        good, what = token(value), "a whole number"
    if value is not None and not good:
        raise ValueError(f"{where}: key {key!r} is {value!r:.80}; it must be {what}, or null")
