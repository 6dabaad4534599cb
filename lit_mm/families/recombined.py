"""Any vision encoder, connector, tiling, layout and language injection, chosen in the recipe."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lit_mm.combination.legal import EVERYTHING
from lit_mm.connectors.learned import WithLearned
from lit_mm.connectors.mlp import MLPProjector
from lit_mm.families.named import Function, resolve
from lit_mm.families.views import Views, make_processor
from lit_mm.fusion.scatter import scatter_visual
from lit_mm.language.llama import Llama
from lit_mm.model import MultimodalModel
from lit_mm.module import MultimodalModule
from lit_mm.prompts.source import load_tokenizer


class Recombined(MultimodalModule):
    """Parts of several papers in one model. Parts: vision, connector, language; one for each name in `learned`; and, if
    there are injections, what they add, named after them (`apply_partial_lora` adds partial_lora).

    Args:
        vision: a `lit_mm.model.VisionEncoder`.
        language: the decoder.
        tokenizer: of the language model: "nano", a tokenizer.json, a folder, or a published name.
        inputs: tiling, layout, prompt and length of the model in use, and of every stage that `by_stage` does not name.
        connector: makes a `lit_mm.model.Connector`; called with (vision width, language width).
        learned: names of vectors beside the connector, which a layout places in this order: [newline, separator].
        injection: what changes the language model, in place: lit_mm.language.partial_lora.apply_partial_lora with
            {rank: 256}, or any other function of a decoder; None: nothing does.
        vision_injection: the same of the vision encoder: lit_mm.vision.window_adapters.apply_window_adapters with
            {windows: 4}, for a tiling that cuts every image into 4 windows.
        by_stage: stage name -> inputs of its training documents.
    Raises:
        UserError: parts that do not go together, with the nearest that do; see `lit_mm.combination.legal`.
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
        vision_injection: str | Function | None = None,
        by_stage: dict[str, Views] | None = None,
    ) -> None:
        projector = connector(vision.width, language.width)
        if learned:
            projector = WithLearned(projector, learned, language.width)
        added = injected(language, "language", injection, "model.init_args.injection")
        added |= injected(vision, "vision", vision_injection, "model.init_args.vision_injection")
        super().__init__(
            network=MultimodalModel(language, vision, projector, fusion=scatter_visual),
            processor=lambda: make_processor(
                load_tokenizer(tokenizer),
                inputs,
                by_stage,
                token_grid=lambda size: projector.token_grid(vision.token_grid(size)),
            ),
            free=EVERYTHING,
        )
        self.by_stage = by_stage or {}
        self.added = added

    def part_of(self, parameter: str) -> str:
        if parameter in self.added:
            return self.added[parameter]
        return (
            parameter.rpartition(".")[2] if parameter.startswith("connector.vectors.") else super().part_of(parameter)
        )


def injected(model: nn.Module, name: str, change: str | Function | None, key: str) -> dict[str, str]:
    """Change a model in place. Returns the parameters it gained -> their part, named after the function.

    Args:
        name: of the model, before those of its parameters.
        key: of the recipe, for errors.
    """
    if change is None:
        return {}
    plain = {id(parameter) for parameter in model.parameters()}
    resolve(change, given=1, key=key)(model)
    path = change.function if isinstance(change, Function) else change
    part = path.rpartition(".")[2].removeprefix("apply_")
    return {f"{name}.{own}": part for own, gained in model.named_parameters() if id(gained) not in plain}
