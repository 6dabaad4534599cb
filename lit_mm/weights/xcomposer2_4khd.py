"""XComposer2-4KHD checkpoints -> our model's names: XComposer2's, the newline and the separator."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lit_mm.weights.xcomposer2 import xcomposer2_to_model

VECTORS = {"plora_sub_GN": "newline", "plora_glb_GN": "separator"}  # the latter stands behind the global view


def xcomposer2_4khd_to_model(
    state: Mapping[str, Tensor], *, heads: int, kv_heads: int, network: str = "network"
) -> dict[str, Tensor]:
    """The hub's names -> ours. What no map knows is handed on unchanged, so that `load_strict` names it.

    Args:
        heads, kv_heads: of the language model. Published: 32, 8.
        network: where the parts sit in the model to be loaded.
    Raises:
        UserError: heads that do not fit, an incomplete vision block.
    """
    places = {part: f"{network}.{part}" for part in ("vision", "connector", "language")}
    vectors = {
        f"{network}.connector.{VECTORS[name]}": tensor.flatten() for name, tensor in state.items() if name in VECTORS
    }
    rest = {name: tensor for name, tensor in state.items() if name not in VECTORS}
    return vectors | xcomposer2_to_model(rest, heads=heads, kv_heads=kv_heads, **places)
