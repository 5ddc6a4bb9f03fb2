"""Sums of vectors that nobody sees alone (Bonawitz et al., 2017; doi:10.1145/3133956.3133982).

```
1 keys     each client: two X25519 keys and a seed b   ──> server ──> all
2 shares   Shamir's shares of its mask key and of b, sealed for each other one  ──> server ──> them
3 masked   y_u = x_u + PRG(b_u) + sum_v ± PRG(s_uv)     s_uv: X25519 of u and v, + where u < v
4 unmask   of a client that sent y_u the shares of b_u, of one that did not those of its mask key
```
PRG is AES-256 in counter mode with a key by HKDF-SHA256; words are added modulo 2^32 or 2^64. The server is honest but
curious: it keeps to the protocol and looks at everything. Clients answer step 4 once, and more than half of them are
needed, so no server gets both shares of one client. Keys live for one round. n clients, P values.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Set
from typing import Any

import numpy as np

from anyformer.federate import shamir

KEY = 32
PUBLIC = 3 * KEY  # two keys, and the SHA-256 of b, by which a wrong share is found


def needs() -> Any:
    """The package of the primitives.

    Raises:
        ImportError: naming what to install.
    """
    try:
        from cryptography.hazmat import primitives
    except ImportError:
        raise ImportError("secure sums need the package cryptography: pip install 'anyformer[federate]'") from None
    return primitives


class Party:
    """A client's side of one sum.

    Args:
        place: its number, from 1. tag: of the round, so that no key serves twice.
    """

    def __init__(self, place: int, tag: bytes):
        needs()
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        self.place, self.tag = place, tag
        self.sealing, self.masking, self.seed = (
            X25519PrivateKey.generate(),
            X25519PrivateKey.generate(),
            os.urandom(KEY),
        )
        self.publics: dict[int, bytes] = {}
        self.threshold, self.answered = 0, False
        self.received: dict[int, bytes] = {}

    def public(self) -> bytes:
        """The part that all may see: 96 bytes."""
        keys = (self.sealing.public_key().public_bytes_raw(), self.masking.public_key().public_bytes_raw())
        return b"".join((*keys, hashlib.sha256(self.seed).digest()))

    def shares(self, publics: Mapping[int, bytes], threshold: int) -> dict[int, bytes]:
        """The sealed shares for each other client.

        Raises:
            ValueError: for a threshold that is not more than half, or more than all; for keys that are not its own.
        """
        if not len(publics) < 2 * threshold <= 2 * len(publics):
            raise ValueError(
                f"a threshold of {threshold} is not more than half of {len(publics)} clients, and at most all"
            )
        if publics.get(self.place) != self.public():
            raise ValueError("the list of keys has another one in this client's place")
        self.publics, self.threshold = dict(publics), threshold
        pairs = [shamir.split(s, threshold, publics) for s in (self.masking.private_bytes_raw(), self.seed)]
        self.received[self.place] = _packed(pairs, self.place)
        return {v: self._seal(v, _packed(pairs, v)) for v in publics if v != self.place}

    def masked(self, words: np.ndarray, sealed: Mapping[int, bytes]) -> np.ndarray:
        """The words under all masks; `sealed` are the shares of the others, which are in the sum if they are here.

        Raises:
            ValueError: for shares that were changed, or too few clients.
        """
        if len(sealed) + 1 < self.threshold:
            raise ValueError(f"{len(sealed) + 1} clients shared their keys, and {self.threshold} are needed")
        self.received |= {v: self._open(v, text) for v, text in sealed.items()}
        total = words + stream(self._key(self.seed, b"self"), len(words), words.dtype)
        for v in sealed:
            total = _added(total, self.place, v, self._shared(v))
        return total

    def reveal(self, there: Set[int], gone: Set[int]) -> dict[int, bytes]:
        """Of each client that sent its vector the share of its seed, of each other one that of its mask key.

        Raises:
            ValueError: for a second question, lists that overlap or miss one, or fewer clients than the threshold:
                nothing is revealed then.
        """
        if self.answered:
            raise ValueError("this client answers once in a round")
        if there & gone or there | gone != self.received.keys() or self.place not in there:
            raise ValueError("the lists of clients that are there and gone do not fit those that shared their keys")
        if len(there) < self.threshold:
            raise ValueError(f"{len(there)} clients are left, and {self.threshold} are needed")
        self.answered = True
        half = shamir.SHARE
        return {v: text[half:] if v in there else text[:half] for v, text in self.received.items()}

    def _shared(self, v: int) -> bytes:
        return agreed(self.masking, self.publics[v][KEY : 2 * KEY], self.tag)

    def _key(self, secret: bytes, use: bytes) -> bytes:
        return derived(secret, use + self.tag)

    def _gcm(self, v: int, maker: int) -> tuple[Any, bytes]:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        secret = agreed(self.sealing, self.publics[v][:KEY], b"seal" + self.tag)
        return AESGCM(secret), maker.to_bytes(12)  # the key serves two texts, one each way

    def _seal(self, v: int, text: bytes) -> bytes:
        cipher, nonce = self._gcm(v, self.place)
        return cipher.encrypt(nonce, text, self.tag)

    def _open(self, v: int, text: bytes) -> bytes:
        from cryptography.exceptions import InvalidTag

        if v not in self.publics:
            raise ValueError(f"shares came from client {v}, which has no key")
        cipher, nonce = self._gcm(v, v)
        try:
            opened = cipher.decrypt(nonce, text, self.tag)
        except InvalidTag:
            raise ValueError(f"the shares of client {v} were changed on their way") from None
        if len(opened) != 2 * shamir.SHARE:
            raise ValueError(f"the shares of client {v} have {len(opened)} bytes, not {2 * shamir.SHARE}")
        return opened


def unmask(
    total: np.ndarray, publics: Mapping[int, bytes], revealed: Mapping[int, Mapping[int, bytes]],
    there: Set[int], gone: Set[int], threshold: int, tag: bytes,
) -> np.ndarray:  # fmt: skip
    """The sum of the words of the clients in `there`.

    Args:
        total: of their masked words. revealed: what each client revealed, by its place.
        gone: clients that shared their keys and sent no vector.

    Raises:
        ValueError: for fewer answers than the threshold, or a share that is wrong; nothing is known of the sum then.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    if len(revealed) < threshold:
        raise ValueError(f"{len(revealed)} clients revealed shares, and {threshold} are needed: the sum stays hidden")
    total = total.copy()
    for v in sorted(there | gone):
        some = [(u, shares[v]) for u, shares in sorted(revealed.items()) if v in shares][:threshold]
        if len(some) < threshold:
            raise ValueError(f"{len(some)} shares of client {v} came, and {threshold} are needed: the sum stays hidden")
        secret = shamir.join({u: int.from_bytes(share) for u, share in some})
        if v in there:
            if hashlib.sha256(secret).digest() != publics[v][2 * KEY :]:
                raise ValueError(f"a share of client {v} is wrong: the sum stays hidden")
            total -= stream(derived(secret, b"self" + tag), len(total), total.dtype)
            continue
        key = X25519PrivateKey.from_private_bytes(secret)
        if key.public_key().public_bytes_raw() != publics[v][KEY : 2 * KEY]:
            raise ValueError(f"a share of client {v} is wrong: the sum stays hidden")
        for u in there:
            total = _added(total, v, u, agreed(key, publics[u][KEY : 2 * KEY], tag))
    return total


def agreed(key: Any, public: bytes, use: bytes) -> bytes:
    """The key that two clients agree on (X25519, HKDF)."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    return derived(key.exchange(X25519PublicKey.from_public_bytes(public)), use)


def derived(secret: bytes, use: bytes) -> bytes:
    """A key of 32 bytes for one use, by HKDF-SHA256."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), KEY, None, b"anyformer federate " + use).derive(secret)


def stream(key: bytes, count: int, dtype: np.dtype[Any]) -> np.ndarray:
    """Uniform words: AES-256 in counter mode. A key serves once, so the counter begins at 0."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    maker = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(maker.update(bytes(count * dtype.itemsize)), dtype)  # (P,)


def _added(total: np.ndarray, owner: int, other: int, key: bytes) -> np.ndarray:
    """`total` with the mask that `owner` has toward `other`: the two have opposite signs."""
    mask = stream(key, len(total), total.dtype)
    return total + mask if owner < other else total - mask


def _packed(pairs: list[dict[int, int]], place: int) -> bytes:
    return b"".join(shares[place].to_bytes(shamir.SHARE) for shares in pairs)
