"""BLIP's mixture of encoder and decoder (MED): one BERT that reads and writes text about an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_mm.errors import UserError
from lit_mm.layers.activations import prepare_layers
from lit_mm.layers.bert import BertAttention, BertFeedForward, BertHead, KeysAndValues
from lit_mm.layers.dropout import dropout
from lit_mm.weights.agreement import Difference
from lit_mm.weights.config_tables import BERT_ACTIVATION, BLIP_TEXT_KINDS, compare_bert

# N texts, L positions, S keys, W width, H heads, P image features, D width of the image features

ENCODER, DECODER = "encoder", "decoder"  # parts with what encoder and decoder do not share
Mode = Literal["encoder", "decoder"]


class MEDLayer(GradientCheckpointingLayer):
    """A layer with a self-attention each for encoder and decoder, and with one cross-attention and one feed-forward."""

    parts_within: Mapping[str, str] = {"encoder_attention": ENCODER, "decoder_attention": DECODER}

    def __init__(self, width: int, vision_width: int, heads: int, ffn_width: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.encoder_attention = BertAttention(width, width, heads, dropout, eps)
        self.decoder_attention = BertAttention(width, width, heads, dropout, eps)
        self.cross = BertAttention(width, vision_width, heads, dropout, eps)
        self.ffn = BertFeedForward(width, ffn_width, dropout, eps)

    def forward(
        self,
        x: Tensor,
        mode: Mode,
        mask: Tensor | None = None,
        features: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """[N, L, W] -> [N, L, W].

        Args:
            mode: whose self-attention is used.
            mask: [N, 1, L or 1, S] False where a position may not attend to another; None: everywhere.
            features: [N, P, D] image features; None skips the cross-attention, unless a cache has its keys.
            cache: keys and values of earlier positions, which precede those of `x`, and of the image; None: no cache.
        """
        self_attention = self.encoder_attention if mode == ENCODER else self.decoder_attention
        context = self_attention.keys(x)
        if cache is not None:
            context = cache.extended(*context)
        x = self_attention(x, context, mask)
        if features is not None or cache is not None:
            x = self.cross(x, self.cross.keys(features) if cache is None else cache.image)
        return self.ffn(x)


@dataclass
class LayerCache:
    """Keys and values of one layer during decoding.

    Attributes:
        image: keys and values of the image, each [N, H, P, W / H].
        text: keys and values of the text so far, each [N, H, S, W / H]; None before the first position.
    """

    image: KeysAndValues
    text: KeysAndValues | None = None

    def extended(self, keys: Tensor, values: Tensor) -> KeysAndValues:
        """Append keys and values of new positions, and return all."""
        if self.text is not None:
            keys, values = torch.cat([self.text[0], keys], dim=2), torch.cat([self.text[1], values], dim=2)
        self.text = keys, values
        return self.text


@dataclass
class MEDState:
    """The decoding state of N texts, which are padded on the left.

    Attributes:
        caches: keys and values of every layer.
        visible: [N, S] True at tokens, False at padding.
    """

    caches: list[LayerCache]
    visible: Tensor

    def reorder(self, samples: Tensor) -> None:
        """Select texts [N'] in this order."""
        self.visible = self.visible[samples]
        for cache in self.caches:
            cache.image = cache.image[0][samples], cache.image[1][samples]
            if cache.text is not None:
                cache.text = cache.text[0][samples], cache.text[1][samples]


class Padded(NamedTuple):
    """Texts of a flat row as a table.

    Attributes:
        ids: [N, L] token ids, 0 at padding.
        visible: [N, L] True at tokens. `hidden[visible]` is the flat row again.
    """

    ids: Tensor
    visible: Tensor


def pad_left(ids: Tensor, lengths: Sequence[int]) -> Padded:
    """Lay out a flat row of token ids [1, T] as one row per text."""
    longest = max(lengths)
    counts = torch.tensor(lengths, device=ids.device)
    visible = torch.arange(longest, device=ids.device) >= longest - counts[:, None]  # [N, L]
    return Padded(ids.new_zeros(len(lengths), longest).masked_scatter(visible, ids[0]), visible)


def pad_right(ids: Tensor, lengths: Sequence[int]) -> Padded:
    """Lay out a flat row of token ids [1, T] as one row per text, with padding on the right."""
    counts = torch.tensor(lengths, device=ids.device)
    visible = torch.arange(max(lengths), device=ids.device) < counts[:, None]  # [N, L]
    return Padded(ids.new_zeros(visible.shape).masked_scatter(visible, ids[0]), visible)


class MED(nn.Module):
    """A BERT with cross-attention to an image in every layer, as text encoder, image-grounded encoder and decoder.

    | mode | features | self-attention | BLIP's first token |
    |---|---|---|---|
    | encoder | none | bidirectional | [CLS] |
    | encoder | image | bidirectional | [ENC] |
    | decoder | image | causal | [DEC] |

    Encoder and decoder share embeddings, cross-attention and feed-forward. Each has its self-attention (with the output
    projection and the norm behind it), in the parts "encoder" and "decoder". The head that predicts text belongs to
    the decoder; its projection is the table of word embeddings.

    Args:
        vision_width: D, width of the image features.
        vocab_size: number of token ids. BLIP: 30524, BERT's with [DEC] and [ENC].
        width: W. BERT-base: 768.
        layers: number of layers. BERT-base: 12.
        heads: number of attention heads. BERT-base: 12.
        ffn_width: hidden width of the feed-forwards. BERT-base: 3072.
        max_positions: longest text, tokens.
        dropout: dropout probability of hidden states and of attention weights.
        eps: epsilon of the layer norms.
        activation_checkpointing: "full" recomputes each layer in the backward pass, in training without a cache; "none"
            keeps its activations.
        weights: reference of the checkpoint that `load_pretrained` loads later; the constructor reads nothing.
    Raises:
        UserError: the heads do not divide the width.
    Source: arXiv:2201.12086, section 3.1; github.com/salesforce/BLIP, models/med.py and models/blip_pretrain.py, whose
        `tie_encoder_decoder_weights` skips the self-attention.
    """

    parts_within: Mapping[str, str] = {"head": DECODER}

    def __init__(
        self,
        vision_width: int,
        vocab_size: int,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        ffn_width: int = 3072,
        max_positions: int = 512,
        dropout: float = 0.1,
        eps: float = 1e-12,
        activation_checkpointing: Literal["none", "full"] = "none",
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"MED: `heads` must divide `width`, got {width=}, {heads=}")
        self.width, self.vocab_size, self.heads, self.num_layers = width, vocab_size, heads, layers
        self.dropout, self.weights = dropout, weights
        self.words = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(max_positions, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.layers = nn.ModuleList(
            MEDLayer(width, vision_width, heads, ffn_width, dropout, eps) for _ in range(layers)
        )
        self.head = BertHead(width, vocab_size, eps)
        self.activation_checkpointing = activation_checkpointing
        prepare_layers(self, activation_checkpointing)
        self.apply(_draw)

    def compare_config(self, config: dict[str, Any]) -> list[Difference]:
        """Compare the part with the config.json of its weights, see `lit_mm.weights.agreement`."""
        numbers = {
            "width": self.width,
            "layers": self.num_layers,
            "heads": self.heads,
            "ffn_width": self.layers[0].ffn.fc1.out_features,
            "max_positions": self.positions.num_embeddings,
            "eps": self.norm.eps,
            "activation": BERT_ACTIVATION,
        }
        return compare_bert(config, numbers, "text_config", BLIP_TEXT_KINDS, {})

    def forward(
        self,
        ids: Tensor,
        visible: Tensor,
        mode: Mode = ENCODER,
        features: Tensor | None = None,
        caches: Sequence[LayerCache] | None = None,
    ) -> Tensor:
        """Token ids [N, L] -> hidden states [N, L, W].

        Args:
            ids: token ids. With caches they follow the texts in the caches.
            visible: [N, S] True at tokens of the whole text, False at padding on either side; S = L without caches.
            mode: "encoder" sees the whole text, "decoder" each position and those before it.
            features: [N, P, D] features of the image of every text; None: the text alone.
            caches: keys and values of every layer, which this call extends; None: no cache.
        Raises:
            UserError: the text is longer than the position table.
        """
        longest = visible.shape[1]
        if longest > self.positions.num_embeddings:
            raise UserError(
                f"MED: a text has {longest} tokens, the position table {self.positions.num_embeddings}. Shorten the "
                "text, or raise `max_positions`"
            )
        places = (visible.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]  # position of each token in its text
        x = dropout(self.norm(self.words(ids) + self.positions(places)), self.dropout, self.training)
        mask = visible[:, None, None]  # [N, 1, 1, S]
        if mode == DECODER and ids.shape[1] > 1:
            rows = torch.arange(longest - ids.shape[1], longest, device=ids.device)
            causal = rows[:, None] >= torch.arange(longest, device=ids.device)  # [L, S]
            # a padding row sees itself, so that no softmax is empty
            mask = (mask & causal) | (rows[:, None] == torch.arange(longest, device=ids.device))
        for number, layer in enumerate(self.layers):
            x = layer(x, mode, mask, features, caches[number] if caches is not None else None)
        return x

    def caches(self, features: Tensor) -> list[LayerCache]:
        """Make caches that hold the keys and values of image features [N, P, D], and no text yet."""
        return [LayerCache(layer.cross.keys(features)) for layer in self.layers]

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states of the decoder [..., W] -> [..., vocabulary]."""
        return self.head(hidden, self.words.weight)

    def decode(self, ids: Tensor, lengths: Sequence[int], features: Tensor) -> Tensor:
        """Run the decoder over a flat row of texts [1, T] and the image features of each, [N, P, D].

        Returns:
            [T, W] hidden states of the row.
        """
        padded = pad_left(ids, lengths)
        return self(padded.ids, padded.visible, DECODER, features)[padded.visible]

    def begin(self, ids: Tensor, lengths: Sequence[int], features: Tensor) -> tuple[Tensor, MEDState]:
        """Read prompts, a flat row [1, T]; return hidden states [N, W] that predict the next token, and the state."""
        padded = pad_left(ids, lengths)
        caches = self.caches(features)
        hidden = self(padded.ids, padded.visible, DECODER, features, caches)
        return hidden[:, -1], MEDState(caches, padded.visible)

    def step(self, tokens: Tensor, state: MEDState) -> Tensor:
        """Read one more token [N] of every text; return hidden states [N, W] that predict the next token."""
        state.visible = F.pad(state.visible, (0, 1), value=True)
        return self(tokens[:, None], state.visible, DECODER, caches=state.caches)[:, -1]

    def layer_of(self, parameter_name: str) -> int:
        """Depth of a parameter, for layer-wise learning rates: 0 = embeddings, i + 1 = layer i and the head behind."""
        piece, _, rest = parameter_name.partition(".")
        if piece == "head":
            return self.num_layers
        return int(rest.split(".", 1)[0]) + 1 if piece == "layers" else 0


def _draw(module: nn.Module) -> None:
    """Draw BERT's initial weights."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
