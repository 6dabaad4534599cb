"""A Llama decoder that takes embeddings and packed rows. InternLM2, Vicuna and Llama checkpoints map onto it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPast

from lit_mm.errors import UserError
from lit_mm.language.protocol import Learnt, Memory
from lit_mm.language.routed import Routing
from lit_mm.language.state import DecoderState, MemoryState
from lit_mm.layers.activations import Checkpointing, prepare_layers
from lit_mm.layers.attention import NAME, Backend, Segments
from lit_mm.samples.batch import Batch
from lit_mm.weights.agreement import Difference
from lit_mm.weights.config_tables import compare_llama, llama_arguments


class Llama(nn.Module):
    """The Llama of transformers, fed with embeddings. Weights are random until a checkpoint is loaded.

    Letters: N samples, T positions of a flat row, S supervised ones, E width.

    Args:
        width: E, width of the hidden states.
        layers: number of decoder layers.
        heads, kv_heads: number of query heads, and of the key/value heads that they share.
        ffn_width: hidden width of the SwiGLU feed-forward.
        vocab_size: number of token ids.
        head_width: width of one head; None means width / heads.
        rope_theta: base of the rotary frequencies.
        norm_eps: epsilon of the RMS norms.
        max_positions: length of the longest sample in training, tokens. It is information only, since rotary positions
            need no table.
        attention_bias: True for biases on the four attention linears, "qkv" on the first three (Qwen), False for none.
        tie_embeddings: True uses the embedding table as the output projection.
        activation_checkpointing: tensors that each layer keeps for the backward pass: "none" keeps its activations,
            "full" its inputs, "selective" (with `compile`) its inputs and its products.
        weights: reference of a checkpoint, which a later step loads explicitly; the constructor reads nothing.
        attention: backend for flat rows. "varlen" makes one kernel call, on CUDA in bf16 or fp16; "segments" goes
            sample by sample, on any device; "auto" uses varlen if it can, else segments.
        compile: True compiles the layers by `torch.compile` while they train.
    Raises:
        UserError: `heads` does not divide `width` or `kv_heads` does not divide `heads`, or selective checkpointing is
            set without `compile`.
    """

    writes_target = False

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
        activation_checkpointing: Checkpointing = "none",
        weights: str | None = None,
        attention: Backend = "auto",
        compile: bool = False,
    ) -> None:
        super().__init__()
        if width % heads or heads % kv_heads:
            raise UserError(
                "Llama: `heads` must divide `width` and be a multiple of `kv_heads`, "
                f"got {width=}, {heads=}, {kv_heads=}"
            )
        self.width, self.num_layers, self.vocab_size = width, layers, vocab_size
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, head_width or width // heads
        self.tie_embeddings, self.attention_bias = tie_embeddings, attention_bias
        self.weights = weights
        self.attention: Backend = attention
        self.routed = False  # a function that routes linears (`apply_partial_lora`) sets it
        self.reads_memory = False  # `apply_cross_attention` sets it
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
                # pyrefly: ignore[unexpected-keyword]  # every config of transformers takes it through **kwargs
                attn_implementation=NAME,
            )
        )
        if attention_bias == "qkv":
            for layer in self.decoder_layers:
                layer.self_attn.o_proj.register_parameter("bias", None)
        self.activation_checkpointing, self.compiled = activation_checkpointing, compile
        prepare_layers(self.lm, activation_checkpointing, compile)

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """transformers' decoder layers, each with `self_attn` and `mlp`."""
        return self.lm.model.layers

    @classmethod
    def published_arguments(cls, config: dict[str, Any], recipe_arguments: Collection[str]) -> dict[str, Any]:
        """See `lit_mm.weights.agreement.ReadsArguments`."""
        return llama_arguments(config)

    def compare_config(self, config: dict[str, Any]) -> list[Difference]:
        """Compare the part with the config.json of its weights, see `lit_mm.weights.agreement`."""
        settings = self.lm.config
        numbers = {
            "width": self.width,
            "layers": self.num_layers,
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "head_width": self.head_width,
            "ffn_width": settings.intermediate_size,
            "vocab_size": self.vocab_size,
            "rope_theta": settings.rope_parameters["rope_theta"],
            "norm_eps": settings.rms_norm_eps,
            "attention_bias": self.attention_bias,
            "tie_embeddings": self.tie_embeddings,
        }
        return compare_llama(config, numbers, settings.max_position_embeddings)

    def restore_buffers(self) -> None:
        """Recompute the rotary frequencies, which no checkpoint holds; needed after a build on the meta device."""
        rotary = self.lm.model.rotary_emb
        device = self.lm.model.embed_tokens.weight.device
        with torch.device(device):
            frequencies, _ = rotary.compute_default_rope_parameters(rotary.config)
        rotary.inv_freq, rotary.original_inv_freq = frequencies, frequencies.clone()

    def embed(self, ids: Tensor) -> Tensor:
        """Embed token ids [...] as text embeddings [..., E]."""
        return self.lm.model.embed_tokens(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """Project hidden states [..., E] to [..., vocabulary], the widest layer; pass only positions that you need."""
        return self.lm.lm_head(hidden)

    def learn(self, embeds: Tensor, batch: Batch, memory: Memory | None = None) -> Learnt:
        """Run embeddings [1, T, E] of a flat row; return hidden states [S, E] at supervised places and predicted ids.

        Routed linears read `batch.routed`, or `batch.visual` if that is None. Cross-attention reads `memory`.
        """
        hidden = self._read(embeds, batch, memory=memory).last_hidden_state[0]  # [T, E]
        return Learnt(hidden.index_select(0, batch.supervised), batch.labels)

    def begin(self, embeds: Tensor, batch: Batch, memory: Memory | None = None) -> tuple[Tensor, DecoderState]:
        """Read the prompts of a flat row; return hidden states [N, E] at each sample's last position, and the state.

        Raises:
            UserError: the model trains with activation checkpointing or compiled layers, which would drop keys and
                values.
        """
        if (self.activation_checkpointing != "none" or self.compiled) and self.training:
            raise UserError("Llama: cached decoding with checkpointed or compiled layers needs `.eval()` first")
        cache = DynamicCache()
        memory_state = None if memory is None else MemoryState(DynamicCache(), list(memory.lengths))
        hidden = self._read(embeds, batch, cache, memory, memory_state).last_hidden_state[0]
        ends = torch.tensor(batch.lengths, device=hidden.device).cumsum(0) - 1
        state = DecoderState.of_row(cache, batch.lengths, batch.positions)
        if memory_state is not None:
            memory_state.lay_out(hidden.device)
            state.memory = memory_state
        return hidden[ends], state

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Read one more token [N] of every sample; return hidden states [N, E]. Routed linears act as plain linears."""
        mask, positions = state.extend()
        return self.lm.model(
            inputs_embeds=self.embed(tokens[:, None]),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=state.cache,
            use_cache=True,
            **({} if state.memory is None else {"memory_state": state.memory}),
        ).last_hidden_state[:, 0]

    def _read(
        self,
        embeds: Tensor,
        batch: Batch,
        cache: DynamicCache | None = None,
        memory: Memory | None = None,
        memory_state: MemoryState | None = None,
    ) -> BaseModelOutputWithPast:
        """Run the decoder layers over a flat row."""
        places = batch.visual if batch.routed is None else batch.routed
        cross = {}
        if memory is not None:
            device, backend = embeds.device, self.attention
            segments = Segments(batch.lengths, memory.lengths, causal=False, backend=backend, device=device)
            cross = {"memory": memory.vectors, "memory_segments": segments, "memory_state": memory_state}
        return self.lm.model(
            inputs_embeds=embeds,
            segments=Segments(batch.lengths, backend=self.attention, device=embeds.device),
            position_ids=batch.positions,
            past_key_values=cache,
            use_cache=cache is not None,
            routing=Routing.of(places, embeds.shape[1]) if self.routed and batch.views is not None else None,
            **cross,
        )
