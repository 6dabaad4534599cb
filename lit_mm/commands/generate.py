"""`generate` asks a checkpoint about image files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lit_mm.commands.options import Arguments, add_checkpoint, utf8_text
from lit_mm.errors import UserError


def generate(arguments: Sequence[str]) -> None:
    """Answer a question about one image or several with a checkpoint, by greedy decoding."""
    parser = Arguments(prog="python -m lit_mm generate", description=generate.__doc__)
    add_checkpoint(parser)
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="image; may be repeated")
    parser.add_argument("--question", type=utf8_text, required=True, help="question about the images")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="longest answer, tokens (default: 64)")
    parser.add_argument(
        "--draw",
        metavar="FILE",
        help="generate an image with Mini-Gemini and diffusers and save it here; without diffusers, save its prompt",
    )
    parser.add_argument(
        "--pipeline", metavar="NAME", help="pipeline of diffusers for --draw: a folder or a name (default: SDXL base)"
    )
    choices = parser.parse_args(arguments)
    if choices.max_new_tokens < 1:
        raise UserError(f"--max_new_tokens is at least 1, got {choices.max_new_tokens}")

    from lit_mm.commands.trained import launch_folder, open_model  # torch: seconds, which --help need not wait for
    from lit_mm.documents.document import Document, Turn
    from lit_mm.documents.files import FilePicture
    from lit_mm.documents.printable import visible
    from lit_mm.inference.generate import answer
    from lit_mm.inference.images import REQUEST

    pictures = [replace(FilePicture.open(path), path=Path(path).absolute()) for path in choices.image]
    question = choices.question + (REQUEST if choices.draw else "")
    document = Document("asked", (Turn("user", (*pictures, question)),))
    with launch_folder(choices.checkpoint, choices.config, choices.stage) as path:
        module = open_model(path, choices.config, accelerator=choices.accelerator)
        text = answer(module, [document], max_new_tokens=choices.max_new_tokens)[0]
        print(visible(text))
        if choices.draw:
            print(save_drawing(text, Path(choices.draw), choices.pipeline, str(module.device)))


def save_drawing(text: str, file: Path, pipeline: str | None, device: str) -> str:
    """Save the image that an answer describes, or its prompt without diffusers; return a line that says so.

    Raises:
        UserError: the answer has no prompt of an image, or the pipeline cannot be read.
    """
    from lit_mm.inference.images import SDXL, has_diffusers, image_prompt, load_pipeline, save_image

    prompt = image_prompt(text)
    if not prompt:
        raise UserError(
            "--draw: the answer has no prompt between <h> and </h>. Ask for an image, raise --max_new_tokens, or use a "
            "model that was trained on such answers"
        )
    if not has_diffusers() and pipeline is None:
        path = save_image(prompt, file, None)
        return f"the prompt is in {path}; for an image: pip install 'lit_mm[images]'"
    return f"the image is in {save_image(prompt, file, load_pipeline(pipeline or SDXL, device))}"
