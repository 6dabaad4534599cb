"""`serve` answers chat completions over HTTP, so that the tools of other people can ask a checkpoint."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from importlib.util import find_spec

from lit_mm.commands.options import Arguments, add_checkpoint
from lit_mm.errors import UserError

LOOPBACK = "127.0.0.1"
HOSTS = (LOOPBACK, "0.0.0.0", "::")


def serve(arguments: Sequence[str]) -> None:
    """Answer the chat-completions protocol (/v1/chat/completions, /v1/models) with a checkpoint.

    Images are data URIs. A request may set temperature, top_p, max_tokens, stop, n and stream. Without a temperature
    the most likely tokens are taken. Requests are answered one at a time; repeated images are encoded once. The
    environment variable LIT_SERVER_API_KEY sets a key that requests must send in X-API-Key.
    """
    parser = Arguments(prog="python -m lit_mm serve", description=serve.__doc__)
    add_checkpoint(parser)
    parser.add_argument(
        "--host",
        choices=HOSTS,
        default=LOOPBACK,
        help="address to listen on (default: 127.0.0.1, reachable from this machine only)",
    )
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000)")
    parser.add_argument(
        "--allow_urls",
        action="store_true",
        help="accept images by URL; clients can then make this machine send requests",
    )
    parser.add_argument(
        "--max_new_tokens",
        type=int,
        default=512,
        help="longest answer, tokens; requests cannot exceed it (default: 512)",
    )
    choices = parser.parse_args(arguments)
    if choices.max_new_tokens < 1:
        raise UserError(f"--max_new_tokens is at least 1, got {choices.max_new_tokens}")
    if not 1024 <= choices.port <= 65535:
        raise UserError(f"--port is a number from 1024 to 65535, got {choices.port}")
    if find_spec("litserve") is None:
        raise UserError("requests are served by litserve, which is not installed: pip install 'lit_mm[serve]'")
    check_free(choices.host, choices.port)

    from lit_mm.commands.serving import Completions, run_server
    from lit_mm.commands.trained import launch_folder

    with launch_folder(choices.checkpoint, choices.config, choices.stage) as path:
        completions = Completions(
            path,
            config=choices.config,
            accelerator=choices.accelerator,
            max_new_tokens=choices.max_new_tokens,
            web=choices.allow_urls,
        )
        run_server(completions, choices.host, choices.port)


def check_free(host: str, port: int) -> None:
    """Refuse a port that another program listens at.

    Raises:
        UserError: the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"--port {port}: the server cannot listen at {host} ({error.strerror}). Choose another port"
            ) from error
