"""Mini-Gemini: two vision encoders, of which a fine one answers the queries of a coarse one (patch info mining)."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lit_mm.connectors.patch_info_mining import PatchInfoMining
from lit_mm.families.composition import compose
from lit_mm.language.protocol import LanguageModel
from lit_mm.module import MultimodalModule
from lit_mm.prompts.llava import ChatPrompt
from lit_mm.samples.inputs import MEAN_COLOUR, Inputs
from lit_mm.samples.layout import InOrder
from lit_mm.tiling.square import Pad
from lit_mm.vision.dual import DualEncoder


class MiniGemini(MultimodalModule):
    """Mini-Gemini. Parts: vision, second_vision, connector, language.

    The image is padded to a square of the fine size, 768 pixels, with CLIP's mean colour. A ViT reads a copy of 336
    pixels, a ConvNeXt the whole; each of the 576 coarse patches mines the 8 x 8 fine cells under it and becomes one
    visual token. The HD variant reads 1536 pixels: an overview and 2 x 2 tiles make 5 x 576 = 2880 tokens, overview
    first, without separators. It has no first stage of its own: its connector starts from that of the 336 / 768 model
    (`fit --init_from`). The released first stage crops instead of padding.

    Templates are those of the language model: "vicuna_v1", "gemma", "llama_3", "mistral_instruct" or "chatml_direct" of
    `ChatPrompt`. The first stage uses `Plain`, but the chat template for Gemma and LLaMA-3.

    Args:
        vision: the two encoders.
        language: decoder.
        tokenizer: reference of the tokenizer: "nano", a tokenizer.json, a folder, or a published name.
        connector: class or function that builds the connector from (coarse width, fine width, language width).
        inputs: changes of tiling, layout, prompt and lengths for the model in use and all stages; a stage may change
            them further. None: the inputs that the class describes.
    Source: arXiv:2403.18814; github.com/dvlab-research/MGM 769820c. The released scripts leave the frozen ConvNeXt in
        training mode, with its drop path of 0.1, unless they end in `_nodp`. A frozen part is in evaluation mode here;
        `noisy` of a stage brings the drop path back.
    """

    def __init__(
        self,
        vision: DualEncoder,
        language: LanguageModel,
        tokenizer: str,
        connector: Callable[[int, int, int], nn.Module] = PatchInfoMining,
        inputs: Inputs | None = None,
    ) -> None:
        mining = connector(vision.width, vision.second_width, language.width)
        default = Inputs(
            tiling=Pad(vision.image_size),
            layout=InOrder(),
            prompt=ChatPrompt(),
            max_length=2048,
            fill=MEAN_COLOUR,
        )
        super().__init__(**compose(vision, mining, language, tokenizer, inputs, default))
