"""Models of lit_mm for lmms-eval, an extra: its tasks ask a checkpoint, and its metrics score the answers.

    python -m lmms_eval --model lit_mm --model_args checkpoint=runs/latest --tasks mme

Several processes share the documents of a task: torchrun --nproc_per_node 2 -m lmms_eval ...
Source: lmms-eval 0.7.3, docs/model_guide.md; its requests of chat tasks have six arguments, one more than there.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch
from lmms_eval.api.model import lmms  # pyrefly: ignore[missing-import]  # an extra
from PIL import Image

from lit_mm.commands.trained import launch_folder, open_model
from lit_mm.documents.document import Document, Picture, Turn
from lit_mm.documents.inline import DecodedPicture
from lit_mm.errors import UserError
from lit_mm.inference.decoding import Decoding
from lit_mm.inference.generate import answer
from lit_mm.inference.messages import document_of
from lit_mm.inference.streaming import cut
from lit_mm.stream.order import stable_hash

LONGEST = 1024  # tokens, for tasks that set no `max_new_tokens`
READ = ("max_new_tokens", "until", "do_sample", "temperature", "top_p", "top_k", "num_beams", "repetition_penalty")


class ChatModel(lmms):
    """Answers tasks that give messages.

    Args:
        checkpoint: run folder, whose newest checkpoint is opened, or checkpoint.
        batch_size: number of documents decoded together.
        config: config file that the model is built from; None for the config in the checkpoint.
        stage: name of the stage whose newest checkpoint is opened; None for the newest one of the run.
        accelerator: accelerator of the Trainer; None for the config's.
        seed: seed of answers that are drawn; an answer depends on it and on its document alone.
        device: device that lmms-eval proposes, which is not used: `accelerator` sets it.
        max_batch_size: limit of lmms-eval on automatic batch sizes, which is not used.
    """

    is_simple = False

    def __init__(
        self,
        checkpoint: str = "runs/latest",
        batch_size: int | str = 16,
        config: str | None = None,
        stage: str | None = None,
        accelerator: str | None = None,
        seed: int = 0,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.batch_size, self.seed = int(batch_size), int(seed)
        with launch_folder(checkpoint, config, stage) as path:
            self.module = open_model(path, config, accelerator=accelerator)
        if self.module.device.type == "cuda":  # lmms-eval joins the processes later, by a backend of its choice
            self.module.to(torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))))

    @property
    def device(self) -> torch.device:
        """Device of the model, on which lmms-eval gathers numbers."""
        return self.module.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer requests in their order; requests with the same settings of decoding share batches."""
        documents = [self.document(request.args) for request in requests]
        settings = [settings_of(request.args[self.settings_at], self.seed) for request in requests]
        answers = [""] * len(requests)
        for decoding, until in dict.fromkeys(settings):
            numbers = [number for number, pair in enumerate(settings) if pair == (decoding, until)]
            texts = answer(
                self.module,
                [documents[number] for number in numbers],
                batch_size=self.batch_size,
                decoding=decoding,
                seeds=[stable_hash(self.seed, documents[number].id) for number in numbers] if decoding.sample else None,
            )
            for number, text in zip(numbers, texts, strict=True):
                answers[number] = cut(text, until)[0].strip()
        return answers

    settings_at = 2  # place of the generation arguments in a request

    def document(self, arguments: tuple[Any, ...]) -> Document:
        """Convert the arguments of a request to a document."""
        _, messages_of, _, number, task, split = arguments
        messages = messages_of(self.task_dict[task][split][number])
        return document_of(messages, picture_of, id=f"{task}/{split}/{number}", source=task)

    def loglikelihood(self, requests: Sequence[Any]) -> NoReturn:
        """Refuse tasks of likelihood, which fail in lmms-eval 0.7.3 itself.

        Raises:
            UserError: always.
        """
        raise UserError(
            "lit_mm supports tasks of lmms-eval that generate text. Choose the generating variant of the task"
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> NoReturn:
        """Refuse tasks of several rounds.

        Raises:
            UserError: always.
        """
        raise UserError("lit_mm supports tasks of lmms-eval with one round. Leave out tasks of several rounds")


class SimpleModel(ChatModel):
    """Answers tasks that give a text and pictures, which stand in front of the text."""

    is_simple = True
    settings_at = 1

    def document(self, arguments: tuple[Any, ...]) -> Document:
        """Convert the arguments of a request to a document."""
        text, _, pictures_of, number, task, split = arguments
        pictures = pictures_of(self.task_dict[task][split][number]) or ()
        turn = Turn("user", (*map(picture_of, pictures), text))
        return Document(f"{task}/{split}/{number}", (turn,), source=task)


def picture_of(image: Any) -> Picture:
    """Wrap a picture of a task.

    Raises:
        UserError: it is no Pillow image, but a path of a video, for example.
    """
    if not isinstance(image, Image.Image):
        raise UserError(
            f"a task of lmms-eval contains {type(image).__name__}, but lit_mm reads only images. Leave the task out"
        )
    return DecodedPicture(image.convert("RGB"))


def settings_of(arguments: Mapping[str, Any], seed: int) -> tuple[Decoding, tuple[str, ...]]:
    """Convert the generation arguments of a task to settings of decoding, and texts that end an answer.

    A temperature of 0 takes the most likely tokens, also with `do_sample`. Arguments that are not in `READ` cause a
    warning.

    Args:
        arguments: `generation_kwargs` of the task.
        seed: seed of draws.
    """
    unread = sorted(name for name, value in arguments.items() if name not in READ and value is not None)
    if unread:
        warnings.warn(f"lit_mm does not use the generation arguments {unread} of the task", stacklevel=2)
    until = arguments.get("until") or ()
    decoding = Decoding(
        int(arguments.get("max_new_tokens") or LONGEST),
        beams=int(arguments.get("num_beams") or 1),
        repetition_penalty=float(arguments.get("repetition_penalty") or 1),
    )
    temperature = arguments.get("temperature")
    if arguments.get("do_sample") and temperature != 0:
        decoding = replace(
            decoding,
            sample=True,
            temperature=float(temperature or 1),
            top_p=float(arguments.get("top_p") or 1),
            top_k=int(arguments.get("top_k") or 0),
            seed=seed,
        )
    return decoding, (until,) if isinstance(until, str) else tuple(until)
