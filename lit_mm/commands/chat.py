"""`chat` talks with a checkpoint in the terminal."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lit_mm.commands.options import Arguments, add_checkpoint
from lit_mm.errors import UserError

if TYPE_CHECKING:  # seconds of import, which --help need not wait for
    from rich.console import Console

    from lit_mm.inference.chat import Chat

COMMANDS = {
    "/image FILE": "put an image in front of the next question; may be repeated",
    "/data": "show the prompt of the last answer as the model read it",
    "/new": "start over, without images",
    "/help": "show these commands",
    "/quit": "leave; so does Ctrl+D",
}
ONE_TURN = (
    "the prompt of this model takes one turn: each question is asked alone, with all images. /new drops the images"
)


def chat(arguments: Sequence[str]) -> None:
    """Chat with a checkpoint about images. Answers appear word by word; Ctrl+C ends an answer."""
    commands = "\n".join(f"  {name:<12} {text}" for name, text in COMMANDS.items())
    parser = Arguments(prog="python -m lit_mm chat", description=chat.__doc__, epilog=f"in the chat:\n{commands}")
    add_checkpoint(parser)
    parser.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="image for the first question; may be repeated"
    )
    parser.add_argument("--max_new_tokens", type=int, default=512, help="longest answer, tokens (default: 512)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="temperature of sampling (default: 0, the most likely tokens)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of sampling (default: 0)")
    choices = parser.parse_args(arguments)
    if choices.max_new_tokens < 1:
        raise UserError(f"--max_new_tokens is at least 1, got {choices.max_new_tokens}")
    if not 0 <= choices.temperature < math.inf:
        raise UserError(f"--temperature is a number from 0, got {choices.temperature}")

    from rich.console import Console

    from lit_mm.commands.trained import launch_folder, open_model
    from lit_mm.documents.files import FilePicture
    from lit_mm.inference.chat import Chat
    from lit_mm.inference.decoding import Decoding

    pictures = [replace(FilePicture.open(path), path=Path(path).absolute()) for path in choices.image]
    draws = {"sample": True, "temperature": choices.temperature, "seed": choices.seed} if choices.temperature else {}
    with launch_folder(choices.checkpoint, choices.config, choices.stage) as path:
        module = open_model(path, choices.config, accelerator=choices.accelerator)
    conversation = Chat(module, Decoding(choices.max_new_tokens, **draws))
    for picture in pictures:
        conversation.show(picture)
    talk(conversation, Console(highlight=False, soft_wrap=True))


def talk(conversation: Chat, console: Console) -> None:
    """Read questions and commands, and print answers, until the input ends or /quit is read."""
    console.print(f"{', '.join(COMMANDS)}. Ctrl+C ends an answer", style="dim", markup=False)
    if not conversation.several:
        console.print(ONE_TURN, markup=False)
    for line in lines(console):
        word, _, rest = line.partition(" ")
        try:
            if word == "/quit":
                return
            if word.startswith("/"):
                obey(conversation, word, rest.strip(), console)
            else:
                answer(conversation, line, console)
        except UserError as error:
            from lit_mm.documents.printable import visible

            console.print(visible(str(error)), style="red", markup=False)


def lines(console: Console) -> Iterator[str]:
    """Yield what the user types, without empty lines, up to the end of the input.

    Ctrl+C, which may come when the answer that it should end is over, drops the line alone.
    """
    while True:
        try:
            line = console.input("> ", markup=False).strip()
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            console.print("\n/quit or Ctrl+D leaves", style="dim")
            continue
        if line:
            yield line


def obey(conversation: Chat, word: str, rest: str, console: Console) -> None:
    """Follow a command of the chat.

    Args:
        conversation: conversation to change or to show.
        word: the command, such as "/image".
        rest: text behind it.
        console: place of the output.
    Raises:
        UserError: there is no such command, or it lacks its file, or the file is no image.
    """
    from lit_mm.documents.files import FilePicture

    if word == "/image":
        if not rest:
            raise UserError("/image needs a file: /image page.png")
        picture = FilePicture.open(Path(os.path.expanduser(rest)).absolute())
        conversation.show(picture)
        console.print(f"the next question shows {picture.path} ({picture.width} x {picture.height})", markup=False)
    elif word == "/data":
        show_prompt(conversation, console)
    elif word == "/new":
        conversation.start_over()
        console.print("a new chat, without images")
    elif word == "/help":
        for name, text in COMMANDS.items():
            console.print(f"{name:<12} {text}", markup=False)
    else:
        raise UserError(f"there is no command {word!r}; there are {', '.join(COMMANDS)}")


def answer(conversation: Chat, question: str, console: Console) -> None:
    """Print the answer to a question piece by piece; Ctrl+C ends it, and it is remembered as far as it goes."""
    from lit_mm.documents.printable import visible

    empty = True
    with closing(conversation.ask(question)) as pieces:
        try:
            for piece in pieces:
                console.print(visible(piece), end="", markup=False)
                empty = False
        except KeyboardInterrupt:
            console.print(" [ended]", end="", style="dim", markup=False)
        else:
            if empty:
                console.print("(the answer is empty; it is not remembered)", end="", style="dim", markup=False)
    console.print()


def show_prompt(conversation: Chat, console: Console) -> None:
    """Print the prompt of the last answer: its text with special tokens, and the number of tokens of each image."""
    from lit_mm.commands.data_show import marked

    sample = conversation.prompt()
    if sample is None:
        console.print("no question has been answered yet")
        return
    processor = conversation.module.processor
    visual = sum(stop - start for start, stop in sample.spans)
    console.print(
        f"{len(sample)} tokens, {visual} of {len(sample.plans)} pictures in {len(sample.tokens_per_view)} views; the "
        f"model takes {processor.max_length}",
        markup=False,
    )
    console.print(marked(sample, processor, coloured=True))
    if processor.reading is not None:
        console.print(f"second text: {processor.reading.decoded(sample.document)}", markup=False)
