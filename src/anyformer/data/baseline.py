"""The baseline of a language model: the bigram, a table of successive bytes."""

import numpy as np

PRIOR = 20.0  # a row of the table counts as much as this many bytes drawn from the overall frequencies
TOGETHER = 1 << 20  # bytes counted at once


class Bigram:
    """p(b | a) = (n(a, b) + k p(b)) / (n(a) + k), with p(b) = (n(b) + 1) / (n + 256) and k = `PRIOR`.

    The smoothing is a good one on purpose: the usual add-one is easier to beat. Text comes in pieces, first those to
    count, then those to predict.

    Attributes:
        counted, predicted: bytes so far. `bits`: of the predicted ones.
    """

    def __init__(self) -> None:
        self.pairs, self.single = np.zeros(1 << 16, np.int64), np.zeros(256, np.int64)
        self.counted = self.predicted = 0
        self.bits = 0.0
        self.last = np.zeros(0, np.uint8)
        self.table: np.ndarray | None = None

    def count(self, text: bytes) -> None:
        """Counts the pairs of a piece."""
        assert self.table is None, "predicting has begun"
        for start in range(0, len(text), TOGETHER):
            new = np.frombuffer(text[start : start + TOGETHER], np.uint8)
            known = np.concatenate((self.last, new))
            self.pairs += np.bincount(known[:-1] * np.uint32(256) + known[1:], minlength=1 << 16)
            self.single += np.bincount(new, minlength=256)
            self.last = known[-1:]
        self.counted += len(text)

    def predict(self, text: bytes) -> None:
        """Adds the bits of a piece. Its first byte is predicted from the last one before it."""
        if self.table is None:
            pairs = self.pairs.reshape(256, 256)  # n(a, b)
            single = (self.single + 1) / (self.counted + 256)  # p(b)
            self.table = np.log2((pairs + PRIOR * single) / (pairs.sum(1, keepdims=True) + PRIOR))  # (256, 256)
        known = np.concatenate((self.last, np.frombuffer(text, np.uint8)))
        self.bits -= float(self.table[known[:-1], known[1:]].sum())
        self.predicted += len(text)
        self.last = known[-1:]


def bigram_bits_per_byte(train: str, held_out: str) -> float:
    """Bits per UTF-8 byte of `held_out` under a bigram of `train`; see `Bigram`.

    Raises:
        ValueError: if either text is empty.
    """
    if not train or not held_out:
        raise ValueError("a bigram needs text to count in and text to predict; one of the two is empty")
    bigram = Bigram()
    bigram.count(train.encode())
    bigram.predict(held_out.encode())
    return bigram.bits / bigram.predicted
