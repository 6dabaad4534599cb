"""These key maps rename Mini-Gemini checkpoints of the authors: LLaVA's maps, the mining linears, the fine encoder.

Unknown keys pass through; `load_strict` reports them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from lit_mm.weights.internlm2 import llama_to_llama
from lit_mm.weights.llava import State, llava_to_model

MINING = {"vlm_uni_query_projector.": "query.", "vlm_uni_aux_projector.": "key.", "vlm_uni_val_projector.": "value."}
PREFIXES = ("model.", "")  # of a whole checkpoint, and of mm_projector.bin in some versions
FINE = {"model.vision_tower_aux.vision_stem.": "model.stem.", "model.vision_tower_aux.vision_stages.": "model.stages."}


def mini_gemini_to_model(
    state: Mapping[str, Tensor], *, network: str = "network", decoder: Callable[[State], State] = llama_to_llama
) -> State:
    """Rename a checkpoint of the authors to the model; `mm_projector.bin` of a first stage holds the connector alone.

    Checkpoints without the encoders, which stay frozen, give an incomplete state; load CLIP and ConvNeXt as well.

    Args:
        network: name prefix of the network in the target model.
        decoder: key map of the language model.
    Source: github.com/dvlab-research/MGM 769820c, mgm_arch.py and openclip_encoder.py.
    """
    names = {
        f"{prefix}{published}": f"{network}.connector.{attribute}"
        for published, attribute in MINING.items()
        for prefix in PREFIXES
    }
    names |= {published: f"{network}.vision.high.{inner}" for published, inner in FINE.items()}
    mapped: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in state.items():
        prefix = next((prefix for prefix in names if name.startswith(prefix)), None)
        if prefix is not None:
            mapped[names[prefix] + name.removeprefix(prefix)] = tensor
        else:
            rest[f"model.{name}" if name.startswith("mm_projector.") else name] = tensor
    return mapped | llava_to_model(
        rest,
        vision=f"{network}.vision.low",
        connector=f"{network}.connector.projector",
        language=f"{network}.language",
        decoder=decoder,
    )
