"""The document's nginx in front of two replicas."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import anyformer as af
from anyformer.generate import generate

DOCUMENT = Path(__file__).parents[2] / "docs" / "serving.md"


def free() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.slow
def test_replicas_share_requests_and_one_can_leave(process, folders, tmp_path):
    import openai

    nginx = shutil.which("nginx") or pytest.skip("replicas: left out: nginx is not installed")
    found = re.search(r"```nginx\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    replicas, port, text = [process(folders["llama"]) for _ in range(2)], free(), found[1]
    text = text.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    for known, replica in zip(("127.0.0.1:8001", "127.0.0.1:8002"), replicas, strict=True):
        text = text.replace(known, replica.url.removeprefix("http://"))
    where = tmp_path / "replicas.conf"
    where.write_text(
        f"daemon off; pid {tmp_path}/pid; error_log {tmp_path}/log;\n"
        + text.replace(
            "http {",
            f"http {{ access_log off; client_body_temp_path {tmp_path}/body; proxy_temp_path {tmp_path}/proxy;"
            f" fastcgi_temp_path {tmp_path}/a; uwsgi_temp_path {tmp_path}/b; scgi_temp_path {tmp_path}/c;",
        )
    )
    front = subprocess.Popen([nginx, "-c", str(where)], stderr=subprocess.PIPE, text=True)
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=60)
        end = time.monotonic() + 20
        while True:
            try:
                client.models.list()
                break
            except openai.APIError:
                assert time.monotonic() < end and front.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.1)
        model = af.load(folders["llama"])

        def ask(prompt: str) -> bool:
            options: dict[str, Any] = {"model": "llama", "prompt": prompt, "max_tokens": 8, "temperature": 0}
            whole = client.completions.create(**options).choices[0].text
            parts = "".join(part.choices[0].text for part in client.completions.create(**options, stream=True))
            return whole == parts == generate(model, prompt, max_new_tokens=8)

        with ThreadPoolExecutor(8) as users:
            assert all(users.map(ask, [f"prompt {i}" for i in range(24)]))
        for replica in replicas:
            told = replica.client().with_options(base_url=replica.url).get("/metrics", cast_to=str)
            assert 'route="/v1/completions",status="200"' in told  # each had a part of them
        assert replicas[0].end(signal.SIGTERM) == 0
        assert all(map(ask, ["one", "two", "three"]))
    finally:
        front.terminate()
        front.wait(timeout=20)
