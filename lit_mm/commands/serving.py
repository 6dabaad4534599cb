"""The server of `serve`, on litserve, an extra. Its worker process holds the model."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import AsyncGenerator, Generator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import litserve as ls  # pyrefly: ignore[missing-import]  # an extra
from fastapi import BackgroundTasks, HTTPException, Request  # pyrefly: ignore[missing-import]
from fastapi.responses import JSONResponse  # pyrefly: ignore[missing-import]
from litserve.specs.openai import ChatCompletionRequest, OpenAISpec  # pyrefly: ignore[missing-import]

from lit_mm.documents.document import Document
from lit_mm.documents.inline import picture_of_uri
from lit_mm.errors import UserError
from lit_mm.inference.decoding import Decoding
from lit_mm.inference.messages import check_fields, document_of

# Fields of a request that would change an answer and are not supported -> the value that asks for nothing
UNSUPPORTED: Mapping[str, Any] = {
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "tools": None,
    "response_format": None,
    "reasoning_effort": None,
}


class Question(NamedTuple):
    """A request, converted.

    Attributes:
        document: messages of the request.
        decoding: settings of decoding.
        until: texts that end the answer.
    """

    document: Document
    decoding: Decoding
    until: tuple[str, ...]


class Protocol(OpenAISpec):
    """The chat-completions protocol of litserve, whose error event in a stream lacks the blank line that ends it."""

    async def chat_completion(
        self, request: ChatCompletionRequest, background_tasks: BackgroundTasks, http: Request
    ) -> Any:  # FastAPI reads the annotation
        """Answer a request; one with fields that litserve would ignore is answered with status 400 and the reason.

        Raises:
            HTTPException: the request cannot be followed.
        """
        try:
            check_fields(await http.json())
        except UserError as error:
            raise HTTPException(400, str(error)) from error
        return await super().chat_completion(request, background_tasks)

    async def streaming_completion(
        self, request: ChatCompletionRequest, pipe_responses: list[Any]
    ) -> AsyncGenerator[str, None]:
        """Yield the events of a stream; clients would drop an event without its end."""
        async for event in super().streaming_completion(request, pipe_responses):
            yield event.rstrip("\n") + "\n\n"


class Completions(ls.LitAPI):
    """Answers chat completions. litserve copies the object to its worker process and calls `setup` there.

    Every answer ends with the finish reason "stop", also one that is cut, because litserve sends no other.

    Args:
        path: path of the checkpoint.
        config: config file that the model is built from; None for the config in the checkpoint.
        accelerator: accelerator of the Trainer; None for the config's.
        max_new_tokens: maximum length of an answer, tokens.
        web: True allows images by address.
    """

    def __init__(
        self, path: str, *, config: str | None, accelerator: str | None, max_new_tokens: int, web: bool
    ) -> None:
        super().__init__(spec=Protocol())
        self.path, self.config, self.accelerator = path, config, accelerator
        self.max_new_tokens, self.web = max_new_tokens, web

    async def models(self) -> dict[str, Any]:
        """Return the list of models of the protocol; its only entry is the checkpoint."""
        name = Path(self.path).stem
        return {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "lit_mm"}]}

    def setup(self, device: str) -> None:
        """Open the model. Its device is that of `accelerator`, whatever litserve proposes."""
        from lit_mm.commands.trained import open_model
        from lit_mm.inference.features import FeatureCache

        self.module = open_model(self.path, self.config, accelerator=self.accelerator)
        self.cache = FeatureCache()

    def decode_request(self, request: ChatCompletionRequest) -> Question:
        """Convert a request; one that cannot be followed is answered with status 400 and the reason."""
        try:
            return question_of(request, self.max_new_tokens, web=self.web)
        except UserError as error:
            raise HTTPException(400, str(error)) from error

    def predict(self, question: Question) -> Generator[dict[str, Any], None, None]:
        """Yield the pieces of the answer, and at the end the numbers of tokens."""
        from lit_mm.inference.streaming import stream

        pieces = stream(
            self.module, question.document, decoding=question.decoding, until=question.until, cache=self.cache
        )
        try:
            while True:
                yield {"role": "assistant", "content": next(pieces)}
        except StopIteration as end:
            counts = end.value
        except UserError as error:
            raise HTTPException(400, str(error)) from error
        yield {
            "role": "assistant",
            "content": "",
            "prompt_tokens": counts.prompt,
            "completion_tokens": counts.answer,
            "total_tokens": counts.prompt + counts.answer,
        }


def question_of(request: ChatCompletionRequest, max_new_tokens: int, *, web: bool) -> Question:
    """Convert a request to a document, settings of decoding and ends of the answer.

    Without a temperature, or with 0, the most likely tokens are taken. Draws differ from request to request.

    Args:
        request: request of the protocol.
        max_new_tokens: maximum length of an answer, tokens, beside that of the request.
        web: True allows images by address.
    Raises:
        UserError: a message, an image or a setting cannot be followed.
    """
    settings = request.model_dump(include=set(UNSUPPORTED))
    refused = [name for name, neutral in UNSUPPORTED.items() if settings[name] not in (neutral, None)]
    if refused:
        raise UserError(f"the request sets {', '.join(refused)}, which this server does not support; leave it out")
    document = document_of([message.model_dump() for message in request.messages], partial(picture_of_uri, web=web))
    limits = (request.max_completion_tokens, request.max_tokens, max_new_tokens)
    longest = next(limit for limit in limits if limit is not None)
    temperature = request.temperature if "temperature" in request.model_fields_set else None
    draws = {}
    if temperature:
        top_p = 1.0 if request.top_p is None else request.top_p
        draws = {"sample": True, "temperature": temperature, "top_p": top_p, "seed": secrets.randbits(32)}
    until = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    return Question(document, Decoding(min(longest, max_new_tokens), **draws), until)


async def error_response(_: Request, error: HTTPException) -> JSONResponse:
    """Return an error in the form of the protocol, which clients show."""
    content = {"error": {"message": error.detail, "type": "invalid_request_error", "param": None, "code": None}}
    return JSONResponse(content, status_code=error.status_code)


def end_on_sigterm() -> None:
    """Let SIGTERM end the server as Ctrl+C does; by default it would leave litserve's processes with port and model."""
    owner = os.getpid()

    def stop(number: int, _: object) -> None:
        if os.getpid() == owner:
            raise KeyboardInterrupt
        os._exit(128 + number)  # a process that litserve forked

    signal.signal(signal.SIGTERM, stop)


def run_server(completions: Completions, host: str, port: int) -> None:
    """Serve until Ctrl+C or SIGTERM. One process holds the model, and one answers HTTP."""
    end_on_sigterm()
    completions.spec.add_endpoint("/v1/models", completions.models, ["GET"])
    server = ls.LitServer(completions, accelerator="cpu", devices=1, timeout=False)
    server.app.add_exception_handler(HTTPException, error_response)
    print(f"chat completions at http://{host}:{port}/v1, once the model is loaded. Ctrl+C ends the server", flush=True)
    try:
        server.run(host=host, port=port, num_api_servers=1, log_level="warning", generate_client_file=False)
    finally:  # litserve ends its workers only once the model is loaded
        for worker in vars(server).get("inference_workers", ()):  # litserve sets it when it has started them
            worker.terminate()
