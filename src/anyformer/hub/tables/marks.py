"""Config keys that change no number on any page, and second names of keys.

A page's table claims the keys that it reads; the others are looked up here. A key in neither is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_GENERATION = "for `generate`: its rules hold there without a generation_config.json, its habits are options"
_TEXT = "for the tokenizer and generation"
_POOLER = "BERT's first pooler of classes, which no published code builds"
_OTHERS = "inherited from another family; no layer of this page reads it"

ANY = {  # whatever their value
    "identifies the file": (
        "architectures", "model_type", "transformers_version", "_name_or_path", "name_or_path",
        "_model_name_or_path", "_commit_hash", "unsloth_version", "unsloth_fixed", "is_llama_config", "license",
        "_class_name", "_diffusers_version",
    ),
    "read from the tensors": ("dtype", "torch_dtype"),
    "requests outputs or memory, not other numbers": (
        "use_cache", "return_dict", "output_hidden_states", "output_attentions", "chunk_size_feed_forward",
        "output_past", "torchscript", "output_scores", "gradient_checkpointing", "use_return_dict",
    ),
    "how it is computed": (
        "attn_implementation", "_attn_implementation", "_attn_implementation_autoset", "_flash_attn_2_enabled",
        "use_flash_attn", "use_bfloat16", "tf_legacy_loss", "onnx_export", "compression",
    ),
    "first weights, before training": ("initializer_range", "initializer_factor", "init_std", "total_flos"),
    _TEXT: (
        "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "unk_token_id", "mask_token_id",
        "pad_token_id", "eos_token_ids", "tokenizer_class", "prefix", "max_sequence_length",
    ),
    "this model has no classes": ("id2label", "label2id", "num_labels", "_num_labels"),
    "implied by the class": ("is_decoder",),
    "defaults of pipelines around the model": ("problem_type", "finetuning_task", "task_specific_params"),
    _GENERATION: (
        "do_sample", "temperature", "top_k", "top_p", "typical_p", "num_beams", "num_beam_groups",
        "diversity_penalty", "length_penalty", "early_stopping", "max_length", "min_length",
        "num_return_sequences", "repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
        "bad_words_ids", "forced_bos_token_id", "force_bos_token_to_be_generated", "forced_eos_token_id",
        "suppress_tokens", "begin_suppress_tokens", "exponential_decay_length_penalty", "remove_invalid_values",
        "return_dict_in_generate",
    ),
    _POOLER: (
        "directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers",
        "pooler_size_per_head", "pooler_type",
    ),
    _OTHERS: ("type_vocab_size", "hidden_dropout_prob", "attention_probs_dropout_prob"),
}  # fmt: skip
ONE_VALUE = {  # key: the only value with which it changes nothing
    "rope_interleaved": False, "do_blenderbot_90_layernorm": False, "add_cross_attention": False,
    "tie_encoder_decoder": False, "is_encoder_decoder": False, "is_causal": True,
}  # fmt: skip
EMPTY = ("pruned_heads",)  # accepted with an empty value
REFUSED = {
    "auto_map": "the model is code of its repository, which is not run here; if these are a known architecture's "
    "weights and words all the same, ignore=('auto_map',) reads them so",
    "quantization_config": "the weights are quantised; load reads plain weights, GGUF and GPTQ's layout",
}
SECOND = (  # names of one thing
    ("hidden_size", "d_model", "n_embd", "dim"),
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers"),
    ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"),
    ("intermediate_size", "d_inner", "n_inner", "d_ff", "ffn_dim", "encoder_ffn_dim"),
    ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"),
    ("layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps", "norm_eps", "norm_epsilon"),
    ("vocab_size", "n_vocab", "padded_vocab_size"),
    ("hidden_act", "hidden_activation", "activation_function"),
)
_WHY = {name: why for why, names in ANY.items() for name in names}


def explain(name: str, config: Mapping[str, Any]) -> str | None:
    """The reason why a key that the page does not claim changes nothing; None for an unknown key.

    Raises:
        ValueError: naming the key, if its value changes numbers, contradicts its other name, or marks a kind of file
            that is not supported.
    """
    value = config[name]
    if name in _WHY:
        return _WHY[name]
    if value is None:
        return "null has no effect"
    if name in REFUSED:
        raise ValueError(f"config key {name!r}: {REFUSED[name]}")
    if name in EMPTY or name in ONE_VALUE:
        if value == ONE_VALUE.get(name, value) and (name in ONE_VALUE or not value):
            return "changes nothing with this value"
        usual = repr(ONE_VALUE[name]) if name in ONE_VALUE else "nothing in it"
        raise ValueError(f"config key {name!r} is {value!r}; this page supports only {usual}")
    for names in SECOND:
        first = [n for n in names if n != name and config.get(n) is not None] if name in names else []
        if first and config[first[0]] != value:
            raise ValueError(
                f"config keys {first[0]!r} and {name!r} are names of one value, and hold {config[first[0]]!r} and "
                f"{value!r}"
            )
        if first:
            return f"repeats {first[0]!r}"
    return None
