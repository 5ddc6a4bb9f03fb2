"""What stands in front of every route: black-box, in this process."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import anyformer as af
from anyformer.serve.card import served
from anyformer.serve.engine import Engine
from anyformer.serve.limits import Limits
from anyformer.serve.server import check_keys, listening
from tests.serve.site import Site

KEY = "correct-horse-battery"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def engine(folders: dict[str, Path]) -> Iterator[tuple[Engine, dict[str, Any]]]:
    names = ["llama", "bert"]
    known = served(names, [folders[n] for n in names], [af.load(folders[n]) for n in names])
    made = Engine({n: one.model for n, one in known.items()}, Limits(new_tokens=8, body=20_000, prompts=4))
    made.start()
    yield made, known
    made.stop()


@pytest.fixture(scope="module")
def open_site(engine) -> Site:
    return Site(engine)


@pytest.fixture(scope="module")
def closed_site(engine) -> Site:
    return Site(engine, KEY)


def test_no_route_answers_without_the_key(closed_site):
    routes = closed_site.routes()
    paths = {path for _, path in routes}
    assert {"/", "/health", "/metrics", "/openapi.json", "/v1/models", "/v1/models/{name}", "/v1/chat/completions",
            "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/audio/transcriptions",
            "/tokenize", "/attention", "/explain", "/ask", "/v1/models/{name}/wiring.svg"} <= paths  # fmt: skip
    for method, path in [*routes, ("GET", "/nothing"), ("OPTIONS", "/v1/models"), ("TRACE", "/")]:
        for headers in ({}, {"authorization": "Bearer wrong-horse-battery"}, {"authorization": f"Bearer {KEY}x"},
                        {"authorization": "Basic ???"}, {"authorization": KEY}, {"x-api-key": KEY}):  # fmt: skip
            answer = closed_site(method, path, headers=headers)
            assert answer.status_code == 401, (method, path, headers)
            if method != "HEAD":
                assert answer.json()["error"]["type"] == "authentication_error"
    basic = base64.b64encode(f"anyone:{KEY}".encode()).decode()
    for value in (f"Bearer {KEY}", f"bearer {KEY}", f"Basic {basic}"):
        assert closed_site("GET", "/v1/models", headers={"authorization": value}).status_code == 200
        assert closed_site("GET", "/", headers={"authorization": value}).status_code == 200
    assert closed_site("GET", "/").headers["www-authenticate"].startswith("Basic")
    assert closed_site("GET", "/v1/models").headers["www-authenticate"] == "Bearer"


def test_the_key_is_compared_in_constant_time():
    import ast
    import inspect

    from anyformer.serve import guard

    tree = ast.parse(inspect.getsource(guard))
    compared = [n for n in ast.walk(tree) if isinstance(n, ast.Compare) and "key" in ast.unparse(n).split(".")[-1]]
    assert all("is" in ast.unparse(n).split() for n in compared) and "compare_digest" in inspect.getsource(guard)


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "a@localhost"]
)
def test_a_page_of_another_name_is_refused(open_site, host):
    answer = open_site("GET", "/v1/models", headers={"host": host})
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "unknown_host"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "10.0.0.3", "Models.Example:80"])
def test_hosts_of_this_server_are_taken(engine, host):
    site = Site(engine, hosts=("models.example",))
    assert site("GET", "/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"}, {"origin": "http://localhost:9000"}, {"origin": "null"},
        {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"},
    ],
)  # fmt: skip
def test_other_pages_of_the_browser_are_refused(open_site, headers):
    for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models"), ("OPTIONS", "/v1/completions")):
        answer = open_site(method, path, headers={**JSON, **headers})
        assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
    same = {"origin": "http://localhost:8000", "sec-fetch-site": "same-origin"}
    assert open_site("GET", "/v1/models", headers=same).status_code == 200


def test_every_answer_has_the_headers_and_the_page_loads_nothing(open_site):
    page = open_site("GET", "/")
    for answer in (
        page,
        open_site("GET", "/v1/models"),
        open_site("GET", "/nothing"),
        open_site("GET", "/", host="x.y"),
    ):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers
    for word in ("http://", "https://", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(",
                 " style=", "onclick=", "localStorage"):  # fmt: skip
        assert word not in page.text.replace("http://www.w3.org/2000/svg", ""), word


def test_sizes_are_limited(open_site, engine):
    large = open_site("POST", "/v1/completions", content=b" " * 30_000, headers=JSON)
    assert large.status_code == 413 and large.json()["error"]["code"] == "body_too_large"

    async def pieces() -> Any:
        for _ in range(30):
            yield b" " * 1000

    unannounced = open_site("POST", "/v1/completions", content=pieces(), headers=JSON)
    assert unannounced.status_code == 413
    assert open_site("POST", "/v1/completions", headers={**JSON, "content-length": "9" * 30}).status_code == 413
    assert open_site("POST", "/v1/completions", headers={**JSON, "content-length": "-1"}).status_code == 413
    plain = open_site("POST", "/v1/completions", content=b'{"prompt":"x"}', headers={"content-type": "text/plain"})
    assert plain.status_code == 400  # what a form of another page could send
    many = open_site("POST", "/v1/completions", json={"prompt": ["a"] * 5})
    assert many.status_code == 400 and "at most 4" in many.json()["error"]["message"]
    engine[0].limits.__dict__["requests"] = 0
    try:
        busy = open_site("GET", "/health")
    finally:
        engine[0].limits.__dict__["requests"] = 256
    assert busy.status_code == 429 and busy.headers["retry-after"] == "2"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422), (b"{", 400), (b"[]", 422), (b"null", 422), (b'{"prompt": "\xff"}', 400), (b"[" * 9000, 400),
        (b'{"prompt": "x", "temperature": NaN}', 422), (b'{"prompt": "x", "temperature": 1e999}', 422),
        (b'{"prompt": "x", "temperature": "1"}', 422), (b'{"prompt": "x", "max_tokens": 1e3}', 422),
        (b'{"prompt": "x", "max_tokens": true}', 422), (b'{"prompt": "x", "seed": -1}', 422),
        (b'{"prompt": "x", "n": 0}', 422), (b'{"prompt": "x", "stop": ""}', 422), (b'{"prompt": ""}', 400),
        (b'{"prompt": "x", "top_k": ' + b"9" * 5000 + b"}", 400), (b'{"prompt": "\\ud800"}', 422),
        (b'{"prompt": [-1]}', 422), (b'{"prompt": [300]}', 400), (b'{"prompt": []}', 422),
        (b'{"prompt": "x", "logprobs": 21}', 422), (b'{"prompt": "x", "logit_bias": {"a": 1}}', 422),
        (b'{"prompt": "x", "max_tokens": 9}', 400), (b'{"prompt": "x", "model": "../../etc/passwd"}', 404),
        (b'{"prompt": "x", "stream_options": {}}', 400),
    ],
)  # fmt: skip
def test_hostile_bodies_are_refused_by_name(open_site, body, status):
    answer = open_site("POST", "/v1/completions", content=body, headers=JSON)
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


SMALL = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4).map(repr),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def good(name: str, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values near those that the server's own document describes, for one field."""
    known = {"messages": [{"role": "user", "content": "x"}], "model": "llama"}
    known |= dict.fromkeys(("answer", "prompt", "input"), "x")
    edges = [0, 1, -1, 0.5, 2, 2**31, 1e300, "x", True, None, [], {}, ["x"], {"5": 1}, {"type": "text"}]
    return st.just(known[name]) if name in known else st.sampled_from(edges)


def test_requests_drawn_from_its_own_document_never_break_it(open_site):
    document = open_site("GET", "/openapi.json").json()
    bodies = {}
    for path, methods in document["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        if "application/json" in content:
            name = content["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
            bodies[path] = document["components"]["schemas"][name]["properties"]
    posts = {f"/v1/{name}" for name in ("chat/completions", "completions", "responses", "embeddings")}
    assert set(bodies) == posts | {"/tokenize", "/attention", "/explain", "/ask"}
    seen: set[int] = set()

    @settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def drawn(data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(bodies)))
        fields = bodies[path]
        body: dict[str, Any] = {
            n: data.draw(good(n, fields[n])) for n in ("messages", "prompt", "input", "answer") if n in fields
        }
        body["max_tokens"] = 2
        for name in data.draw(st.lists(st.sampled_from(sorted(fields)), max_size=3, unique=True)):
            body[name] = data.draw(good(name, fields[name]) | SMALL)
        if "max_tokens" not in fields:
            body.pop("max_tokens", None)
        if "max_output_tokens" in fields:
            body["max_output_tokens"] = 2
        answer = open_site("POST", path, content=json.dumps(body).encode(), headers=JSON)
        seen.add(answer.status_code)
        assert answer.status_code in (200, 400, 404, 413, 422), (answer.status_code, body)
        if answer.status_code != 200:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

    drawn()
    assert {200, 400, 422} <= seen


def test_an_open_address_needs_a_key_and_a_key_is_one():
    for host in ("127.0.0.1", "localhost", "::1"):
        check_keys(host, [])
    for host in ("0.0.0.0", "::", "192.168.1.5", "models.example"):
        with pytest.raises(ValueError, match="lets other machines in"):
            check_keys(host, [])
        check_keys(host, [KEY])
    for key in ("", "short", "with a space", "ключключключ"):
        with pytest.raises(ValueError, match="at least 8"):
            check_keys("127.0.0.1", [key])
    with (
        listening("127.0.0.1", 0) as taken,
        pytest.raises(OSError, match="choose another --port"),
        listening("127.0.0.1", taken.getsockname()[1]),
    ):
        pass
