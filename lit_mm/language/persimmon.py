"""A Persimmon decoder that takes embeddings and packed rows: the language model of Fuyu."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PersimmonConfig, PersimmonForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPast

from lit_mm.errors import UserError
from lit_mm.language.protocol import Learnt
from lit_mm.language.state import DecoderState
from lit_mm.layers.activations import Checkpointing, prepare_layers
from lit_mm.layers.attention import NAME, Backend, Segments
from lit_mm.samples.batch import Batch


class Persimmon(nn.Module):
    """The Persimmon of transformers, fed with embeddings. Weights are random until a checkpoint is loaded.

    Every head has a layer norm on queries and on keys, before its first channels are rotated. The feed-forward has a
    squared ReLU. All linears have biases except the output projection; norms are layer norms.

    Letters: N samples, T positions of a flat row, S supervised ones, E width.

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

    writes_target = False

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
        super().__init__()
        if width % heads:
            raise UserError(f"Persimmon: `heads` must divide `width`, got {width=}, {heads=}")
        self.width, self.num_layers, self.vocab_size = width, layers, vocab_size
        self.heads = heads
        self.weights = weights
        self.attention: Backend = attention
        self.lm = PersimmonForCausalLM(
            PersimmonConfig(
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
        )
        self.activation_checkpointing, self.compiled = activation_checkpointing, compile
        prepare_layers(self.lm, activation_checkpointing, compile)

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """transformers' decoder layers, each with `self_attn` and `mlp`."""
        return self.lm.model.layers

    def restore_buffers(self) -> None:
        """Recompute the rotary frequencies, which no checkpoint holds; needed after a build on the meta device."""
        rotary = self.lm.model.rotary_emb
        with torch.device(self.lm.model.embed_tokens.weight.device):
            frequencies, _ = rotary.compute_default_rope_parameters(rotary.config)
        rotary.inv_freq, rotary.original_inv_freq = frequencies, frequencies.clone()

    def embed(self, ids: Tensor) -> Tensor:
        """Embed token ids [...] as text embeddings [..., E]."""
        return self.lm.model.embed_tokens(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """Project hidden states [..., E] to [..., vocabulary], the widest layer; pass only positions that you need."""
        return self.lm.lm_head(hidden)

    def learn(self, embeds: Tensor, batch: Batch) -> Learnt:
        """Run embeddings [1, T, E] of a flat row; return hidden states [S, E] at supervised places, and their ids."""
        hidden = self._read(embeds, batch).last_hidden_state[0]  # [T, E]
        return Learnt(hidden.index_select(0, batch.supervised), batch.labels)

    def begin(self, embeds: Tensor, batch: Batch) -> tuple[Tensor, DecoderState]:
        """Read the prompts of a flat row; return hidden states [N, E] at each sample's last position, and the state.

        Raises:
            UserError: the model trains with activation checkpointing or compiled layers, which would drop keys and
                values.
        """
        if (self.activation_checkpointing != "none" or self.compiled) and self.training:
            raise UserError("Persimmon: cached decoding with checkpointed or compiled layers needs `.eval()` first")
        cache = DynamicCache()
        hidden = self._read(embeds, batch, cache).last_hidden_state[0]
        ends = torch.tensor(batch.lengths, device=hidden.device).cumsum(0) - 1
        return hidden[ends], DecoderState.of_row(cache, batch.lengths, batch.positions)

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Read one more token [N] of every sample; return hidden states [N, E]."""
        mask, positions = state.extend()
        return self.lm.model(
            inputs_embeds=self.embed(tokens[:, None]),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=state.cache,
            use_cache=True,
        ).last_hidden_state[:, 0]

    def _read(self, embeds: Tensor, batch: Batch, cache: DynamicCache | None = None) -> BaseModelOutputWithPast:
        """Run the decoder layers over a flat row."""
        return self.lm.model(
            inputs_embeds=embeds,
            segments=Segments(batch.lengths, backend=self.attention, device=embeds.device),
            position_ids=batch.positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
