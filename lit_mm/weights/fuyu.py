"""These key maps rename Fuyu checkpoints, in transformers' names of version 5 or before, to the model.

Unknown keys pass through; `load_strict` reports them.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lit_mm.weights.names import add_prefix

# Prefixes in transformers 5, in older files (those on the hub), and in `LinearPatches` and `Pretrained`
VISION = (("model.vision_embed_tokens.", "vision_embed_tokens."), "projection.")
LANGUAGE = (
    (("model.language_model.", "language_model.model."), "lm.model."),
    (("lm_head.", "language_model.lm_head."), "lm.lm_head."),
)
RECOMPUTED = "rotary_emb.inv_freq"  # older files hold the rotary frequencies


def fuyu_parts(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Sort a checkpoint into `vision` (`LinearPatches`), `language` (`Pretrained`) and `rest` (unknown keys)."""
    parts: dict[str, dict[str, Tensor]] = {"vision": {}, "language": {}, "rest": {}}
    for name, tensor in state.items():
        if name.endswith(RECOMPUTED):
            continue
        part, renamed = _renamed(name)
        parts[part][renamed] = tensor
    return parts


def _renamed(name: str) -> tuple[str, str]:
    """Return the part of a tensor and its name in that part."""
    for part, (prefixes, prefix) in (("vision", VISION), *(("language", pair) for pair in LANGUAGE)):
        for published in prefixes:
            if name.startswith(published):
                return part, prefix + name.removeprefix(published)
    return "rest", name


def fuyu_to_model(state: Mapping[str, Tensor], *, network: str = "network") -> dict[str, Tensor]:
    """Rename transformers' FuyuForCausalLM, of version 5 or before, to the model.

    Args:
        network: name prefix of the network in the target model.
    """
    parts = fuyu_parts(state)
    vision = add_prefix(parts["vision"], f"{network}.vision")
    return parts["rest"] | vision | add_prefix(parts["language"], f"{network}.language")
