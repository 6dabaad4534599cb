"""This key map renames XComposer2-4KHD checkpoints: the map of XComposer2, plus the newline and the separator."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lit_mm.weights.xcomposer2 import xcomposer2_to_model

VECTORS = {"plora_sub_GN": "newline", "plora_glb_GN": "separator"}  # the separator follows the global view


def xcomposer2_4khd_to_model(
    state: Mapping[str, Tensor], *, heads: int, kv_heads: int, network: str = "network"
) -> dict[str, Tensor]:
    """Rename a checkpoint of the hub to the model. Unknown keys pass through; `load_strict` reports them.

    Args:
        heads, kv_heads: numbers of query and key/value heads of the language model. Published: 32, 8.
        network: name prefix of the network in the target model.
    Raises:
        UserError: the heads do not divide the packed rows, or a vision block lacks one of q, k and v.
    """
    places = {part: f"{network}.{part}" for part in ("vision", "connector", "language")}
    vectors = {
        f"{network}.connector.{VECTORS[name]}": tensor.flatten() for name, tensor in state.items() if name in VECTORS
    }
    rest = {name: tensor for name, tensor in state.items() if name not in VECTORS}
    return vectors | xcomposer2_to_model(rest, heads=heads, kv_heads=kv_heads, **places)
