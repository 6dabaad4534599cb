"""This key map renames Q-Former checkpoints of LAVIS and XComposer to `QFormer`.

Unknown keys pass through; `load_strict` reports them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

LAYER = re.compile(r"bert\.encoder\.layer\.(\d+)\.(.+)\.(weight|bias)")
PARTS = {
    f"{source}.{piece}": f"{target}.{name}"
    for source, target in (("attention", "attention"), ("crossattention", "cross"))
    for piece, name in (
        ("self.query", "query"),
        ("self.key", "key"),
        ("self.value", "value"),
        ("output.dense", "out"),
        ("output.LayerNorm", "norm"),
    )
} | {
    f"{piece}{branch}": f"{target}.{name}"
    for branch, target in (("_query", "query_ffn"), ("", "text_ffn"))
    for piece, name in (("intermediate", "fc1"), ("output", "fc2"))
}
TOP = {
    "bert.embeddings.word_embeddings.weight": "words.weight",
    "bert.embeddings.position_embeddings.weight": "positions.weight",
    "bert.embeddings.LayerNorm.weight": "norm.weight",
    "bert.embeddings.LayerNorm.bias": "norm.bias",
    "cls.predictions.bias": "head.bias",
    "cls.predictions.transform.dense.weight": "head.dense.weight",
    "cls.predictions.transform.dense.bias": "head.dense.bias",
    "cls.predictions.transform.LayerNorm.weight": "head.norm.weight",
    "cls.predictions.transform.LayerNorm.bias": "head.norm.bias",
}
UNUSED = (
    "bert.embeddings.position_ids",  # the constants 0, 1, 2, ...
    "cls.predictions.decoder.weight",  # tied to the embedding table
    "cls.predictions.decoder.bias",  # tied to cls.predictions.bias
)
QUERIES = "query_tokens"


def lavis_to_qformer(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the names below `Qformer.`, and `query_tokens` [1, Q, W] beside them, to `QFormer`."""
    mapped: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in UNUSED:
            continue
        if name == QUERIES:
            mapped["queries"] = tensor.squeeze(0)
            continue
        match = LAYER.fullmatch(name)
        part = match and (
            PARTS.get(match[2])
            or PARTS.get(match[2].removesuffix(".dense"))  # intermediate.dense, output_query.dense
            or _norm(match[2])
        )
        mapped[f"layers.{match[1]}.{part}.{match[3]}" if part else TOP.get(name, name)] = tensor
    return mapped


def _norm(piece: str) -> str | None:
    """Rename the norms of the two feed-forward branches; None for any other name."""
    return {"output.LayerNorm": "text_ffn.norm", "output_query.LayerNorm": "query_ffn.norm"}.get(piece)
