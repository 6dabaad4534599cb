"""VILA: LLaVA-1.5's parts, and pre-training of the language model on interleaved pages in between."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lit_mm.connectors.mlp import MLPProjector
from lit_mm.families.composition import compose
from lit_mm.language.llama import Llama
from lit_mm.module import MultimodalModule
from lit_mm.prompts.llava import ChatPrompt
from lit_mm.samples.inputs import MEAN_COLOUR, Inputs
from lit_mm.samples.layout import InOrder
from lit_mm.tiling.square import Pad


class Vila(MultimodalModule):
    """VILA. Parts: vision, connector, language.

    Every image becomes 576 visual tokens where it stands in the text, any number of images a document, no separator.
    The projector is warmed up on captions; then projector and language model learn on interleaved pages and pairs
    (`Interleaved`), then on chats with text alone among them. A document's own system turn replaces the template's.

    Args:
        vision: a `lit_mm.model.VisionEncoder`.
        language: the decoder.
        tokenizer: tokenizer of the language model: "nano", a tokenizer.json, a folder, or a published name.
        image_size: side of the view, pixels; not read if `inputs` names a tiling.
        connector: makes a `lit_mm.model.Connector`; called with (vision width, language width). `MLPProjector` is that
            of the released 1.0, `linear_projector` the paper's, `DownsampleMLP` 1.5's.
        inputs: changes of tiling, layout, prompt and lengths for the model in use and all stages; a stage may change
            them further. None: as described above.
    Source: arXiv:2312.07533; github.com/NVlabs/VILA eaadb1e. The paper's projector is linear, the release's an MLP.
    """

    def __init__(
        self,
        vision: nn.Module,
        language: Llama,
        tokenizer: str,
        image_size: int = 336,
        connector: Callable[[int, int], nn.Module] = MLPProjector,
        inputs: Inputs | None = None,
    ) -> None:
        projector = connector(vision.width, language.width)
        default = Inputs(
            tiling=Pad(image_size),
            layout=InOrder(),
            prompt=ChatPrompt(),
            max_length=4096,
            fill=MEAN_COLOUR,
        )
        super().__init__(**compose(vision, projector, language, tokenizer, inputs, default))
