"""A Persimmon decoder that takes embeddings and packed rows: the language model of Fuyu."""

from __future__ import annotations

from transformers import PersimmonConfig, PersimmonForCausalLM

from lit_mm.errors import UserError
from lit_mm.language.causal import CausalDecoder
from lit_mm.layers.activations import Checkpointing
from lit_mm.layers.attention import NAME, Backend


class Persimmon(CausalDecoder):
    """The Persimmon of transformers, fed with embeddings. Weights are random until a checkpoint is loaded.

    Every head has a layer norm on queries and on keys, before its first channels are rotated. The feed-forward has a
    squared ReLU. All linears have biases except the output projection; norms are layer norms.

    Args:
        width: E, width of the hidden states.
        layers: number of decoder layers.
        heads: number of attention heads.
        ffn_width: hidden width of the feed-forward.
        vocab_size: number of token ids.
        rope_theta: base of the rotary frequencies. transformers' default is 10000, the published models need 25000.
        rotary_share: share of a head's channels that are rotated.
        norm_eps: epsilon of the layer norms.
        max_positions: length of the longest sample in training, tokens. It is information only.
        activation_checkpointing: tensors that each layer keeps for the backward pass: "none" keeps its activations,
            "full" its inputs, "selective" (with `compile`) its inputs and its products.
        weights: reference of a checkpoint, which a later step loads explicitly; the constructor reads nothing.
        attention: backend for flat rows, see `lit_mm.language.llama.Llama`.
        compile: True compiles the layers by `torch.compile` while they train.
    Raises:
        UserError: `heads` does not divide `width`, or selective checkpointing is set without `compile`.
    Source: transformers' PersimmonForCausalLM; configuration of adept/fuyu-8b.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        ffn_width: int,
        vocab_size: int,
        rope_theta: float = 25000.0,
        rotary_share: float = 0.5,
        norm_eps: float = 1e-5,
        max_positions: int = 16384,
        activation_checkpointing: Checkpointing = "none",
        weights: str | None = None,
        attention: Backend = "auto",
        compile: bool = False,
    ) -> None:
        if width % heads:
            raise UserError(f"Persimmon: `heads` must divide `width`, got {width=}, {heads=}")
        config = PersimmonConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=ffn_width,
            vocab_size=vocab_size,
            hidden_act="relu2",
            qk_layernorm=True,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": float(rope_theta),
                "partial_rotary_factor": rotary_share,
            },
            layer_norm_eps=norm_eps,
            max_position_embeddings=max_positions,
            tie_word_embeddings=False,
            pad_token_id=None,  # special ids belong to the processor
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
            # pyrefly: ignore[unexpected-keyword]  # every config of transformers takes it through **kwargs
            attn_implementation=NAME,
        )
        super().__init__(PersimmonForCausalLM(config), activation_checkpointing, weights, attention, compile)
