"""A decoder of transformers by its config.json, fed with embeddings and packed rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from lit_mm.errors import UserError
from lit_mm.language.long_rotary import KIND, LongRotary
from lit_mm.language.protocol import Learnt
from lit_mm.language.routed import Routing
from lit_mm.language.state import DecoderState
from lit_mm.layers.activations import Checkpointing, prepare_layers
from lit_mm.layers.attention import NAME, Backend, Segments
from lit_mm.samples.batch import Batch
from lit_mm.weights.agreement import Difference
from lit_mm.weights.config_file import half_of, read_config
from lit_mm.weights.config_tables import compare_settings, rope_kinds
from lit_mm.weights.decoder_configs import limit_length, settings_of


class Pretrained(nn.Module):
    """A decoder of transformers, fed with embeddings. Weights are random until a checkpoint is loaded.

    Attention runs sample by sample over the flat row; sliding windows and soft caps are those of the config. Mixtral
    has no auxiliary loss, as in its release. `embed` includes a scale of the embeddings where the decoder has one
    (Gemma); visual tokens enter unscaled.

    | model_type | decoder |
    |---|---|
    | llama | Llama 1 to 3.x with its rope scaling, Vicuna, SmolLM2 |
    | mistral, mixtral | Mistral with its sliding window, Mixtral |
    | qwen, qwen2, qwen3 | Qwen 1, Qwen 2 and 2.5, Qwen 3 |
    | gemma, gemma2, gemma3_text, gemma3 | Gemma 1 to 3; of gemma3 the text half |
    | internlm, internlm2, internlm3 | InternLM 1 to 3 |
    | opt, persimmon, phi3, smollm3 | OPT, Persimmon, Phi-3, SmolLM3 |

    Letters: N samples, T positions of a flat row, S supervised ones, E width of embeddings and hidden states. OPT-350m
    projects them to a larger width inside the decoder.

    Args:
        config: folder with a config.json, the file, a published name, or the numbers as a mapping with `model_type` and
            keys of a config.json, such as {model_type: qwen3, hidden_size: 2048}. Of a multimodal model the text half
            is read.
        activation_checkpointing: tensors that each layer keeps for the backward pass, see `Llama`.
        weights: reference of a checkpoint, "transformers:<place>", which a later step loads explicitly; the constructor
            reads nothing but the config.
        attention: backend for flat rows, see `Llama`.
        compile: True compiles the layers by `torch.compile` while they train.
    Attributes:
        model_type: the key `model_type` of the config.
        max_length: most tokens of a sample; None means no limit.
    Raises:
        UserError: the config cannot be read, names a kind of decoder or of rotary positions that is not packed, or has
            an unknown key in a mapping.
    """

    writes_target = False

    def __init__(
        self,
        config: str | dict[str, Any],
        activation_checkpointing: Checkpointing = "none",
        weights: str | None = None,
        attention: Backend = "auto",
        compile: bool = False,
    ) -> None:
        super().__init__()
        numbers = half_of(read_config(config) if isinstance(config, str) else dict(config), "text_config")
        self.model_type = str(numbers.get("model_type"))
        settings = settings_of(numbers, check_keys=not isinstance(config, str))
        settings._attn_implementation = NAME
        self.max_length = limit_length(settings)
        self.by_file = isinstance(config, str)
        values = settings.to_dict()
        self.vocab_size: int = settings.vocab_size
        self.num_layers: int = settings.num_hidden_layers
        self.heads: int = settings.num_attention_heads
        self.kv_heads: int = values.get("num_key_value_heads") or self.heads
        self.head_width: int = values.get("head_dim") or settings.hidden_size // self.heads
        self.tie_embeddings: bool = settings.tie_word_embeddings
        self.softcap: float | None = values.get("final_logit_softcapping")
        self.weights = weights
        self.attention: Backend = attention
        self.routed = False  # a function that routes linears sets it
        self.lm = MODEL_FOR_CAUSAL_LM_MAPPING[type(settings)](settings)
        self.width: int = self.lm.get_input_embeddings().embedding_dim
        if KIND in rope_kinds(settings):
            self.decoder.rotary_emb = LongRotary(settings)
        self.activation_checkpointing, self.compiled = activation_checkpointing, compile
        prepare_layers(self.lm, activation_checkpointing, compile)

    @property
    def decoder(self) -> nn.Module:
        """transformers' module of the decoder layers, which takes embeddings."""
        return dict(self.lm.model.named_children()).get("decoder", self.lm.model)

    @property
    def long_rotary(self) -> LongRotary | None:
        """Rotary positions by the length of each sample; None for a decoder with the same ones for all."""
        return next((part for part in self.decoder.children() if isinstance(part, LongRotary)), None)

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """transformers' decoder layers, each with `self_attn`."""
        return self.decoder.layers

    def compare_config(self, config: dict[str, Any]) -> list[Difference]:
        """Compare the part with the config.json of its weights, see `lit_mm.weights.agreement`."""
        return compare_settings(config, self.model_type, self.lm.config, by_file=self.by_file)

    def restore_buffers(self) -> None:
        """Recompute rotary frequencies and scales, which no checkpoint holds, after a build on the meta device."""
        device = self.lm.get_input_embeddings().weight.device
        for module in self.lm.modules():
            names = [name for name, _ in module.named_buffers(recurse=False)]
            if any("inv_freq" in name for name in names):
                with torch.device(device):
                    module._buffers.update(type(module)(config=module.config)._buffers)
            elif "embed_scale" in names:
                module.embed_scale = torch.tensor(module.scalar_embed_scale, device=device)

    def embed(self, ids: Tensor) -> Tensor:
        """Embed token ids [...] as text embeddings [..., E], scaled where the decoder scales them."""
        return self.lm.get_input_embeddings()(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """Project hidden states [..., E] to [..., vocabulary], the widest layer; pass only positions that you need."""
        logits = self.lm.lm_head(hidden)
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def learn(self, embeds: Tensor, batch: Batch) -> Learnt:
        """Run embeddings [1, T, E] of a flat row; return hidden states [S, E] at supervised places and predicted ids.

        Raises:
            UserError: a sample is longer than the decoder's positions.
        """
        hidden = self._read(embeds, batch).last_hidden_state[0]  # [T, E]
        return Learnt(hidden.index_select(0, batch.supervised), batch.labels)

    def begin(self, embeds: Tensor, batch: Batch) -> tuple[Tensor, DecoderState]:
        """Read the prompts of a flat row; return hidden states [N, E] at each sample's last position, and the state.

        Raises:
            UserError: the model trains with activation checkpointing or compiled layers, which would drop keys and
                values; or a sample is longer than the decoder's positions.
        """
        if (self.activation_checkpointing != "none" or self.compiled) and self.training:
            raise UserError("Pretrained: cached decoding with checkpointed or compiled layers needs `.eval()` first")
        cache = DynamicCache()
        hidden = self._read(embeds, batch, cache).last_hidden_state[0]
        ends = torch.tensor(batch.lengths, device=hidden.device).cumsum(0) - 1
        return hidden[ends], DecoderState.of_row(cache, batch.lengths, batch.positions)

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Read one more token [N] of every sample; return hidden states [N, E]. Routed linears act as plain linears.

        Raises:
            UserError: a sample becomes longer than the decoder's positions.
        """
        mask, positions = state.extend()
        self._check_lengths(state.lengths)
        if self.long_rotary is not None:
            self.long_rotary.begin_step(state.lengths)
        return self.decoder(
            inputs_embeds=self.embed(tokens[:, None]),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=state.cache,
            use_cache=True,
        ).last_hidden_state[:, 0]

    def _read(self, embeds: Tensor, batch: Batch, cache: DynamicCache | None = None) -> BaseModelOutputWithPast:
        """Run the decoder layers over a flat row."""
        self._check_lengths(batch.lengths)
        if self.long_rotary is not None:
            self.long_rotary.begin_row(batch.lengths)
        options: dict[str, Any] = {}
        if self.routed and batch.views is not None:
            places = batch.visual if batch.routed is None else batch.routed
            options["routing"] = Routing.of(places, embeds.shape[1])
        return self.decoder(
            inputs_embeds=embeds,
            segments=Segments(batch.lengths, backend=self.attention, device=embeds.device),
            position_ids=batch.positions,
            past_key_values=cache,
            use_cache=cache is not None,
            **options,
        )

    def _check_lengths(self, lengths: list[int] | tuple[int, ...]) -> None:
        if self.max_length is not None and max(lengths, default=0) > self.max_length:
            raise UserError(
                f"Pretrained: {self.model_type} has positions for {self.max_length} tokens, but a sample has "
                f"{max(lengths)}. Set `max_length` of the inputs to {self.max_length} or less"
            )
