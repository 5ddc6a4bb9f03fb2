"""Messages of server and clients over TCP: a line of facts, then arrays. What comes is checked before it is stored.

```
4 bytes, length of the facts   facts, JSON: {"kind", …, "arrays": [[name, dtype, shape], …]}   the arrays' bytes
```
"""

from __future__ import annotations

import json
import math
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FACTS = 1 << 22  # bytes of facts
DTYPES = ("<f4", "<u4", "<u8", "|u1")
PIECE = 1 << 20


class Lied(ValueError):
    """A message that breaks the rules: its sender is left out."""


@dataclass
class Message:
    """Facts and arrays."""

    kind: str
    facts: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


class Link:
    """One side of a connection.

    Args:
        most: bytes of arrays that a message may have.

    Attributes:
        sent, received: bytes so far.
    """

    def __init__(self, sock: socket.socket, most: int):
        self.sock, self.most, self.sent, self.received = sock, most, 0, 0

    def send(self, message: Message) -> int:
        """Sends a message; returns its bytes."""
        arrays = {n: np.ascontiguousarray(a) for n, a in message.arrays.items()}
        listed = [[n, a.dtype.str, list(a.shape)] for n, a in arrays.items()]
        facts = json.dumps({**message.facts, "kind": message.kind, "arrays": listed}).encode()
        parts = [struct.pack("<I", len(facts)) + facts, *(a.tobytes() for a in arrays.values())]
        for part in parts:
            self.sock.sendall(part)
        count = sum(map(len, parts))
        self.sent += count
        return count

    def receive(self) -> Message:
        """The next message.

        Raises:
            Lied: for facts or arrays of another form or size than allowed. OSError: if the other side is gone.
        """
        (length,) = struct.unpack("<I", self._bytes(4))
        if length > FACTS:
            raise Lied(f"its message announces {length:,} bytes of facts, and {FACTS:,} are allowed")
        try:
            facts = json.loads(self._bytes(length))
            kind, listed = str(facts.pop("kind")), [(str(n), str(d), tuple(s)) for n, d, s in facts.pop("arrays")]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Lied(f"its message has no facts of the right form ({error})") from None
        left, arrays = self.most, {}
        for name, dtype, shape in listed:
            if dtype not in DTYPES or not all(type(n) is int and n >= 0 for n in shape):
                raise Lied(f"{name!r} announces type {dtype!r} and shape {list(shape)}; types are {', '.join(DTYPES)}")
            size = math.prod(shape) * np.dtype(dtype).itemsize
            if size > left:
                raise Lied(f"{name!r} of shape {list(shape)} has {size:,} bytes, and {left:,} are allowed")
            left -= size
            arrays[name] = np.frombuffer(self._bytes(size), dtype).reshape(shape)
        return Message(kind, facts, arrays)

    def _bytes(self, count: int) -> bytearray:
        held = bytearray(count)
        view, done = memoryview(held), 0
        while done < count:
            got = self.sock.recv_into(view[done : done + PIECE])
            if not got:
                raise ConnectionError("the connection was closed" + (" in the middle of a message" if done else ""))
            done += got
        self.received += count
        return held

    def close(self) -> None:
        """Ends the connection."""
        self.sock.close()
