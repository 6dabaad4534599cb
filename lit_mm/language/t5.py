"""A T5 encoder-decoder (the layout of T5 v1.1 and Flan-T5) that takes embeddings and packed rows."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, T5Config, T5ForConditionalGeneration

from lit_mm.distributed.lockstep import all_done
from lit_mm.errors import UserError
from lit_mm.language.llama import DecodeCache, attention_mask
from lit_mm.layers.activations import checkpoint_activations


def encoder_mask(segment_ids: Tensor) -> Tensor:
    """Who sees whom in the encoder: the same sample, before and after; padding sees itself only.

    Args:
        segment_ids: [B, S] sample of each position, from 1; 0 is padding.
    Returns:
        [B, 1, S, S] boolean, True where the query (row) attends to the key (column).
    """
    oneself = torch.eye(segment_ids.shape[1], dtype=torch.bool, device=segment_ids.device)
    return cross_mask(segment_ids, segment_ids) | oneself


def cross_mask(segment_ids: Tensor, encoded_segments: Tensor) -> Tensor:
    """Which encoded positions a decoder's position sees: those of its own sample. Padding sees none.

    Args:
        segment_ids: [B, L] sample of each query, from 1; 0 is padding.
        encoded_segments: [B, S] sample of each encoded position.
    Returns:
        [B, 1, L, S] boolean.
    """
    same = segment_ids[:, :, None] == encoded_segments[:, None, :]
    return (same & (segment_ids > 0)[:, :, None]).unsqueeze(1)


class T5(nn.Module):
    """transformers' T5 with a gated GELU and an output projection of its own, fed with embeddings.

    Positions are relative and nothing else tells them, so samples that share a row need their segments only.
    transformers 5 ties the output projection to the embeddings, whatever the config says: here it is a linear of its
    own, and the hidden states are not scaled before it, as in Flan-T5. Weights are random until a checkpoint is loaded.

    Letters: B rows, S encoded positions, L decoder positions, E width.

    Args:
        width: E, of the hidden states.
        layers: encoder layers.
        heads: attention heads.
        ffn_width: hidden width of the gated feed-forward.
        vocab_size: token ids.
        decoder_layers: None: as many as the encoder has.
        head_width: of one head; None: width / heads. Heads need not divide the width if it is given.
        dropout: wherever T5 has it, attention weights included. Published: 0.1.
        activation: of the gate. "gelu_new", the tanh approximation, is T5's; BLIP-2 and InstructBLIP run it with the
            exact "gelu".
        buckets: of relative distances; the encoder's are half for what comes before and half for what comes after.
        max_distance: distances from here on share one bucket, tokens.
        norm_eps: of the RMS norms.
        start_id: token the decoder starts from; the padding token in every published T5.
        activation_checkpointing: recompute each layer in the backward pass (training only; not with a cache).
        weights: reference of the checkpoint that a later, explicit step loads; nothing is read here.
    Raises:
        UserError: heads that do not divide the width, or an odd or too small number of buckets.
    Source: arXiv:2002.05202 (gated GELU), arXiv:1910.10683 (T5), T5 v1.1's release notes (untied projection).
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        ffn_width: int,
        vocab_size: int,
        decoder_layers: int | None = None,
        head_width: int | None = None,
        dropout: float = 0.0,
        activation: Literal["gelu_new", "gelu"] = "gelu_new",
        buckets: int = 32,
        max_distance: int = 128,
        norm_eps: float = 1e-6,
        start_id: int = 0,
        activation_checkpointing: bool = False,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if head_width is None and width % heads:
            raise UserError(f"T5: without `head_width`, `heads` must divide `width`, got {width=}, {heads=}")
        if buckets % 4 or buckets < 4 or max_distance <= buckets // 2:
            raise UserError(
                "T5: `buckets` is a multiple of 4 and `max_distance` more than half of it, "
                f"got {buckets=}, {max_distance=}"
            )
        self.width, self.vocab_size, self.heads = width, vocab_size, heads
        self.num_layers, self.num_decoder_layers = layers, layers if decoder_layers is None else decoder_layers
        self.head_width = head_width or width // heads
        self.start_id = start_id
        self.weights = weights
        config = T5Config(
            d_model=width,
            d_kv=self.head_width,
            d_ff=ffn_width,
            num_layers=layers,
            num_decoder_layers=self.num_decoder_layers,
            num_heads=heads,
            vocab_size=vocab_size,
            relative_attention_num_buckets=buckets,
            relative_attention_max_distance=max_distance,
            dropout_rate=dropout,
            layer_norm_epsilon=norm_eps,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            use_cache=False,
            pad_token_id=None,  # special ids belong to the processor
            eos_token_id=None,
            attn_implementation="sdpa",
        )
        config.dense_act_fn = activation
        self.lm = T5ForConditionalGeneration(config)
        self.lm.lm_head = nn.Linear(width, vocab_size, bias=False)  # untied
        nn.init.normal_(self.lm.lm_head.weight, std=width**-0.5)  # logits of size 1: hidden states are normed
        self.activation_checkpointing = activation_checkpointing
        if activation_checkpointing:
            checkpoint_activations(self.lm)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [B, L] -> text embeddings [B, L, E], the same for encoder and decoder."""
        return self.lm.shared(ids)

    def encode(self, inputs_embeds: Tensor, *, segment_ids: Tensor) -> Tensor:
        """Embeddings [B, S, E] -> encoded states [B, S, E] after the encoder's last norm; meaningless at padding.

        Args:
            segment_ids: [B, S] sample of each position, from 1; 0 is padding, anywhere. Samples are blind to others.
        """
        return self.lm.encoder(inputs_embeds=inputs_embeds, attention_mask=encoder_mask(segment_ids)).last_hidden_state

    def forward(
        self,
        inputs_embeds: Tensor,
        *,
        segment_ids: Tensor,
        encoded: Tensor,
        encoded_segments: Tensor,
        cache: DecodeCache | None = None,
    ) -> Tensor:
        """The decoder: embeddings [B, L, E] -> hidden states [B, L, E] after the last norm; meaningless at padding.

        Args:
            segment_ids: [B, L] sample of each position, from 1; 0 is padding.
            encoded: [B, S, E] from `encode`.
            encoded_segments: [B, S] sample of each encoded position; a sample reads its own.
            cache: from `new_cache`, extended by this call. The keys and values of `encoded` are computed in its first
                call and kept.
        Raises:
            UserError: a cache together with activation checkpointing while training, which would drop the cache.
        """
        if cache is not None and self.activation_checkpointing and self.training:
            raise UserError("T5: cached decoding with activation checkpointing needs `.eval()` first")
        keys = None if cache is None else cache.extend(segment_ids)
        return self.lm.decoder(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask(segment_ids, keys),
            encoder_hidden_states=encoded,
            encoder_attention_mask=cross_mask(segment_ids, encoded_segments),
            past_key_values=None if cache is None else cache.states,
            use_cache=cache is not None,
        ).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., E] -> [..., vocabulary]. Project only the positions you need: it is the widest layer."""
        return self.lm.lm_head(hidden)

    def new_cache(self) -> DecodeCache:
        """An empty cache for one generation: the decoder's own keys and values, and those of what was encoded."""
        return DecodeCache(EncoderDecoderCache(DynamicCache(), DynamicCache()))

    def shift(self, target_ids: Tensor, segment_ids: Tensor) -> Tensor:
        """What the decoder reads to predict the targets: each sample one later, behind the start token.

        Args:
            target_ids, segment_ids: [B, L] ids to predict, and the sample of each.
        Returns:
            [B, L] ids.

        Example: targets (7, 8, 9, 5), segments (1, 1, 2, 2), start 0 -> (0, 7, 0, 9).
        """
        shifted = target_ids.roll(1, dims=1)
        first = segment_ids != segment_ids.roll(1, dims=1)
        first[:, 0] = True
        return shifted.masked_fill(first, self.start_id)

    def greedy(
        self, encoded: Tensor, *, encoded_segments: Tensor, stop_ids: Collection[int], max_new_tokens: int
    ) -> Tensor:
        """The most likely token, again and again, until every row has made a stop token. Cached.

        Args:
            encoded: [B, S, E] one sample a row.
            encoded_segments: [B, S] 1 where there is one; 0 is padding.
            stop_ids: tokens that end a row.
        Returns:
            [B, T] new token ids, start token left out, T <= `max_new_tokens`; after a stop token they mean nothing.
        """
        cache = self.new_cache()
        rows, device = len(encoded), encoded.device
        stops = torch.tensor(sorted(stop_ids), device=device)
        segments = torch.ones(rows, 1, dtype=torch.long, device=device)
        token = torch.full((rows, 1), self.start_id, device=device)
        done = torch.zeros(rows, dtype=torch.bool, device=device)
        made = []
        for _ in range(max_new_tokens):
            hidden = self(
                self.embed(token),
                segment_ids=segments,
                encoded=encoded,
                encoded_segments=encoded_segments,
                cache=cache,
            )
            token = self.logits(hidden[:, -1]).argmax(dim=-1, keepdim=True)  # [B, 1]
            made.append(token)
            done |= torch.isin(token[:, 0], stops)
            if all_done(done, self):
                break
        return torch.cat(made, dim=1)
