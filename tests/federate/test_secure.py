"""Secure sums: shares, words that cannot overflow, masks, drop-outs at each stage, and what stays hidden."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.federate import masks, shamir
from anyformer.federate.grid import Grid, Saturated

TAG = b"run 1"


def test_any_shares_at_the_threshold_restore_the_secret_and_fewer_say_nothing() -> None:
    secret = bytes(range(32))
    shares = shamir.split(secret, 3, range(1, 6))
    for some in ((1, 2, 3), (5, 1, 4), (2, 3, 4)):
        assert shamir.join({x: shares[x] for x in some}) == secret
    assert shamir.join(shares) == secret
    # two shares fit every secret: for any value at 0 there is a polynomial of degree 2 through both
    other = {0: int.from_bytes(bytes(32)), 1: shares[1], 2: shares[2]}
    third = _through(other, 3)
    assert shamir.join({1: shares[1], 2: shares[2], 3: third}) == bytes(32)
    with pytest.raises(ValueError, match="do not belong together"):
        shamir.join({1: shares[1], 2: shares[2]})


def _through(points: dict[int, int], x: int) -> int:
    total = 0
    for a, value in points.items():
        factor = value
        for b in points:
            if b != a:
                factor = factor * (x - b) * pow(a - b, -1, shamir.PRIME) % shamir.PRIME
        total += factor
    return total % shamir.PRIME


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 52), st.integers(1, 5000), st.floats(1e-6, 1e6), st.integers(0, 2**32))
def test_no_sum_of_so_many_clients_overflows(bits: int, clients: int, limit: float, seed: int) -> None:
    width = bits + (clients - 1).bit_length()
    if width > 64:
        with pytest.raises(ValueError, match=r"needs \d+ bits"):
            Grid(bits, limit, clients)
        return
    grid = Grid(bits, limit, clients)
    largest = 2 ** (bits - 1) - 1
    for sign in (1, -1):  # all at one end: exact integers say what must come out
        word = grid.words(np.array([sign * limit]))[0]
        total = int(word[0]) * clients % 2 ** (8 * grid.dtype.itemsize)
        summed = grid.values(np.array([total], grid.dtype))[0]
        assert summed == pytest.approx(sign * clients * largest * grid.step, rel=1e-12)
    values = np.random.default_rng(seed).uniform(-limit, limit, (min(clients, 20), 5))
    total_words = np.zeros(5, grid.dtype)
    for row in values:
        total_words += grid.words(row)[0]
    assert np.abs(grid.values(total_words) - values.sum(0)).max() <= len(values) * grid.step * (0.5 + 1e-6)


def test_values_outside_of_the_grid_are_an_error_above_a_thousandth() -> None:
    grid, values = Grid(16, 1.0, 4), np.zeros(10_000)
    values[:10] = 3.0
    words, share = grid.words(values)
    assert share == 1e-3 and grid.values(words)[0] == pytest.approx(1.0)
    values[10] = -2.0
    with pytest.raises(Saturated, match=r"0\.11% of the values lie outside of ±1, the largest 3: .* larger --limit"):
        grid.words(values)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="not finite"):
            grid.words(np.array([bad]))


class Session:
    """A sum of n clients, stage by stage; `gone` by stage."""

    def __init__(self, n: int, threshold: int, size: int = 50, **gone: set[int]):
        pytest.importorskip("cryptography", reason="secure sums need cryptography")
        self.threshold, rng = threshold, np.random.default_rng(n)
        self.x = {i: rng.integers(0, 2**32, size, dtype=np.uint32) for i in range(1, n + 1)}
        parties = {i: masks.Party(i, TAG) for i in self.x if i not in gone.get("keys", set())}
        self.parties, self.publics = parties, {i: p.public() for i, p in parties.items()}
        sharing = {i for i in parties if i not in gone.get("shares", set())}
        sealed = {i: parties[i].shares(self.publics, threshold) for i in sharing}
        sending = {i for i in sharing if i not in gone.get("train", set())}
        self.sealed = sealed
        self.masked = {i: parties[i].masked(self.x[i], {v: sealed[v][i] for v in sharing if v != i}) for i in sending}
        self.there, self.left = sending, sharing - sending
        self.answering = {i for i in sending if i not in gone.get("reveal", set())}

    def reveal(self) -> dict[int, dict[int, bytes]]:
        return {i: self.parties[i].reveal(self.there, self.left) for i in self.answering}

    def sum(self, revealed: dict[int, dict[int, bytes]] | None = None) -> Any:
        total = np.zeros_like(self.x[1])
        for words in self.masked.values():
            total += words
        revealed = self.reveal() if revealed is None else revealed
        return masks.unmask(total, self.publics, revealed, self.there, self.left, self.threshold, TAG)


@pytest.mark.parametrize("gone", [{}, {"keys": {2}}, {"shares": {5}}, {"train": {1, 4}}, {"reveal": {3}},
                                  {"keys": {1}, "shares": {2}, "train": {3}, "reveal": {4}}])  # fmt: skip
def test_the_secure_sum_is_the_plain_sum_whoever_leaves_when(gone: dict[str, set[int]]) -> None:
    session = Session(8, 4 if "keys" in gone else 5, 50, **gone)
    plain = sum((session.x[i].astype(np.uint64) for i in session.there), np.zeros(50, np.uint64))
    assert (session.sum() == (plain % 2**32).astype(np.uint32)).all()
    assert session.there == set(session.x) - {i for s in ("keys", "shares", "train") for i in gone.get(s, ())}


def test_below_the_threshold_nothing_is_revealed() -> None:
    session = Session(5, 3, reveal={1, 2, 3})
    with pytest.raises(ValueError, match="2 clients revealed shares, and 3 are needed: the sum stays hidden"):
        session.sum()
    session = Session(5, 3, train={1, 2, 3})
    for party in (session.parties[4], session.parties[5]):  # the clients themselves do not answer
        with pytest.raises(ValueError, match="2 clients are left, and 3 are needed"):
            party.reveal(session.there, session.left)
        assert not party.answered
    session = Session(5, 3)
    few = {i: shares for i, shares in session.reveal().items() if i < 3}
    with pytest.raises(ValueError, match="stays hidden"):
        session.sum(few)


def test_a_client_answers_once_and_only_lists_that_fit() -> None:
    session = Session(4, 3)
    party = session.parties[1]
    for there, gone in (({1, 2, 3}, set()), ({1, 2, 3, 4}, {4}), ({2, 3, 4}, {1}), ({1, 2, 3, 4, 5}, set())):
        with pytest.raises(ValueError, match="do not fit"):
            party.reveal(there, gone)
    party.reveal({1, 2, 3}, {4})
    with pytest.raises(ValueError, match="answers once"):
        party.reveal({1, 2, 3, 4}, set())  # the other share of 4 would open its vector
    with pytest.raises(ValueError, match="not more than half"):
        masks.Party(1, TAG).shares(session.publics, 2)
    with pytest.raises(ValueError, match="another one in this client's place"):
        masks.Party(1, TAG).shares(session.publics, 3)


def test_changed_shares_are_found_on_both_sides() -> None:
    session = Session(4, 3)
    text = session.sealed[2][1]
    with pytest.raises(ValueError, match="shares of client 2 were changed"):
        session.parties[1].masked(session.x[1], {v: text[:-1] + bytes([text[-1] ^ 1]) for v in (2, 3, 4)})
    revealed = session.reveal()
    revealed[1][3] = bytes(shamir.SHARE)
    with pytest.raises(ValueError, match=r"share of client 3 is wrong|do not belong together"):
        session.sum(revealed)


def test_each_masked_vector_is_uniform() -> None:
    stats = pytest.importorskip("scipy.stats")
    session = Session(3, 2, size=1)
    values = {i: np.zeros(40_000, np.uint32) for i in session.parties}  # the least random vectors that there are
    sealed = session.sealed
    for i, zero in values.items():
        words = session.parties[i].masked(zero, {v: sealed[v][i] for v in sealed if v != i})
        for shift in (0, 8, 16, 24):
            counts = np.bincount((words >> shift) & 255, minlength=256)
            assert stats.chisquare(counts).pvalue > 1e-6
        counts = np.bincount(zero & 255, minlength=256)
        assert stats.chisquare(counts).pvalue < 1e-6  # the test sees what has no mask


def test_masks_are_aes_in_counter_mode_and_other_keys_give_others() -> None:
    pytest.importorskip("cryptography", reason="secure sums need cryptography")
    assert not (masks.stream(b"a" * 32, 9, np.dtype("<u8")) == masks.stream(b"b" * 32, 9, np.dtype("<u8"))).any()
    assert masks.derived(b"s", b"1") != masks.derived(b"s", b"2")
    ciphers = pytest.importorskip("cryptography.hazmat.primitives.ciphers", reason="secure sums need cryptography")
    cipher = ciphers.Cipher(ciphers.algorithms.AES(b"k" * 32), ciphers.modes.ECB())
    block = cipher.encryptor().update((1).to_bytes(16))  # of the second counter
    assert masks.stream(b"k" * 32, 4, np.dtype("<u8")).tobytes()[16:] == block


def test_without_the_package_the_reason_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat", None)
    with pytest.raises(ImportError, match="secure sums need the package cryptography"):
        masks.Party(1, TAG)
