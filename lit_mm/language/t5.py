"""A T5 encoder-decoder (the layout of T5 v1.1 and Flan-T5) that takes embeddings and flat rows."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, T5Config, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention

from lit_mm.errors import UserError
from lit_mm.language.protocol import Learnt
from lit_mm.language.state import EncoderDecoderState
from lit_mm.layers.activations import prepare_layers
from lit_mm.layers.attention import NAME, Segments, attention, segment_attention
from lit_mm.layers.attention.segments import starts_of
from lit_mm.samples.batch import Batch
from lit_mm.weights.agreement import Difference
from lit_mm.weights.config_file import half_of, read_config
from lit_mm.weights.config_tables import T5_KINDS, compare_t5, t5_numbers, with_known_keys

SIZES = ("width", "layers", "heads", "ffn_width", "vocab_size")
DEFAULTS = {"buckets": 32, "max_distance": 128, "norm_eps": 1e-6, "start_id": 0}


class T5RowAttention(nn.Module):
    """The attention of T5 over flat rows, segment by segment, with the parameters of transformers' module.

    transformers computes the position bias for the whole row, [1, H, T, T] (2.1 GB at 4096 positions and 32 heads), and
    zeros of that size for cross-attention. Here layers share one bias per distance, [H, 2 L - 1] with L the longest
    segment, and cross-attention has no bias.

    Args:
        base: module that is replaced.
    """

    def __init__(self, base: T5Attention) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = base.q, base.k, base.v, base.o
        self.relative_attention_bias = base.relative_attention_bias if base.has_relative_attention_bias else None
        self.buckets, self.max_distance = base.relative_attention_num_buckets, base.relative_attention_max_distance
        self.causal, self.layer = base.is_causal, base.layer_idx
        self.head_width, self.dropout = base.key_value_proj_dim, base.dropout

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None = None,
        key_value_states: Tensor | None = None,
        position_bias: Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        segments: Segments | None = None,
        cross_segments: Segments | None = None,
        cross_visible: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, None]:
        """Attend over a flat row [1, T, E], or from one more token of every sample [N, 1, E] to cached keys.

        Args:
            hidden_states: [1, T, E] or [N, 1, E] states that make the queries.
            mask: always None, because the configured attention has no mask function.
            key_value_states: [1, S, E] encoded row for cross-attention, unless its keys are cached; None means
                self-attention.
            position_bias: [H, 2 M + 1] bias per distance from an earlier layer; None in the first layer.
            past_key_values: cache with keys and values of earlier tokens and of the sources; None means no cache.
            segments, cross_segments: lengths for self-attention and cross-attention; None means one token with cached
                keys.
            cross_visible: [N, 1, 1, S] True where a cached cross key belongs to the sample; None means everywhere.
        Returns:
            The output, of the shape of `hidden_states`; the bias per distance for the next layer; None for the weights.
        Raises:
            UserError: there are several positions and no segments.
        """
        cross = key_value_states is not None
        query = self._heads(self.q(hidden_states))
        key, value = self._keys(key_value_states if cross else hidden_states, past_key_values, cross)
        lengths = cross_segments if cross else segments
        if lengths is None and query.shape[2] > 1:
            raise UserError(f"T5: {query.shape[2]} positions need `segments`, the lengths of the samples. Call `learn`")
        if not cross and position_bias is None:
            position_bias = self._distance_bias(key.shape[2] if lengths is None else lengths.longest)
        dropout = self.dropout if self.training else 0.0
        if lengths is not None:
            bias = None if cross else position_bias
            read = segment_attention(query, key, value, lengths, scale=1.0, distance_bias=bias, dropout=dropout)
        else:
            visible = cross_visible if cross else position_bias[None, :, None, : key.shape[2]]
            read = attention(query, key, value, visible, scale=1.0, dropout=dropout).transpose(1, 2)
        return self.o(read.flatten(2)), position_bias, None

    def _heads(self, x: Tensor) -> Tensor:
        """[B, L, H D] -> [B, H, L, D]."""
        return x.unflatten(-1, (-1, self.head_width)).transpose(1, 2)

    def _keys(self, x: Tensor, cache: EncoderDecoderCache | None, cross: bool) -> tuple[Tensor, Tensor]:
        """Compute keys and values [B, H, S, D], with those of the cache."""
        if cache is None:
            return self._heads(self.k(x)), self._heads(self.v(x))
        of_kind = cache.cross_attention_cache if cross else cache.self_attention_cache
        if cross and of_kind.get_seq_length(self.layer):
            layer = of_kind.layers[self.layer]
            return layer.keys, layer.values
        return of_kind.update(self._heads(self.k(x)), self._heads(self.v(x)), self.layer)

    def _distance_bias(self, longest: int) -> Tensor:
        """[H, 2 L - 1] of the distances key - query from 1 - L to L - 1."""
        distances = torch.arange(1 - longest, longest, device=self.q.weight.device)
        buckets = T5Attention._relative_position_bucket(distances, not self.causal, self.buckets, self.max_distance)
        return self.relative_attention_bias(buckets).T


class T5(nn.Module):
    """The T5 of transformers with a gated GELU and a separate output projection, fed with embeddings.

    Encoder, decoder and cross-attention work on flat rows, segment by segment; see `T5RowAttention`. transformers 5
    always ties the output projection to the embeddings. Here it is a separate linear, and the hidden states are not
    scaled before it, as in Flan-T5. Weights are random until a checkpoint is loaded.

    Letters: N samples, S positions of the encoded row, T positions of the target's row, E width.

    Args:
        width: E, width of the hidden states; None, here and below, takes the number of `config`.
        layers: number of encoder layers.
        heads: number of attention heads.
        ffn_width: hidden width of the gated feed-forward.
        vocab_size: number of token ids.
        decoder_layers: number of decoder layers; None without a `config` means as many as the encoder has.
        head_width: width of one head; None without a `config` means width / heads. With a value, heads need not divide
            the width.
        dropout: probability of dropout in all places where T5 has it, with attention weights. Published: 0.1.
        activation: activation of the gate. T5 has "gelu_new", the tanh approximation; BLIP-2 and InstructBLIP run T5
            with the exact "gelu".
        buckets: number of buckets of relative distances; the encoder uses half for earlier and half for later tokens.
            None without a `config` means 32.
        max_distance: least distance that falls into the last bucket, tokens. None without a `config` means 128.
        norm_eps: epsilon of the RMS norms. None without a `config` means 1e-6.
        start_id: id of the decoder's first token; the padding token in every published T5. None without a `config`
            means 0.
        activation_checkpointing: "full" recomputes each layer in the backward pass, in training without a cache; "none"
            keeps its activations.
        weights: reference of a checkpoint, which a later step loads explicitly; the constructor reads nothing but the
            config.
        config: folder with a config.json, the file, a published name, or the keys of a config.json as a mapping with
            `model_type`. None: the numbers are those above.
    Raises:
        UserError: heads do not divide the width, `buckets` is no multiple of 4, `max_distance` is too small, a size is
            missing, the config is not that of a T5 v1.1, or a number differs from it.
    Source: arXiv:2002.05202 (gated GELU), arXiv:1910.10683 (T5), T5 v1.1's release notes (untied projection).
    """

    writes_target = True

    def __init__(
        self,
        width: int | None = None,
        layers: int | None = None,
        heads: int | None = None,
        ffn_width: int | None = None,
        vocab_size: int | None = None,
        decoder_layers: int | None = None,
        head_width: int | None = None,
        dropout: float = 0.0,
        activation: Literal["gelu_new", "gelu"] = "gelu_new",
        buckets: int | None = None,
        max_distance: int | None = None,
        norm_eps: float | None = None,
        start_id: int | None = None,
        activation_checkpointing: Literal["none", "full"] = "none",
        weights: str | None = None,
        config: str | dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        arguments = {
            "width": width,
            "layers": layers,
            "heads": heads,
            "ffn_width": ffn_width,
            "vocab_size": vocab_size,
            "decoder_layers": decoder_layers,
            "head_width": head_width,
            "buckets": buckets,
            "max_distance": max_distance,
            "norm_eps": norm_eps,
            "start_id": start_id,
        }
        arguments = {name: value for name, value in arguments.items() if value is not None}
        self.numbers = numbers_of(arguments, config)
        self._build(**self.numbers, dropout=dropout, activation=activation)
        self.weights = weights
        self.activation_checkpointing = activation_checkpointing
        prepare_layers(self.lm, activation_checkpointing)

    def _build(
        self,
        width: int,
        layers: int,
        heads: int,
        ffn_width: int,
        vocab_size: int,
        decoder_layers: int,
        head_width: int,
        buckets: int,
        max_distance: int,
        norm_eps: float,
        start_id: int,
        dropout: float,
        activation: str,
    ) -> None:
        if buckets % 4 or buckets < 4 or max_distance <= buckets // 2:
            raise UserError(
                "T5: `buckets` is a multiple of 4 and `max_distance` more than half of it, "
                f"got {buckets=}, {max_distance=}"
            )
        self.width, self.vocab_size, self.heads, self.head_width = width, vocab_size, heads, head_width
        self.num_layers, self.num_decoder_layers = layers, decoder_layers
        self.start_id = start_id
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
            attn_implementation=NAME,  # no mask is made for it; the attention modules are replaced below
        )
        config.dense_act_fn = activation
        self.lm = T5ForConditionalGeneration(config)
        self.lm.lm_head = nn.Linear(width, vocab_size, bias=False)  # untied
        nn.init.normal_(self.lm.lm_head.weight, std=width**-0.5)  # logits of size 1: hidden states are normed
        for stack in (self.lm.encoder, self.lm.decoder):
            for block in stack.block:
                block.layer[0].SelfAttention = T5RowAttention(block.layer[0].SelfAttention)
                if stack.is_decoder:
                    block.layer[1].EncDecAttention = T5RowAttention(block.layer[1].EncDecAttention)

    @classmethod
    def published_arguments(cls, config: dict[str, Any], recipe_arguments: Collection[str]) -> dict[str, Any]:
        """See `lit_mm.weights.agreement.ReadsArguments`."""
        if "config" in recipe_arguments or half_of(config, "text_config").get("model_type") not in T5_KINDS:
            return {}
        numbers = t5_numbers(config)
        sizes = {name: numbers[name] for name in SIZES}
        standard = DEFAULTS | derived_numbers(numbers)
        return sizes | {name: value for name, value in numbers.items() if name in standard and value != standard[name]}

    def compare_config(self, config: dict[str, Any]) -> list[Difference]:
        """Compare the part with the config.json of its weights, see `lit_mm.weights.agreement`."""
        return compare_t5(config, self.numbers)

    def embed(self, ids: Tensor) -> Tensor:
        """Embed token ids [...] as text embeddings [..., E], the same for encoder and decoder."""
        return self.lm.shared(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """Project hidden states [..., E] to [..., vocabulary], the widest layer; pass only positions that you need."""
        return self.lm.lm_head(hidden)

    def learn(self, embeds: Tensor, batch: Batch) -> Learnt:
        """Run embeddings [1, S, E] of a flat row of sources; return hidden states that predict supervised target ids.

        Raises:
            UserError: the batch has no target.
        """
        if batch.target is None:
            raise UserError(
                "T5: training needs the answers in a row of their own. Is `writes_target` of the processor set?"
            )
        target = batch.target
        segments = Segments(target.lengths)
        starts = starts_of(target.lengths, target.ids.device)[:-1].long()
        read = target.ids.roll(1, dims=1).index_fill(1, starts, self.start_id)  # the start token precedes each sample
        hidden = self._decode(read, self._encode(embeds, batch), segments, batch)  # [1, T, E]
        return Learnt(hidden[0].index_select(0, batch.supervised), batch.labels)

    def begin(self, embeds: Tensor, batch: Batch) -> tuple[Tensor, EncoderDecoderState]:
        """Encode the sources and read the start token; return hidden states [N, E], and the decoding state.

        Raises:
            UserError: the model trains with activation checkpointing, which would drop keys and values.
        """
        if self.activation_checkpointing != "none" and self.training:
            raise UserError("T5: cached decoding with activation checkpointing needs `.eval()` first")
        count = len(batch.lengths)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        tokens = torch.full((1, count), self.start_id, device=embeds.device)
        hidden = self._decode(tokens, self._encode(embeds, batch), Segments([1] * count), batch, cache)  # [1, N, E]
        return hidden[0], EncoderDecoderState.of_row(cache, batch.lengths, embeds.device)

    def step(self, tokens: Tensor, state: EncoderDecoderState) -> Tensor:
        """Read one more token [N] of every sample; return hidden states [N, E]."""
        embeds = self.embed(tokens[:, None])
        return self.lm.decoder(
            inputs_embeds=embeds,
            encoder_hidden_states=embeds,  # unused, because the cache holds the keys of the sources
            past_key_values=state.cache,
            use_cache=True,
            cross_visible=None if state.visible is None else state.visible[:, None, None],
        ).last_hidden_state[:, 0]

    def _encode(self, embeds: Tensor, batch: Batch) -> Tensor:
        """Encode a flat row [1, S, E]; return [1, S, E] after the encoder's last norm."""
        return self.lm.encoder(inputs_embeds=embeds, segments=Segments(batch.lengths, causal=False)).last_hidden_state

    def _decode(
        self,
        tokens: Tensor,
        encoded: Tensor,
        segments: Segments,
        batch: Batch,
        cache: EncoderDecoderCache | None = None,
    ) -> Tensor:
        """Decode a flat row of tokens [1, T] beside the encoded row [1, S, E]; return hidden states [1, T, E]."""
        return self.lm.decoder(
            inputs_embeds=self.embed(tokens),
            encoder_hidden_states=encoded,
            past_key_values=cache,
            use_cache=cache is not None,
            segments=segments,
            cross_segments=Segments(segments.lengths, batch.lengths, causal=False, device=encoded.device),
        ).last_hidden_state


def numbers_of(arguments: dict[str, Any], config: str | dict[str, Any] | None) -> dict[str, Any]:
    """Complete the numbers of a T5 from its config, or by the defaults.

    Args:
        arguments: argument of `T5` -> its value, for arguments that are set.
        config: see `T5`.
    Raises:
        UserError: a size is missing, heads do not divide the width, or a number differs from the config.
    """
    if config is not None:
        published = read_config(config) if isinstance(config, str) else with_known_keys(config)
        if differences := compare_t5(published, arguments):
            raise UserError(f"T5: {differences[0].described('init_args')}")
        return t5_numbers(published)
    if missing := [name for name in SIZES if name not in arguments]:
        raise UserError(f"T5: without a `config`, {', '.join(f'`{name}`' for name in missing)} must be set")
    if "head_width" not in arguments and arguments["width"] % arguments["heads"]:
        raise UserError(
            "T5: without `head_width`, `heads` must divide `width`, "
            f"got width={arguments['width']}, heads={arguments['heads']}"
        )
    return DEFAULTS | derived_numbers(arguments) | arguments


def derived_numbers(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a T5 that its sizes give where nothing else does."""
    return {"decoder_layers": arguments["layers"], "head_width": arguments["width"] // arguments["heads"]}
