"""A Llama decoder that takes embeddings and packed rows. InternLM2, Vicuna and Llama checkpoints map onto it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import lit_mm.layers.attention  # noqa: F401  registers the kernel that the config names
from lit_mm.errors import UserError
from lit_mm.language.routed import Routing
from lit_mm.layers.activations import checkpoint_activations


@dataclass
class DecodeCache:
    """Keys and values of earlier calls, and which sample each key belongs to (a key of padding stays invisible).

    Make an empty one per generation, pass it to every call of `Llama.forward`; the call extends it.

    Attributes:
        states: keys and values by layer.
        key_segments: [B, T] segment ids of the T positions seen so far; None before the first call.
    """

    states: DynamicCache = field(default_factory=DynamicCache)
    key_segments: Tensor | None = None

    @property
    def length(self) -> int:
        """Positions seen so far, padding included."""
        return 0 if self.key_segments is None else self.key_segments.shape[1]

    def extend(self, segment_ids: Tensor) -> Tensor:
        """Append the segment ids [B, L] of a call's positions; returns those of all keys, [B, T + L]."""
        seen = self.key_segments
        self.key_segments = segment_ids if seen is None else torch.cat([seen, segment_ids], dim=1)
        return self.key_segments

    def reorder(self, rows: Tensor) -> None:
        """Keep the rows [B'] in this order (beam search, finished samples leaving)."""
        self.states.batch_select_indices(rows)
        if self.key_segments is not None:
            self.key_segments = self.key_segments[rows]


def attention_mask(segment_ids: Tensor, key_segments: Tensor | None = None) -> Tensor:
    """Who sees whom: the same sample, and not later in the row.

    Padding sees itself only: a row of the mask without any True makes softmax divide by zero.

    Args:
        segment_ids: [B, L] sample of each query, from 1; 0 is padding.
        key_segments: [B, T] samples of all keys, the L queries being the last; None: the queries alone, T = L.
    Returns:
        [B, 1, L, T] boolean, True where the query (row) attends to the key (column).

    Example: segments (1, 1, 2, 0) -> rows (1000), (1100), (0010), (0001).
    """
    keys = segment_ids if key_segments is None else key_segments
    length, total = segment_ids.shape[1], keys.shape[1]
    query_at = torch.arange(total - length, total, device=segment_ids.device)[:, None]  # [L, 1]
    key_at = torch.arange(total, device=segment_ids.device)
    same = (segment_ids[:, :, None] == keys[:, None, :]) & (segment_ids > 0)[:, :, None]  # [B, L, T]
    return ((same & (key_at <= query_at)) | (key_at == query_at)).unsqueeze(1)


def segment_lengths(segment_ids: Tensor) -> list[int]:
    """Lengths of the segments of [B, L] in reading order, row after row; padding is a segment, or two.

    Example: segments (1, 1, 2, 0) and (1, 0, 0, 0) -> [2, 1, 1, 1, 3].
    """
    rows = torch.arange(len(segment_ids), device=segment_ids.device)[:, None]
    apart = segment_ids + rows * (int(segment_ids.max()) + 1)  # a number of its own for every segment of every row
    return torch.unique_consecutive(apart, return_counts=True)[1].tolist()


class Llama(nn.Module):
    """transformers' Llama, fed with embeddings. Weights are random until a checkpoint is loaded.

    Letters: B rows, L positions, T keys, E width.

    Args:
        width: E, of the hidden states.
        layers: decoder layers.
        heads, kv_heads: query heads, and the key/value heads they share.
        ffn_width: hidden width of the SwiGLU feed-forward.
        vocab_size: token ids.
        head_width: of one head; None: width / heads.
        rope_theta: base of the rotary frequencies.
        norm_eps: of the RMS norms.
        max_positions: longest sample trained on, tokens. Information only: rotary positions need no table.
        attention_bias: biases on the four attention linears; "qkv", on the first three (Qwen).
        tie_embeddings: the output projection is the embedding table.
        activation_checkpointing: recompute each layer in the backward pass (training only; not with a cache).
        weights: reference of the checkpoint that a later, explicit step loads; nothing is read here.
    Raises:
        UserError: heads that do not divide.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        kv_heads: int,
        ffn_width: int,
        vocab_size: int,
        head_width: int | None = None,
        rope_theta: float = 10000.0,
        norm_eps: float = 1e-5,
        max_positions: int = 4096,
        attention_bias: bool | Literal["qkv"] = False,
        tie_embeddings: bool = False,
        activation_checkpointing: bool = False,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if width % heads or heads % kv_heads:
            raise UserError(
                "Llama: `heads` must divide `width` and be a multiple of `kv_heads`, "
                f"got {width=}, {heads=}, {kv_heads=}"
            )
        self.width, self.num_layers, self.vocab_size = width, layers, vocab_size
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, head_width or width // heads
        self.tie_embeddings = tie_embeddings
        self.weights = weights
        self.routed = False  # a function that routes linears (`apply_partial_lora`) sets it
        self.lm = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=kv_heads,
                head_dim=self.head_width,
                intermediate_size=ffn_width,
                vocab_size=vocab_size,
                rope_parameters={"rope_type": "default", "rope_theta": float(rope_theta)},
                rms_norm_eps=norm_eps,
                max_position_embeddings=max_positions,
                attention_bias=bool(attention_bias),
                attention_dropout=0.0,
                tie_word_embeddings=tie_embeddings,
                bos_token_id=None,  # special ids belong to the processor
                eos_token_id=None,
                use_cache=False,
                attn_implementation="lit_mm",  # registered by `lit_mm.layers.attention`
            )
        )
        if attention_bias == "qkv":
            for layer in self.decoder_layers:
                layer.self_attn.o_proj.register_parameter("bias", None)
        self.activation_checkpointing = activation_checkpointing
        if activation_checkpointing:
            checkpoint_activations(self.lm)

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """transformers' decoder layers, each with `self_attn` and `mlp`."""
        return self.lm.model.layers

    def restore_buffers(self) -> None:
        """Recompute the rotary frequencies, which no checkpoint holds; needed after a build on the meta device."""
        rotary = self.lm.model.rotary_emb
        device = self.lm.model.embed_tokens.weight.device
        with torch.device(device):
            frequencies, _ = rotary.compute_default_rope_parameters(rotary.config)
        rotary.inv_freq, rotary.original_inv_freq = frequencies, frequencies.clone()

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [B, L] -> text embeddings [B, L, E]."""
        return self.lm.model.embed_tokens(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., E] -> [..., vocabulary]. Project only the positions you need: it is the widest layer."""
        return self.lm.lm_head(hidden)

    def forward(
        self,
        inputs_embeds: Tensor,
        *,
        segment_ids: Tensor,
        position_ids: Tensor,
        visual_mask: Tensor | None = None,
        cache: DecodeCache | None = None,
    ) -> Tensor:
        """Embeddings [B, L, E] -> hidden states [B, L, E] after the last norm; meaningless at padding.

        Args:
            segment_ids: [B, L] sample of each position, from 1; 0 is padding, on either side. The positions of a
                sample are next to each other; samples are blind to each other.
            position_ids: [B, L] position inside its own sample.
            visual_mask: [B, L] True on visual tokens, read by routed linears; None where there is none (a prompt of
                text, cached decoding): routed linears are then exactly the plain ones. Without routed linears it
                changes nothing.
            cache: extended by this call; its earlier keys are seen by the queries of the same segment.
        Raises:
            UserError: a cache together with activation checkpointing while training, which would drop the cache.
        """
        if cache is not None and self.activation_checkpointing and self.training:
            raise UserError("Llama: cached decoding with activation checkpointing needs `.eval()` first")
        keys = None if cache is None else cache.extend(segment_ids)
        first = keys is None or keys.shape == segment_ids.shape
        apart = first and segment_ids.device.type == "cpu"  # on a GPU one call under a mask is the faster way
        routing = Routing.of(visual_mask) if self.routed and visual_mask is not None else None
        return self.lm.model(
            inputs_embeds=inputs_embeds,
            attention_mask=None if apart else attention_mask(segment_ids, keys),
            segment_lengths=segment_lengths(segment_ids) if apart else None,
            position_ids=position_ids,
            past_key_values=None if cache is None else cache.states,
            use_cache=cache is not None,
            routing=routing,
        ).last_hidden_state
