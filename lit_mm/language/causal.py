"""The base of decoders of transformers that take embeddings and packed rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from lit_mm.errors import UserError
from lit_mm.language.protocol import Learnt
from lit_mm.language.state import DecoderState
from lit_mm.layers.activations import Checkpointing, prepare_layers
from lit_mm.layers.attention import Backend, Segments
from lit_mm.samples.batch import Batch

# N samples, T positions of a flat row, S supervised positions, E width


class CausalDecoder(nn.Module):
    """Runs a decoder of transformers on the flat rows of a batch. Subclasses build the decoder.

    Args:
        lm: model with a head, whose attention is that of `lit_mm.layers.attention`.
        activation_checkpointing: tensors that each layer keeps for the backward pass: "none" keeps its activations,
            "full" its inputs, "selective" (with `compile`) its inputs and its products.
        weights: reference of a checkpoint, which a later step loads explicitly; the constructor reads nothing.
        attention: backend for flat rows, see `lit_mm.language.llama.Llama`.
        compile: True compiles the layers by `torch.compile` while they train.
    Raises:
        UserError: selective checkpointing is set without `compile`.
    """

    writes_target = False

    def __init__(
        self,
        lm: PreTrainedModel,
        activation_checkpointing: Checkpointing,
        weights: str | None,
        attention: Backend,
        compile: bool,
    ) -> None:
        super().__init__()
        self.lm = lm
        self.width, self.vocab_size = lm.config.hidden_size, lm.config.vocab_size
        self.num_layers, self.heads = lm.config.num_hidden_layers, lm.config.num_attention_heads
        self.weights = weights
        self.attention: Backend = attention
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
            raise UserError(
                f"{type(self).__name__}: cached decoding with checkpointed or compiled layers needs `.eval()` first"
            )
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
