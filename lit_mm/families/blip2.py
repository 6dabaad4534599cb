"""BLIP-2: a Q-Former that compares images with texts, and then writes visual tokens for a frozen language model."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lit_mm.connectors.qformer_paired import PairedQFormer
from lit_mm.evaluation.retrieval import TwoStepRetrieval
from lit_mm.families.composition import compose
from lit_mm.language.protocol import LanguageModel
from lit_mm.module import MultimodalModule
from lit_mm.objectives.next_token import NextToken
from lit_mm.objectives.query_pairs import QueryComparison, pair_objectives
from lit_mm.prompts.blip2 import Blip2Caption, PrefixSplit
from lit_mm.samples.inputs import BLACK, Inputs
from lit_mm.samples.layout import InOrder
from lit_mm.samples.reading import Reading
from lit_mm.tiling.plan import Stretch


class Blip2(MultimodalModule):
    """BLIP-2. Parts: vision, connector, text_branch, text_head, contrast, matching, projection, language.

    The part "connector" is the norm of the features and the Q-Former's queries, attentions and feed-forwards of the
    queries. Objectives: "itc" (contrast), "itm" (matching), "itg" (captioning by the Q-Former) and "next_token". The
    first stage weighs the first three and reads neither projection nor language model. The second stage weighs
    "next_token" alone, the default. Fine-tuning for retrieval has `image_ids: true` in its inputs, so that all texts of
    an image are right. A connector without heads has "next_token" alone.

    Args:
        vision: vision encoder, see `lit_mm.vision.protocol.Patched`. Published: EVA ViT-g or CLIP ViT-L, without the
            last block and with the class token.
        language: decoder, or encoder-decoder, whose captions `PrefixSplit` divides. Published: OPT, FlanT5.
        tokenizer: reference of the language model's tokenizer: "nano", a tokenizer.json, a folder, or a published name.
        connector: class or function that builds the Q-Former from (vision width, language width).
        reading: rule for the text that the Q-Former reads. Published: BERT's tokenizer, 32 tokens.
        image_size: side of the view, pixels; a tiling in `inputs` overrides it.
        candidates: number of candidates per query that the matching head reorders in an examination.
        label_smoothing: label smoothing of "itc" and "itg".
        inputs: changes of tiling, layout, prompt and lengths for the model in use and all stages; a stage may change
            them further. None: images are stretched to squares, captions have no lead.
    Source: arXiv:2301.12597, section 3; lavis/models/blip2_models of github.com/salesforce/LAVIS.
    """

    def __init__(
        self,
        vision: nn.Module,
        language: LanguageModel,
        tokenizer: str,
        connector: Callable[[int, int], PairedQFormer],
        reading: Reading,
        image_size: int = 224,
        candidates: int = 128,
        label_smoothing: float = 0.1,
        inputs: Inputs | None = None,
    ) -> None:
        qformer = connector(vision.width, language.width)
        compares = qformer.contrast is not None
        default = Inputs(
            tiling=Stretch(image_size),
            layout=InOrder(),
            prompt=PrefixSplit() if language.writes_target else Blip2Caption(),
            max_length=2048,
            fill=BLACK,
            reading=reading,
        )
        super().__init__(
            **compose(vision, qformer, language, tokenizer, inputs, default),
            objectives={"next_token": NextToken()} | (pair_objectives(label_smoothing) if compares else {}),
        )
        if compares:
            self.examiner = TwoStepRetrieval(candidates, QueryComparison)
