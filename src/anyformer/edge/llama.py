"""One pass of llama.cpp over some tokens, by its own interface: needs llama-cpp-python and numpy only.

A fresh process that measures a file runs the text of this module, so it imports nothing of this package.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import llama_cpp
import numpy as np

FLOAT32, FLOAT16, ERROR = 0, 1, 4  # types of its cache; the level of its messages that is heard

heard = llama_cpp.llama_log_callback(lambda level, text, _: level == ERROR and print(text.decode(), end=""))
llama_cpp.llama_log_set(heard, None)


class Session:
    """A loaded file.

    Args:
        tokens: of the longest pass. exact: the cache is float32, and attention goes step by step; else as llama.cpp
            is used: a cache of float16, and flash attention.

    Raises:
        ValueError: for a file that llama.cpp does not open.
    """

    def __init__(self, path: Any, tokens: int, threads: int = 1, exact: bool = False):
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise ValueError(f"llama.cpp does not open {path}")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = tokens
        options.n_threads = options.n_threads_batch = threads
        options.type_k = options.type_v = FLOAT32 if exact else FLOAT16
        options.flash_attn_type = int(not exact)
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        if not self.context:
            llama_cpp.llama_model_free(self.model)
            raise ValueError(f"llama.cpp makes no context of {tokens} tokens for {path}")
        self.tokens = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(tokens, 0, 1)
        weakref.finalize(self, _free, self.model, self.context, self.batch)

    def over(self, ids: Sequence[int]) -> Callable[[], np.ndarray]:
        """The pass over these tokens with nothing before them, as a function -> logits of each (T, tokens), which are
        overwritten by the next."""
        batch, memory = self.batch, llama_cpp.llama_get_memory(self.context)
        batch.n_tokens = len(ids)
        for i, one in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(one), i, 1, True
            batch.seq_id[i][0] = 0

        def run() -> np.ndarray:
            llama_cpp.llama_memory_clear(memory, False)
            if failed := llama_cpp.llama_decode(self.context, batch):
                raise ValueError(f"llama.cpp fails with code {failed}")
            return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.context), (len(ids), self.tokens))

        return run


def _free(model: Any, context: Any, batch: Any) -> None:
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
