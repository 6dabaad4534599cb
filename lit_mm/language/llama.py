"""A Llama decoder that takes embeddings and packed rows. InternLM2, Vicuna and Llama checkpoints map onto it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPast

from lit_mm.errors import UserError
from lit_mm.language.protocol import Learnt
from lit_mm.language.routed import Routing
from lit_mm.language.state import DecoderState
from lit_mm.layers.activations import Checkpointing, prepare_layers
from lit_mm.layers.attention import NAME, Backend, Segments
from lit_mm.samples.batch import Batch


class Llama(nn.Module):
    """transformers' Llama, fed with embeddings. Weights are random until a checkpoint is loaded.

    Letters: N samples, T positions of a flat row, S supervised ones, E width.

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
        activation_checkpointing: what each layer keeps for the backward pass: "none" its activations, "full" its
            inputs, "selective" (with `compile`) its inputs and its products.
        weights: reference of the checkpoint that a later, explicit step loads; nothing is read here.
        attention: backend for flat rows. "varlen": one kernel call, on CUDA in bf16 or fp16; "segments": sample by
            sample, everywhere; "auto": varlen where it can, else segments.
        compile: compile the layers by `torch.compile` while they train.
    Raises:
        UserError: heads that do not divide, or selective checkpointing without `compile`.
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
        self.tie_embeddings = tie_embeddings
        self.weights = weights
        self.attention: Backend = attention
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

    def restore_buffers(self) -> None:
        """Recompute the rotary frequencies, which no checkpoint holds; needed after a build on the meta device."""
        rotary = self.lm.model.rotary_emb
        device = self.lm.model.embed_tokens.weight.device
        with torch.device(device):
            frequencies, _ = rotary.compute_default_rope_parameters(rotary.config)
        rotary.inv_freq, rotary.original_inv_freq = frequencies, frequencies.clone()

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [...] -> text embeddings [..., E]."""
        return self.lm.model.embed_tokens(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., E] -> [..., vocabulary]. Project only the positions you need: it is the widest layer."""
        return self.lm.lm_head(hidden)

    def learn(self, embeds: Tensor, batch: Batch) -> Learnt:
        """Embeddings [1, T, E] of a flat row -> hidden states [S, E] at supervised places, and the ids they predict.

        Routed linears read `batch.routed`, or `batch.visual` if that is None.
        """
        hidden = self._read(embeds, batch).last_hidden_state[0]  # [T, E]
        return Learnt(hidden.index_select(0, batch.supervised), batch.labels)

    def begin(self, embeds: Tensor, batch: Batch) -> tuple[Tensor, DecoderState]:
        """Read the prompts of a flat row: hidden states [N, E] at each sample's last position, and the state to decode.

        Raises:
            UserError: activation checkpointing or compiled layers while training, which would drop keys and values.
        """
        if (self.activation_checkpointing != "none" or self.compiled) and self.training:
            raise UserError("Llama: cached decoding with checkpointed or compiled layers needs `.eval()` first")
        cache = DynamicCache()
        hidden = self._read(embeds, batch, cache).last_hidden_state[0]
        ends = torch.tensor(batch.lengths, device=hidden.device).cumsum(0) - 1
        return hidden[ends], DecoderState.of_row(cache, batch.lengths, batch.positions)

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """One more token [N] of every sample -> hidden states [N, E]. Routed linears are exactly the plain ones."""
        mask, positions = state.extend()
        return self.lm.model(
            inputs_embeds=self.embed(tokens[:, None]),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=state.cache,
            use_cache=True,
        ).last_hidden_state[:, 0]

    def _read(self, embeds: Tensor, batch: Batch, cache: DynamicCache | None = None) -> BaseModelOutputWithPast:
        """The decoder layers over a flat row."""
        places = batch.visual if batch.routed is None else batch.routed
        return self.lm.model(
            inputs_embeds=embeds,
            segments=Segments(batch.lengths, backend=self.attention, device=embeds.device),
            position_ids=batch.positions,
            past_key_values=cache,
            use_cache=cache is not None,
            routing=Routing.of(places, embeds.shape[1]) if self.routed and batch.views is not None else None,
        )
