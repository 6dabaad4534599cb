"""A Gemma decoder that takes embeddings and packed rows."""

from __future__ import annotations

import torch
from transformers import GemmaConfig, GemmaForCausalLM

from lit_mm.errors import UserError
from lit_mm.language.causal import CausalDecoder
from lit_mm.layers.activations import Checkpointing
from lit_mm.layers.attention import NAME, Backend


class Gemma(CausalDecoder):
    """The Gemma of transformers, fed with embeddings. Weights are random until a checkpoint is loaded.

    Text embeddings are multiplied by the root of the width; vectors that replace them are taken as they are. The
    embedding table is the output projection.

    Args:
        width: E, width of the hidden states.
        layers: number of decoder layers.
        heads, kv_heads: number of query heads, and of the key/value heads that they share.
        ffn_width: hidden width of the gated feed-forward.
        vocab_size: number of token ids.
        head_width: width of one head.
        rope_theta: base of the rotary frequencies.
        norm_eps: epsilon of the RMS norms.
        max_positions: length of the longest sample in training, tokens. It is information only.
        activation_checkpointing, weights, attention, compile: see `CausalDecoder`.
    Raises:
        UserError: `kv_heads` does not divide `heads`, or selective checkpointing is set without `compile`.
    Source: transformers' GemmaForCausalLM.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        kv_heads: int,
        ffn_width: int,
        vocab_size: int,
        head_width: int = 256,
        rope_theta: float = 10000.0,
        norm_eps: float = 1e-6,
        max_positions: int = 8192,
        activation_checkpointing: Checkpointing = "none",
        weights: str | None = None,
        attention: Backend = "auto",
        compile: bool = False,
    ) -> None:
        if heads % kv_heads:
            raise UserError(f"Gemma: `heads` must be a multiple of `kv_heads`, got {heads=}, {kv_heads=}")
        config = GemmaConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_width,
            intermediate_size=ffn_width,
            vocab_size=vocab_size,
            rope_parameters={"rope_type": "default", "rope_theta": float(rope_theta)},
            rms_norm_eps=norm_eps,
            max_position_embeddings=max_positions,
            tie_word_embeddings=True,
            pad_token_id=None,  # special ids belong to the processor
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
            # pyrefly: ignore[unexpected-keyword]  # every config of transformers takes it through **kwargs
            attn_implementation=NAME,
        )
        super().__init__(GemmaForCausalLM(config), activation_checkpointing, weights, attention, compile)

    def restore_buffers(self) -> None:
        """Recompute the rotary frequencies and the scale of the embeddings, which no checkpoint holds."""
        super().restore_buffers()
        table = self.lm.model.embed_tokens
        table.embed_scale = torch.tensor(table.scalar_embed_scale, device=table.weight.device)
