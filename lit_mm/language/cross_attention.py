"""Cross-attention in every decoder layer to the features of a second vision encoder, the memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from lit_mm.errors import UserError
from lit_mm.language.llama import Llama
from lit_mm.language.state import MemoryState
from lit_mm.layers.activations import prepare_layers
from lit_mm.layers.attention import Segments, attention, segment_attention


# N samples, T positions of the row, S vectors of the memory, E language width, D memory width, H heads
class CrossAttention(nn.Module):
    """Attention from every position of a row to the memory of its sample, without positions, mask, gate and biases.

    A sample without memory gets zeros. If no sample has memory, the output is zero and every weight has a gradient of
    zero, not a missing one, as distributed training needs.

    Args:
        width: E.
        memory_width: D.
        cross_width: width of queries, keys and values.
        heads: H.
        layer: number of the decoder layer, under which a cache holds keys and values.
    Raises:
        UserError: `heads` does not divide `cross_width`.
    Source: arXiv:2312.08914, equations 1 and 2; class CrossAttention of the release's modeling_cogagent.py.
    """

    def __init__(self, width: int, memory_width: int, cross_width: int, heads: int, layer: int) -> None:
        super().__init__()
        if cross_width % heads:
            raise UserError(f"cross-attention: `heads` must divide `cross_width`, got {heads=}, {cross_width=}")
        self.heads, self.layer = heads, layer
        self.q = nn.Linear(width, cross_width, bias=False)
        self.kv = nn.Linear(memory_width, 2 * cross_width, bias=False)
        self.out = nn.Linear(cross_width, width, bias=False)
        for linear in (self.q, self.kv, self.out):
            nn.init.normal_(linear.weight, std=0.02)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        segments: Segments | None = None,
        state: MemoryState | None = None,
    ) -> Tensor:
        """Read the memory from a row [1, T, E], or from one more token of every sample [N, 1, E] by cached keys.

        Args:
            x: states that make the queries.
            memory: [1, S', D] memory of all samples; vectors behind the S that `segments` counts are not read. None:
                the keys are in `state`.
            segments: numbers of positions and of memory vectors of every sample.
            state: decoding state that gets the keys and values, or holds them; None: no cache.
        Returns:
            Output in the shape of x.
        """
        query = self._heads(self.q(x))
        if memory is None:
            layer = state.cache.layers[self.layer]
            mask = None if state.visible is None else state.visible[:, None, None]
            return self.out(attention(query, layer.keys, layer.values, mask).transpose(1, 2).flatten(2))
        key, value = (self._heads(states) for states in self.kv(memory).chunk(2, dim=-1))  # [1, H, S', D / H]
        if state is not None:
            state.cache.update(key, value, self.layer)
        count = sum(segments.key_lengths)
        if count:
            read = segment_attention(query, key[:, :, :count], value[:, :, :count], segments)
        else:
            read = (0 * (query + (key + value).sum())).transpose(1, 2)
        return self.out(read.flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """[B, L, H D] -> [B, H, L, D]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class CrossLayer(GradientCheckpointingLayer):
    """A decoder layer of Llama with cross-attention between its self-attention and its feed-forward.

    Its modules have the names that they have in the layer which it replaces. Without memory it computes what that layer
    does.

    Args:
        base: layer that is replaced.
        cross_attention: the cross-attention.
        eps: epsilon of the norm before the cross-attention.
    """

    parts_within: ClassVar[dict[str, str]] = {"cross_attention": "cross_attention", "cross_norm": "cross_attention"}

    def __init__(self, base: LlamaDecoderLayer, cross_attention: CrossAttention, eps: float) -> None:
        super().__init__()
        self.self_attn, self.mlp = base.self_attn, base.mlp
        self.input_layernorm, self.post_attention_layernorm = base.input_layernorm, base.post_attention_layernorm
        self.cross_norm = LlamaRMSNorm(cross_attention.q.in_features, eps)
        self.cross_attention = cross_attention

    def forward(
        self,
        hidden_states: Tensor,
        memory: Tensor | None = None,
        memory_segments: Segments | None = None,
        memory_state: MemoryState | None = None,
        **options: object,
    ) -> Tensor:
        """[B, T, E] -> [B, T, E].

        Args:
            hidden_states: input of the layer.
            memory, memory_segments, memory_state: see `CrossAttention`; without memory and state there is no
                cross-attention.
            options: arguments of the self-attention.
        """
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **options)
        x = hidden_states + attended
        if memory is not None or memory_state is not None:
            x = x + self.cross_attention(self.cross_norm(x), memory, memory_segments, memory_state)
        return x + self.mlp(self.post_attention_layernorm(x))


@dataclass(frozen=True)
class CrossAttentionSettings:
    """Cross-attention as an entry of a recipe. See `apply_cross_attention`.

    Args:
        cross_width: width of queries, keys and values.
        heads: number of heads.
    """

    cross_width: int = 1024
    heads: int = 32

    def __call__(self, model: Llama, memory_width: int) -> Llama:
        return apply_cross_attention(model, memory_width, self.cross_width, self.heads)


def apply_cross_attention(language: Llama, memory_width: int, cross_width: int = 1024, heads: int = 32) -> Llama:
    """Give every decoder layer cross-attention to a memory, in place.

    At 7B size, a memory width of 1024 and the defaults this adds 335.7M parameters.

    Args:
        language: decoder to change, which is returned.
        memory_width: width of the memory.
        cross_width: width of queries, keys and values.
        heads: number of heads.
    Raises:
        UserError: the model is no decoder, it has cross-attention already, or `heads` does not divide `cross_width`.
    Source: arXiv:2312.08914, section 2.1; modeling_cogagent.py of the release.
    """
    if not isinstance(language, Llama):
        raise UserError(f"cross-attention needs a decoder, got {type(language).__name__}. Leave it out")
    if language.reads_memory:
        raise UserError("this language model already has cross-attention. Apply it only once")
    eps, device = language.lm.config.rms_norm_eps, language.lm.model.embed_tokens.weight.device
    for number, layer in enumerate(language.decoder_layers):
        with torch.device(device):
            cross_attention = CrossAttention(language.width, memory_width, cross_width, heads, number)
            language.decoder_layers[number] = CrossLayer(layer, cross_attention, eps)
    language.reads_memory = True
    prepare_layers(language.lm, language.activation_checkpointing, language.compiled)
    return language
