"""BLIP: a mixture of encoder and decoder that compares images with texts, matches them and writes captions."""

from __future__ import annotations

from torch import nn

from lit_mm.evaluation.retrieval import TwoStepRetrieval
from lit_mm.language.med import MED
from lit_mm.layers.protocols import complete
from lit_mm.module import MultimodalModule
from lit_mm.objectives.captioning import Captioning
from lit_mm.objectives.image_text import ImageTextModel
from lit_mm.objectives.objective import Objective
from lit_mm.objectives.pairs import Matching, MomentumContrast
from lit_mm.objectives.retrieval_pairs import RetrievalMatching
from lit_mm.prompts.caption import Caption
from lit_mm.prompts.source import load_tokenizer
from lit_mm.samples.inputs import BLACK, Inputs
from lit_mm.samples.layout import NoTokens
from lit_mm.samples.processor import Processor
from lit_mm.tiling.plan import Stretch
from lit_mm.vision.protocol import Patched

FIRST_OF_SIX = 1 / 6  # share of the fine-tuning for retrieval, one of six epochs, in which the labels become soft


class Blip(MultimodalModule):
    """BLIP. Parts: vision, text (embeddings, cross-attention, feed-forward), encoder, decoder, contrast, matching.

    The parts "encoder" and "decoder" are the self-attentions of the text transformer in its modes; the head that
    predicts text belongs to the decoder. Momentum copies and queue are buffers. Objectives: "itc", "itm" and "lm";
    "itc_finetune", "itc" with a longer rise of alpha; "itm_finetune", with negatives from the pairs of all ranks.
    Pre-training weighs the first three, a captioner "lm" alone, a retrieval model the last two, with `image_ids: true`
    in its inputs, so that all texts of an image are right.

    Args:
        vision: vision encoder with a class token, see `lit_mm.vision.protocol.Patched`. Published: `TimmViT`, B or L.
        text: mixture of encoder and decoder.
        tokenizer: reference of the tokenizer: "nano", a tokenizer.json, a folder, or a published name.
        encoder_id: id of the text encoder's first token. BERT: 101, [CLS].
        decoder_id: id of the decoder's first token, [DEC].
        grounded_id: id of the image-grounded encoder's first token, [ENC].
        width: width of the space in which images and texts are compared.
        temperature: initial temperature of the contrast.
        momentum: share of the momentum copies that stays in a step.
        queue_size: number of earlier pairs to compare with.
        objectives: name -> objective, in place of the default ones; None: those above.
        candidates: number of candidates per query that the matching head reorders in an examination. Published:
            256 for COCO, 128 for Flickr30K.
        inputs: changes of tiling, layout, prompt and lengths for the model in use and all stages; a stage may change
            them further. None: images are stretched to squares, captions are cleaned and cut to 30 tokens.
    Source: arXiv:2201.12086, section 3; github.com/salesforce/BLIP.
    """

    def __init__(
        self,
        vision: nn.Module,
        text: MED,
        tokenizer: str,
        encoder_id: int = 101,
        decoder_id: int = 30522,
        grounded_id: int = 30523,
        width: int = 256,
        temperature: float = 0.07,
        momentum: float = 0.995,
        queue_size: int = 57600,
        objectives: dict[str, Objective] | None = None,
        candidates: int = 128,
        inputs: Inputs | None = None,
    ) -> None:
        complete(vision, Patched, "vision encoder")
        default = Inputs(
            tiling=Stretch(vision.image_size),
            layout=NoTokens(),
            prompt=Caption(decoder_id),
            max_length=text.positions.num_embeddings,
            fill=BLACK,
        )
        combined = default if inputs is None else inputs.over(default)
        super().__init__(
            network=ImageTextModel(
                vision,
                text,
                (encoder_id, grounded_id, decoder_id),
                width=width,
                temperature=temperature,
                rate=momentum,
                queue_size=queue_size,
            ),
            processor=lambda: Processor.of(load_tokenizer(tokenizer), combined, vision.patch_grid),
            objectives=objectives
            or {
                "itc": MomentumContrast(),
                "itm": Matching(),
                "lm": Captioning(),
                "itc_finetune": MomentumContrast(ramp=FIRST_OF_SIX),
                "itm_finetune": RetrievalMatching(),
            },
        )
        self.examiner = TwoStepRetrieval(candidates)
