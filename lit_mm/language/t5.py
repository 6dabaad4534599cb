"""A T5 encoder-decoder (the layout of T5 v1.1 and Flan-T5) that takes embeddings and flat rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, EncoderDecoderCache, T5Config, T5ForConditionalGeneration

from lit_mm.errors import UserError
from lit_mm.language.protocol import Learnt
from lit_mm.layers.activations import prepare_layers
from lit_mm.samples.batch import Batch


@dataclass
class T5State:
    """The decoding state of N samples.

    Attributes:
        cache: the decoder's keys and values, and those of what was encoded.
        encoded: [N, S, E] encoder states.
        visible: [N, S] True where an encoder state is a sample's, False at padding.
    """

    cache: EncoderDecoderCache
    encoded: Tensor
    visible: Tensor

    def reorder(self, samples: Tensor) -> None:
        """Keep these samples [N'] in this order."""
        self.cache.batch_select_indices(samples)
        self.encoded, self.visible = self.encoded[samples], self.visible[samples]


class T5(nn.Module):
    """transformers' T5 with a gated GELU and an output projection of its own, fed with embeddings.

    Samples of a flat row are set apart again inside, one per line and padded to the longest: T5's position bias is then
    that of the longest sample, [1, H, L, L], and never that of the row.
    transformers 5 ties the output projection to the embeddings, whatever the config says: here it is a linear of its
    own, and the hidden states are not scaled before it, as in Flan-T5. Weights are random until a checkpoint is loaded.

    Letters: N samples, S encoded positions, L decoder positions, E width.

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
        activation_checkpointing: "full": recompute each layer in the backward pass, while training and without a
            cache; "none": keep its activations.
        weights: reference of the checkpoint that a later, explicit step loads; nothing is read here.
    Raises:
        UserError: heads that do not divide the width, or an odd or too small number of buckets.
    Source: arXiv:2002.05202 (gated GELU), arXiv:1910.10683 (T5), T5 v1.1's release notes (untied projection).
    """

    writes_target = True

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
        activation_checkpointing: Literal["none", "full"] = "none",
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
            # pyrefly: ignore[unexpected-keyword]  # every config of transformers takes it through **kwargs
            tie_word_embeddings=False,
            use_cache=False,
            pad_token_id=None,  # special ids belong to the processor
            eos_token_id=None,
            # pyrefly: ignore[unexpected-keyword]  # every config of transformers takes it through **kwargs
            attn_implementation="sdpa",
        )
        config.dense_act_fn = activation
        self.lm = T5ForConditionalGeneration(config)
        self.lm.lm_head = nn.Linear(width, vocab_size, bias=False)  # untied
        nn.init.normal_(self.lm.lm_head.weight, std=width**-0.5)  # logits of size 1: hidden states are normed
        self.activation_checkpointing = activation_checkpointing
        prepare_layers(self.lm, activation_checkpointing)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [...] -> text embeddings [..., E], the same for encoder and decoder."""
        return self.lm.shared(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., E] -> [..., vocabulary]. Project only the positions you need: it is the widest layer."""
        return self.lm.lm_head(hidden)

    def learn(self, embeds: Tensor, batch: Batch) -> Learnt:
        """Embeddings [1, S, E] of a flat row of sources -> hidden states that predict the supervised target ids.

        Raises:
            UserError: a batch without targets.
        """
        if batch.target is None:
            raise UserError(
                "T5: training needs the answers as a row of their own; is `writes_target` of the processor set?"
            )
        encoded, visible = self._encode(embeds, batch.lengths)
        lengths = batch.target.lengths
        ids = pad_sequence(batch.target.ids[0].split(lengths), batch_first=True)  # [N, L]
        read = F.pad(ids[:, :-1], (1, 0), value=self.start_id)  # each sample one later, behind the start token
        hidden = self.lm.decoder(
            inputs_embeds=self.embed(read),
            attention_mask=_is_token(lengths, ids.device),
            encoder_hidden_states=encoded,
            encoder_attention_mask=visible,
            use_cache=False,
        ).last_hidden_state  # [N, L, E]
        row = torch.cat([states[:length] for states, length in zip(hidden, lengths, strict=True)])  # [T, E]
        return Learnt(row.index_select(0, batch.supervised), batch.labels)

    def begin(self, embeds: Tensor, batch: Batch) -> tuple[Tensor, T5State]:
        """Encode the sources and read the start token: hidden states [N, E], and the state to decode.

        Raises:
            UserError: activation checkpointing while training, which would drop keys and values.
        """
        if self.activation_checkpointing != "none" and self.training:
            raise UserError("T5: cached decoding with activation checkpointing needs `.eval()` first")
        encoded, visible = self._encode(embeds, batch.lengths)
        state = T5State(EncoderDecoderCache(DynamicCache(), DynamicCache()), encoded, visible)
        return self.step(torch.full((len(encoded),), self.start_id, device=encoded.device), state), state

    def step(self, tokens: Tensor, state: T5State) -> Tensor:
        """One more token [N] of every sample -> hidden states [N, E]."""
        return self.lm.decoder(
            inputs_embeds=self.embed(tokens[:, None]),
            encoder_hidden_states=state.encoded,
            encoder_attention_mask=state.visible,
            past_key_values=state.cache,
            use_cache=True,
        ).last_hidden_state[:, 0]

    def _encode(self, embeds: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
        """[1, S, E] of a flat row -> [N, S_max, E] after the encoder's last norm, and where they are no padding."""
        padded = pad_sequence(embeds[0].split(tuple(lengths)), batch_first=True)
        visible = _is_token(lengths, embeds.device)
        return self.lm.encoder(inputs_embeds=padded, attention_mask=visible).last_hidden_state, visible


def _is_token(lengths: Sequence[int], device: torch.device) -> Tensor:
    """[N, longest] bool: True at the first `length` places of each row."""
    return torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]
