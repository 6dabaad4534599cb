"""`serve` answers the clients of the chat-completions protocol."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from lit_mm.cli import main
from lit_mm.documents.printable import visible
from tests.inference.test_messages import URI
from tests.test_cli import ROOT, TINY


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_new_tokens", "0"], "--max_new_tokens is at least 1, got 0"),
        (["--port", "80"], "--port is a number from 1024 to 65535, got 80"),
        (["--host", "example.com"], "argument --host: invalid choice: 'example.com'"),
        ([], "pip install 'lit_mm[serve]'"),
    ],
)
def test_a_server_that_cannot_start_says_why_in_one_line(arguments, message, monkeypatch, capsys) -> None:
    monkeypatch.setattr("lit_mm.commands.serve.find_spec", lambda _: None)
    with pytest.raises(SystemExit) as left:
        main(["serve", *arguments])
    error = capsys.readouterr().err
    assert left.value.code == 2 and message in error and error.count("\n") == 1


def test_a_port_that_is_in_use_is_named(monkeypatch, capsys) -> None:
    monkeypatch.setattr("lit_mm.commands.serve.find_spec", lambda _: object())
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SystemExit):
            main(["serve", "--port", str(port)])
    assert f"--port {port}: the server cannot listen at 127.0.0.1" in capsys.readouterr().err


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def question(address: str = URI) -> list[dict[str, object]]:
    image = {"type": "image_url", "image_url": {"url": address}}
    return [{"role": "user", "content": [image, {"type": "text", "text": "what is it ?"}]}]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("litserve") is None or find_spec("openai") is None, reason="needs litserve and openai")
def test_the_openai_client_asks_a_checkpoint_about_an_image(tmp_path: Path) -> None:
    import openai

    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"track": False, "examine_documents": 2}))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    program = [sys.executable, "-m", "lit_mm"]
    fit = [*program, "fit", "--config", "tiny.yaml", "--run_dir", "run"]
    subprocess.run(fit, cwd=tmp_path, env=environment, check=True, capture_output=True)
    ask = [*program, "generate", "run", "--question", "what ?", "--max_new_tokens", "5"]
    expected = subprocess.run(ask, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    port = free_port()
    server = subprocess.Popen([*program, "serve", "run", "--port", str(port)], cwd=tmp_path, env=environment)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        name = client.models.list().data[0].id
        create = client.chat.completions.create
        text = create(model=name, messages=[{"role": "user", "content": "what ?"}], max_tokens=5)
        assert visible(text.choices[0].message.content) == expected.strip()
        with pytest.raises(openai.BadRequestError, match="`max_new_tokens` is at least 1"):
            create(model=name, messages=question(), max_tokens=0)
        for wrong, message in (({"seed": 3}, "sets seed"), ({"n": 0}, "`n` is a number of answers from 1 to 128")):
            with pytest.raises(openai.BadRequestError, match=message):
                create(model=name, messages=question(), **wrong)
        whole = create(model=name, messages=question(), max_tokens=6)
        pieces = list(create(model=name, messages=question(), max_tokens=6, stream=True))
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.choices[0].message.content
        assert len(pieces) > 3 and pieces[-1].usage == whole.usage
        assert whole.usage.completion_tokens <= 6 < whole.usage.prompt_tokens
        draws = create(model=name, messages=question(), max_tokens=6, temperature=5.0, n=3)
        assert len({choice.message.content for choice in draws.choices}) > 1
        start = whole.choices[0].message.content[:1]
        assert create(model=name, messages=question(), max_tokens=6, stop=start).choices[0].message.content == ""
        for request, message in (
            ({"messages": question("http://127.0.0.1/red.png")}, "which is not allowed here"),
            ({"messages": question("file:///etc/passwd")}, "an image is a data URI"),
            ({"messages": question(), "presence_penalty": 1.0}, "the request sets presence_penalty"),
            ({"messages": [{"role": "user", "content": "what " * 5000}]}, "the limit of the model is"),
        ):
            with pytest.raises(openai.BadRequestError, match=message):
                create(model=name, **request)
        with pytest.raises(openai.APIError, match="an image is a data URI"):
            list(create(model=name, messages=question("file:///etc/passwd"), stream=True))
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    with socket.socket() as probe:  # no process is left that holds the port
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def wait_for(address: str, server: subprocess.Popen[bytes], seconds: float = 120) -> None:
    """Wait until an address answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=1):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{address} does not answer")
