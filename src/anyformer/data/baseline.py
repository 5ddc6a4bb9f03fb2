"""What a model must beat: the bigram, a table of which byte follows which."""

import numpy as np

PRIOR = 20.0  # a row of the table counts as much as this many bytes drawn from the overall frequencies


def bigram_bits_per_byte(train: str, held_out: str) -> float:
    """Bits per UTF-8 byte of `held_out` under p(b | a) = (n(a, b) + k p(b)) / (n(a) + k), counted in `train`.

    p(b) = (n(b) + 1) / (n + 256); k = `PRIOR`. The smoothing is a good one on purpose: the usual add-one is easier to
    beat. The first byte of `held_out` is predicted from the last one of `train`.

    Raises:
        ValueError: if either text is empty.
    """
    if not train or not held_out:
        raise ValueError("a bigram needs text to count in and text to predict; one of the two is empty")
    known = np.frombuffer(train.encode(), np.uint8).astype(np.int64)
    pairs = np.bincount(known[:-1] * 256 + known[1:], minlength=1 << 16).reshape(256, 256)  # n(a, b)
    single = (np.bincount(known, minlength=256) + 1) / (len(known) + 256)  # p(b)
    table = (pairs + PRIOR * single) / (pairs.sum(1, keepdims=True) + PRIOR)  # (256, 256) p(b | a)
    text = np.concatenate((known[-1:], np.frombuffer(held_out.encode(), np.uint8)))
    return float(-np.log2(table[text[:-1], text[1:]]).mean())
