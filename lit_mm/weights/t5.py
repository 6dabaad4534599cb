"""This key map renames T5 of transformers to `lit_mm.language.t5.T5`.

Unknown keys pass through; `load_strict` reports them.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # of `shared.weight`


def t5_to_t5(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename T5 v1.1 or FlanT5 of transformers. Copies of the shared embeddings are dropped."""
    return {f"lm.{name}": tensor for name, tensor in state.items() if name not in COPIES}
