"""The process of a server: its socket, its signals, and the end of its answers."""

from __future__ import annotations

import ipaddress
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from anyformer.know.tool import tools_of_names
from anyformer.serve.limits import Limits

if TYPE_CHECKING:
    from anyformer.serve.engine import Engine

LEAST_KEY = 8  # characters
CONNECTIONS = 2048  # open at once, idle ones included; more get 503


def serve(
    models: Sequence[Any],
    names: Sequence[str],
    *,
    places: Sequence[Path | str] | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    key: str | Sequence[str] | None = None,
    allow_host: Sequence[str] = (),
    exact: bool = False,
    tools: Sequence[str] = (),
    limits: Limits | None = None,
) -> None:
    """Serves models until SIGINT or SIGTERM; answers that have begun then have `limits.drain` seconds.

    Args:
        names: of the models; requests use the last part of each. places: their folders, where a README can name a
            licence; by default the names.
        host: the address to listen on; another one than this machine's own needs a key.
        port: 0 = any free one, which is printed.
        key: what every request must bring: `Authorization: Bearer KEY`; of several, one.
        allow_host: names by which browsers reach the server, beside localhost and addresses.
        exact: each request decodes in a batch of its own: bit for bit the text that it gets alone, at less speed for
            several at once.
        tools: what the server runs for conversations that ask for it: names of `generate.calculator.INCLUDED`, and
            `search=FOLDER`, an index.

    Raises:
        ValueError: for a model that answers nothing here, an unknown tool, a short key, or an open address without a
            key.
        ImportError: without the packages of `anyformer[serve]`.
    """
    try:
        import uvicorn

        from anyformer.serve.app import application
        from anyformer.serve.card import served
        from anyformer.serve.engine import Engine
    except ImportError as error:
        raise ImportError(f"serve needs `pip install 'anyformer[serve]'` ({error})") from None
    own = tools_of_names(tools)
    keys = [key] if isinstance(key, str) else list(key or ())
    check_keys(host, keys)
    known = served(list(names), list(places or names), list(models))
    engine = Engine({name: one.model for name, one in known.items()}, limits or Limits(), exact)
    app = application(engine, known, keys, tuple(allow_host), own)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, ws="none", lifespan="off", http="h11",
        proxy_headers=False, timeout_keep_alive=10, timeout_graceful_shutdown=int(engine.limits.drain) or 1,
        h11_max_incomplete_event_size=65_536, limit_concurrency=CONNECTIONS,
    )  # fmt: skip
    with listening(host, port) as bound:
        engine.start()
        shown = f"[{host}]" if ":" in host else host
        for name, one in known.items():
            print(f"{name}: {', '.join(one.verbs)}{how(engine, name)}", flush=True)
        print(f"anyformer serve: http://{shown}:{bound.getsockname()[1]}", flush=True)
        try:
            _server(uvicorn, config, engine).run(sockets=[bound])
        finally:
            engine.stop()


def how(engine: Engine, name: str) -> str:
    """What a user should know about the batches of a model."""
    if not engine.models[name].generates or engine.exact or engine.joins(name):
        return ""
    return " (the texts of different requests cannot share a batch of this model: they are written in turns)"


def check_keys(host: str, keys: Sequence[str]) -> None:
    """Raises ValueError for a key that is no key, or for an open door."""
    if any(len(key) < LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key for key in keys):
        raise ValueError(f"the API key must have at least {LEAST_KEY} printable ASCII characters without spaces")
    loopback = host == "localhost"
    with suppress(ValueError):
        loopback = loopback or ipaddress.ip_address(host).is_loopback
    if not loopback and not keys:
        raise ValueError(
            f"host {host} lets other machines in, and there is no key: set ANYFORMER_API_KEY or --api-key-file, or "
            "leave the host at 127.0.0.1"
        )


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that is bound before anything is computed: a port that is taken is one line."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind((host, port))
            made.listen(CONNECTIONS)  # before the address is printed: who reads it can connect
        except OverflowError:
            raise ValueError(f"port must be 0 … 65535; got {port}") from None
        except OSError as error:
            raise OSError(f"cannot listen on {host}, port {port}: {error.strerror}; choose another --port") from None
        yield made


def _server(uvicorn: Any, config: Any, engine: Engine) -> Any:
    class Server(uvicorn.Server):
        """Takes no new requests from the first signal on, and ends with exit code 0."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            before = {kind: signal.signal(kind, self.handle_exit) for kind in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for kind, handler in before.items():
                    signal.signal(kind, handler)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            engine.draining = True
            super().handle_exit(sig, frame)

    return Server(config)
