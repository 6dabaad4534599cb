"""A decoder of transformers by its config.json, fed with embeddings and packed rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, DynamicCache, PretrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPast

from lit_mm.errors import UserError
from lit_mm.language.protocol import Learnt
from lit_mm.language.routed import Routing
from lit_mm.language.state import DecoderState
from lit_mm.layers.activations import Checkpointing, prepare_layers
from lit_mm.layers.attention import NAME, Backend, Segments
from lit_mm.samples.batch import Batch
from lit_mm.weights.config_file import read_config

DECODERS = (
    "gemma",
    "gemma2",
    "gemma3_text",
    "llama",
    "mistral",
    "mixtral",
    "opt",
    "persimmon",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
)
RENAMED = ("internlm2", "qwen")  # published with code of their own; other classes of transformers compute the same
OLD_KEYS = ("rope_theta", "rope_scaling", "partial_rotary_factor", "architectures", "torch_dtype", "dtype")
ROPES = ("default", "linear", "llama3", "yarn")  # kinds whose frequencies do not depend on the length of the row


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
    | internlm2, opt, persimmon, phi3, smollm3 | InternLM2, OPT, Persimmon, Phi-3, SmolLM3 |

    Letters: N samples, T positions of a flat row, S supervised ones, E width.

    Args:
        config: folder with a config.json, the file, a published name, or the numbers as a mapping with `model_type` and
            keys of a config.json, such as {model_type: qwen3, hidden_size: 2048}.
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
        numbers = dict(read_config(config) if isinstance(config, str) else config)
        if numbers.get("model_type") == "gemma3":
            numbers = numbers.get("text_config", {}) | {"model_type": "gemma3_text"}
        self.model_type = str(numbers.get("model_type"))
        settings = settings_of(numbers, check_keys=not isinstance(config, str))
        self.max_length = limit_length(settings)
        values = settings.to_dict()
        self.width: int = settings.hidden_size
        self.vocab_size: int = settings.vocab_size
        self.num_layers: int = settings.num_hidden_layers
        self.heads: int = settings.num_attention_heads
        self.kv_heads: int = values.get("num_key_value_heads") or self.heads
        self.head_width: int = values.get("head_dim") or self.width // self.heads
        self.tie_embeddings: bool = settings.tie_word_embeddings
        self.softcap: float | None = values.get("final_logit_softcapping")
        self.weights = weights
        self.attention: Backend = attention
        self.routed = False  # a function that routes linears sets it
        self.lm = MODEL_FOR_CAUSAL_LM_MAPPING[type(settings)](settings)
        self.text_width: int = self.lm.get_input_embeddings().embedding_dim
        if self.text_width != self.width:
            raise UserError(
                f"Pretrained: {self.model_type} with embeddings of {self.text_width} channels and hidden states of "
                f"{self.width} (`word_embed_proj_dim`, `hidden_size`) is not read; take a size where they are equal"
            )
        self.activation_checkpointing, self.compiled = activation_checkpointing, compile
        prepare_layers(self.lm, activation_checkpointing, compile)

    @property
    def decoder(self) -> nn.Module:
        """transformers' module of the decoder layers, which takes embeddings."""
        return dict(self.lm.model.named_children()).get("decoder", self.lm.model)

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """transformers' decoder layers, each with `self_attn`."""
        return self.decoder.layers

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
                f"Pretrained: {self.model_type} has positions for {self.max_length} tokens, a sample has "
                f"{max(lengths)}. Set `max_length` of the inputs to {self.max_length} or less"
            )


def settings_of(numbers: dict[str, Any], *, check_keys: bool) -> PretrainedConfig:
    """Build the config of transformers for the numbers of a config.json.

    Args:
        numbers: the keys of a config.json.
        check_keys: True refuses keys that the kind of decoder does not have.
    Raises:
        UserError: the decoder is not packed, a key is unknown, or a value is refused by transformers.
    """
    kind = numbers.get("model_type")
    if kind not in DECODERS and kind not in RENAMED:
        raise UserError(
            f"Pretrained: `model_type` {kind!r} of the config is not among the decoders that read packed rows: "
            f"{sorted((*DECODERS, *RENAMED))}. Name one of these"
        )
    if kind == "internlm2":
        numbers = internlm2_numbers(numbers)
    elif kind == "qwen":
        numbers = qwen_numbers(numbers)
    values = {key: value for key, value in numbers.items() if key not in ("model_type", "dtype", "torch_dtype")}
    known = AutoConfig.for_model(numbers["model_type"]).to_dict().keys()
    if check_keys and (unknown := sorted(values.keys() - known - set(OLD_KEYS))):
        raise UserError(f"Pretrained: the config of a {kind} has no keys {unknown}; it has {sorted(known)}")
    values |= {"use_cache": False, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}  # the processor's
    try:
        settings = AutoConfig.for_model(numbers["model_type"], **values, attn_implementation=NAME)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"Pretrained: transformers refuses the config of this {kind}: {error}") from error
    if settings.to_dict().get("use_bidirectional_attention"):
        raise UserError(f"Pretrained: {kind} with `use_bidirectional_attention` is an encoder and is not read")
    return settings


def limit_length(settings: PretrainedConfig) -> int | None:
    """Return the most tokens of a sample; None means no limit. "dynamic" frequencies become the plain ones below it.

    Raises:
        UserError: the rotary frequencies depend on the longest sample of a row.
    """
    if not settings.to_dict().get("rope_parameters"):
        return settings.max_position_embeddings  # a table of learned positions
    ropes = settings.rope_parameters
    limit = None
    for rope in ropes.values() if all(isinstance(value, dict) for value in ropes.values()) else [ropes]:
        kind = rope.get("rope_type", "default")
        if kind == "dynamic":  # the frequencies change beyond this length only
            limit = settings.max_position_embeddings
            rope["rope_type"] = "default"
        elif kind not in ROPES:
            raise UserError(
                f"Pretrained: rotary positions of type {kind!r} depend on the longest sample of a row, so rows cannot "
                f"be packed; types that can: {[*ROPES, 'dynamic']}"
            )
    return limit


def internlm2_numbers(numbers: dict[str, Any]) -> dict[str, Any]:
    """Rename the config of InternLM2 to that of Llama, which computes the same."""
    keys = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "hidden_act",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
        "rope_scaling",
        "tie_word_embeddings",
    )
    if numbers.get("bias"):
        raise UserError("Pretrained: InternLM2 with `bias: true` is not read; the published ones have false")
    return {key: numbers[key] for key in keys if key in numbers} | {"model_type": "llama"}


def qwen_numbers(numbers: dict[str, Any]) -> dict[str, Any]:
    """Rename the config of Qwen 1 to that of Qwen 2 without shared heads, which computes the same.

    Source: configuration_qwen.py of the release; its `intermediate_size` counts both halves of the feed-forward.
    """
    return {
        "model_type": "qwen2",
        "vocab_size": numbers["vocab_size"],
        "hidden_size": numbers["hidden_size"],
        "intermediate_size": numbers["intermediate_size"] // 2,
        "num_hidden_layers": numbers["num_hidden_layers"],
        "num_attention_heads": numbers["num_attention_heads"],
        "num_key_value_heads": numbers["num_attention_heads"],
        "max_position_embeddings": numbers.get("seq_length", 8192),
        "rms_norm_eps": numbers.get("layer_norm_epsilon", 1e-6),
        "rope_theta": numbers.get("rotary_emb_base", 10000.0),
        "tie_word_embeddings": numbers.get("tie_word_embeddings", False),
    }
