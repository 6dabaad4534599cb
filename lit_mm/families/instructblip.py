"""InstructBLIP: the instruction guides the Q-Former, and the language model reads it behind the visual tokens."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lit_mm.connectors.qformer_paired import PairedQFormer
from lit_mm.errors import UserError
from lit_mm.evaluation.candidates import Ranking
from lit_mm.families.composition import compose
from lit_mm.language.protocol import LanguageModel
from lit_mm.module import MultimodalModule
from lit_mm.objectives.next_token import NextToken
from lit_mm.objectives.query_pairs import pair_objectives
from lit_mm.prompts.instructblip import InstructBlipPrompt
from lit_mm.samples.inputs import BLACK, Inputs
from lit_mm.samples.layout import InOrder
from lit_mm.samples.reading import Reading
from lit_mm.stages.stage import Stage
from lit_mm.tiling.plan import Stretch


class InstructBlip(MultimodalModule):
    """InstructBLIP. Parts: vision, connector, text_branch, projection, language; text_head, contrast, matching.

    The parts are BLIP-2's. Instruction tuning trains "connector", "text_branch" and "projection"; "text_branch" then
    starts from the end of BLIP-2's first stage and the others from the end of its second, which leaves it frozen. A
    recipe may train both stages of BLIP-2 before, if the connector has their heads ("text_head", "contrast" and
    "matching"): the reading is "caption" in the first and "none" in the second. Objectives are those of BLIP-2. The
    likelihood of a candidate is the sum over its tokens, and over eos with an encoder-decoder.

    Args:
        vision: vision encoder, see `lit_mm.vision.protocol.Patched`. Published: EVA ViT-g without the last block and
            with the class token.
        language: decoder or encoder-decoder. Published: Vicuna v1.1, FlanT5.
        tokenizer: reference of the language model's tokenizer: "nano", a tokenizer.json, a folder, or a published name.
        connector: class or function that builds the Q-Former from (vision width, language width). `reads_text: false`
            is the published ablation without instructions in the Q-Former.
        reading: rule for the instruction that the Q-Former reads. Published: BERT's tokenizer, 128 tokens, the start
            of a longer instruction is cut off.
        image_size: side of the view, pixels; a tiling in `inputs` overrides it.
        label_smoothing: label smoothing of "itc" and "itg".
        inputs: changes of tiling, layout, prompt and lengths for the model in use and all stages; a stage may change
            them further. None: images are stretched to squares, and `InstructBlipPrompt` is the template.
    Raises:
        UserError: the model in use would read no instruction with its Q-Former.
    Source: arXiv:2305.06500; lavis/models/blip2_models of github.com/salesforce/LAVIS.
    """

    def __init__(
        self,
        vision: nn.Module,
        language: LanguageModel,
        tokenizer: str,
        connector: Callable[[int, int], PairedQFormer],
        reading: Reading,
        image_size: int = 224,
        label_smoothing: float = 0.1,
        inputs: Inputs | None = None,
    ) -> None:
        qformer = connector(vision.width, language.width)
        if qformer.reads_text and reading.text != "instruction":
            raise UserError(
                f"InstructBlip: the Q-Former reads instructions, got a `reading` of text {reading.text!r}. Set `text: "
                "instruction`; stages before instruction tuning change it in their `inputs`"
            )
        default = Inputs(
            tiling=Stretch(image_size),
            layout=InOrder(),
            prompt=InstructBlipPrompt(writes_target=language.writes_target),
            max_length=2048,
            fill=BLACK,
            reading=reading,
        )
        compares = qformer.contrast is not None
        super().__init__(
            **compose(vision, qformer, language, tokenizer, inputs, default),
            objectives={"next_token": NextToken()} | (pair_objectives(label_smoothing) if compares else {}),
        )
        self.ranking = Ranking("sum", end=language.writes_target)

    def check_recipe(self, stages: list[Stage]) -> None:
        """See `MultimodalModule.check_recipe`.

        Raises:
            UserError: the Q-Former would read the caption that the language model learns to write.
        """
        super().check_recipe(stages)
        connector = self.network.connector
        assert connector is not None
        for stage in stages:
            readings = [processor.reading for processor in self.processors_of(stage).values()]
            reads_captions = connector.reads_text and any(of is not None and of.text == "caption" for of in readings)
            if reads_captions and "next_token" in self.weights_of_objectives(stage):
                raise UserError(
                    f"stages.{stage.name}.inputs.reading: the Q-Former would read the caption that `next_token` "
                    "learns. Set `text` to instruction, or to none as in BLIP-2's second stage"
                )
