"""Any vision encoder, connector, tiling, layout and language injection, chosen in the recipe."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lit_mm.connectors.learned import WithLearned
from lit_mm.connectors.mlp import MLPProjector
from lit_mm.families.views import Chosen, Views
from lit_mm.fusion.scatter import scatter_visual
from lit_mm.language.llama import Llama
from lit_mm.model import MultimodalModel
from lit_mm.module import MultimodalModule
from lit_mm.named import Function, resolve


class Recombined(MultimodalModule):
    """Parts of several papers in one model. Parts: vision, connector, language; one for each name in `learned`; and, if
    there is an injection, what it adds, named after it (`apply_partial_lora` adds partial_lora).

    Args:
        vision: a `lit_mm.model.VisionEncoder`.
        language: the decoder.
        tokenizer: of the language model: "nano", a tokenizer.json, a folder, or a published name.
        inputs: tiling, layout, prompt and length of the model in use, and of every stage that `by_stage` does not name.
        connector: makes a `lit_mm.model.Connector`; called with (vision width, language width).
        learned: names of vectors beside the connector, which a layout places in this order: [newline, separator].
        injection: what changes the language model, in place: lit_mm.language.partial_lora.apply_partial_lora with
            {rank: 256}, or any other function of a decoder; None: nothing does.
        by_stage: stage name -> inputs of its training documents.
    Raises:
        UserError: parts that do not go together, with the nearest that do; see `lit_mm.combination`.
    """

    def __init__(
        self,
        vision: nn.Module,
        language: Llama,
        tokenizer: str,
        inputs: Views,
        connector: Callable[[int, int], nn.Module] = MLPProjector,
        learned: list[str] | None = None,
        injection: str | Function | None = None,
        by_stage: dict[str, Views] | None = None,
    ) -> None:
        bare = connector(vision.width, language.width)
        projector = WithLearned(bare, learned, language.width) if learned else bare
        parts = (vision, projector, bare)
        chosen = Chosen(inputs, "model.init_args.inputs", *parts)
        of_stage = {
            name: Chosen(views, f"model.init_args.by_stage.{name}", *parts) for name, views in (by_stage or {}).items()
        }
        plain = {id(parameter) for parameter in language.parameters()}
        if injection is not None:
            resolve(injection, given=1, key="model.init_args.injection")(language)
        super().__init__(
            network=MultimodalModel(language, vision, projector, fusion=scatter_visual),
            processor=lambda: chosen.processor(tokenizer, of_stage),
        )
        self.by_stage = by_stage or {}
        path = injection.function if isinstance(injection, Function) else injection or ""
        self.injected = path.rpartition(".")[2].removeprefix("apply_")
        self.added = {f"language.{name}" for name, own in language.named_parameters() if id(own) not in plain}

    def part_of(self, parameter: str) -> str:
        if parameter in self.added:
            return self.injected
        return (
            parameter.rpartition(".")[2] if parameter.startswith("connector.vectors.") else super().part_of(parameter)
        )
