"""The token ids of an imported checkpoint beside those of transformers' processor of the same files."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from transformers import PretrainedConfig
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.processing_utils import ProcessorMixin

from lit_mm.documents.document import Document, Picture, Turn
from lit_mm.errors import first_line
from lit_mm.module import MultimodalModule
from lit_mm.samples.collate import collate
from lit_mm.weights.layouts.layout import Ids

IMAGE = -1  # stands for the positions of pictures in lists of ids
ANSWER = "two red birds"  # of a caption
BLANK = "▁"  # the authors' tokenizers write it between a picture and a newline
KEYS = {  # settings that old files of processors lack -> the config that has them
    "patch_size": lambda config: config.vision_config.patch_size,
    "vision_feature_select_strategy": lambda config: config.vision_feature_select_strategy,
    "num_query_tokens": lambda config: config.num_query_tokens,
}


@runtime_checkable
class Rendered(Protocol):
    """A prompt that can show its text with a placeholder for each picture."""

    def text(self, document: Document) -> tuple[str, list[tuple[int, int]]]: ...


@runtime_checkable
class Asked(Protocol):
    """A prompt that can show the text of a question without its pictures."""

    def rendered(self, question: str) -> str: ...


def compare_ids(
    module: MultimodalModule,
    config: PretrainedConfig,
    folder: Path,
    pictures: tuple[Picture, ...],
    question: str,
    special: Callable[..., dict[str, Ids]] | None = None,
) -> dict[str, Any]:
    """Compare the ids of a question alone, about one picture, and about two.

    Equal are ids but for an empty piece between a picture and a newline, which the authors' tokenizers write, and for
    a first token where transformers' tokenizer writes none by itself.

    Args:
        module: the imported model, possibly without weights.
        config: config of transformers' model.
        folder: folder of the checkpoint.
        pictures: two pictures.
        question: text of the question.
        special: function that compares other texts, see `Layout.ids`; None for none.
    Returns:
        "text", "one image" and "two images", or the names that `special` gives -> True if the ids are equal. A prompt
        without placeholders has the second alone. A folder whose processor transformers does not open gives the key
        "not compared" with the reason.
    """
    if type(config) not in PROCESSOR_MAPPING:
        return {"not compared": f"transformers has no processor for {config.model_type}"}
    try:
        processor = processor_of(config, folder)
    except (ImportError, OSError, ValueError) as error:
        return {"not compared": first_line(error)}
    if special is not None:
        document = Document("proof", (Turn("user", (pictures[0], question)), Turn("assistant", (ANSWER,))))
        batch = collate([module.processor.sample(document)], module.processor)
        pairs = special(module, processor, batch, pictures[0].read(), question, ANSWER)
        return {name: ours == expected for name, (ours, expected) in pairs.items()}
    if "image_token" not in vars(processor):
        return {"not compared": "transformers' processor writes no places of pictures"}
    prompt, asking = module.processor.prompt, module.processor.for_questions()
    chats = isinstance(prompt, Rendered)
    counts = {"text": 0, "one image": 1, "two images": 2} if chats else {"one image": 1}
    equal: dict[str, Any] = {}
    for name, count in counts.items():
        document = Document("proof", (Turn("user", (*pictures[:count], question)),))
        batch = collate([asking.sample(document)], asking)
        ids = batch.ids[0].index_fill(0, batch.visual, IMAGE).tolist()
        plain = prompt.rendered(question) if isinstance(prompt, Asked) else question
        text = prompt.text(document)[0] if chats else plain
        images = [picture.read() for picture in pictures[:count]] or None
        encoded = processor(text=text, images=images, return_tensors="pt")
        equal[name] = alike(ids, encoded["input_ids"][0].tolist(), processor)
        if batch.texts is not None and "qformer_tokenizer" in vars(processor):
            plain = processor.qformer_tokenizer(question, add_special_tokens=False)["input_ids"]
            equal["second text"] = batch.texts.ids[0, 1:-1].tolist() == plain
    return equal


def processor_of(config: PretrainedConfig, folder: Path) -> ProcessorMixin:
    """Open transformers' processor of a checkpoint.

    Settings that the files lack come from the config, as transformers says for old files. The check of classes is left
    out, because it imports every optional tokenizer of transformers, installed or not.
    """
    family = PROCESSOR_MAPPING[type(config)]
    unchecked = type(family.__name__, (family,), {"check_argument_for_proper_class": lambda *arguments: None})
    processor = unchecked.from_pretrained(folder)
    settings = vars(processor)
    missing = [key for key in KEYS if key in settings and settings[key] is None]
    for key in missing:
        settings[key] = KEYS[key](config)
    if "patch_size" in missing:
        settings["num_additional_image_tokens"] = 1  # the class token
    return processor


def alike(ids: list[int], encoded: list[int], processor: ProcessorMixin) -> bool:
    """Compare our ids, which have `IMAGE` for pictures, with those of transformers, see `compare_ids`."""
    tokenizer = processor.tokenizer
    image, blank = tokenizer.convert_tokens_to_ids(str(processor.image_token)), tokenizer.get_vocab().get(BLANK)
    ids, encoded = (
        [number for before, number in pairwise([None, *row]) if not (before == IMAGE and number == blank)]
        for row in (ids, [IMAGE if number == image else number for number in encoded])
    )
    first = next((place for place, number in enumerate(ids) if number != IMAGE), 0)
    writes_first = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return ids == encoded or (not writes_first and ids[:first] + ids[first + 1 :] == encoded)
