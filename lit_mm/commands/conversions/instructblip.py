"""InstructBLIP in the layout of transformers."""

from __future__ import annotations

from timm.models.eva import Eva
from transformers import InstructBlipConfig, InstructBlipQFormerConfig, InstructBlipVisionConfig

from lit_mm.commands.conversions.conversion import (
    Conversion,
    Files,
    config_values,
    grown,
    id_of,
    processor_texts,
    rows_with,
    tensors_of_transformers,
    text_config,
)
from lit_mm.connectors.qformer_paired import PairedQFormer
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule
from lit_mm.tiling.plan import Stretch
from lit_mm.vision.timm_encoder import TimmEncoder
from lit_mm.weights.layouts.instructblip import FOLDER

DTYPE = "float32"  # of the published files
PLACEHOLDER = "<image>"
COPIES = "embed_tokens"  # copies of T5's embeddings, which the files leave out


def vision_config(module: MultimodalModule) -> InstructBlipVisionConfig:
    """Build the config of the vision encoder.

    Raises:
        UserError: it is no EVA with its class token.
    """
    vision = module.network.vision
    if not isinstance(vision, TimmEncoder) or not isinstance(vision.model, Eva) or vision.drop_cls:
        raise UserError(f"this layout holds an EVA with its class token; the run has a {type(vision).__name__}")
    block = vision.model.blocks[0]
    return InstructBlipVisionConfig(
        hidden_size=vision.model.embed_dim,
        intermediate_size=block.mlp.fc1.out_features,
        num_hidden_layers=len(vision.model.blocks),
        num_attention_heads=block.attn.num_heads,
        image_size=vision.image_size,
        patch_size=vision.patch_grid.patch,
        layer_norm_eps=block.norm1.eps,
        qkv_bias=True,
    )


def qformer_config(connector: PairedQFormer, vision_width: int) -> InstructBlipQFormerConfig:
    """Build the config of the Q-Former.

    Raises:
        UserError: it reads no text.
    """
    qformer = connector.qformer
    if not connector.reads_text:
        raise UserError("this layout holds a Q-Former that reads the instruction; the run has one that reads no text")
    layers = qformer.layers
    crossing = [number for number, layer in enumerate(layers) if layer.cross is not None]
    return InstructBlipQFormerConfig(
        vocab_size=qformer.words.num_embeddings,
        hidden_size=qformer.width,
        num_hidden_layers=len(layers),
        num_attention_heads=layers[0].attention.heads,
        intermediate_size=layers[0].query_ffn.fc1.out_features,
        hidden_dropout_prob=qformer.dropout,
        attention_probs_dropout_prob=qformer.dropout,
        max_position_embeddings=qformer.positions.num_embeddings,
        layer_norm_eps=qformer.norm.eps,
        cross_attention_frequency=crossing[1] if len(crossing) > 1 else len(layers),
        encoder_hidden_size=vision_width,
    )


def files(module: MultimodalModule) -> Files:
    """Describe the files of transformers.

    Raises:
        UserError: parts or inputs of the model are none of InstructBLIP's in transformers.
    """
    connector, processor = module.network.connector, module.processor
    if not isinstance(processor.tiling, Stretch) or not isinstance(connector, PairedQFormer):
        raise UserError(
            f"transformers' InstructBLIP has a Q-Former and stretches images to squares; the run has a "
            f"{type(connector).__name__} and {processor.tiling}"
        )
    vision, text = vision_config(module), text_config(module, ("llama", "t5"))
    rows, token_id = text.vocab_size, id_of(PLACEHOLDER, module)
    text.vocab_size = rows_with(token_id, rows)
    if text.model_type == "t5":  # its config would replace the activation
        text.dense_act_fn = module.network.language.lm.config.dense_act_fn
        text.decoder_start_token_id = module.network.language.start_id
    queries = len(connector.qformer.queries)
    config = InstructBlipConfig(
        vision_config=vision.to_dict(),
        qformer_config=qformer_config(connector, vision.hidden_size).to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=queries,
        image_token_index=token_id,
    )
    tensors = tensors_of_transformers(config, DTYPE, rows)
    if text.model_type == "t5":
        tensors = {name: stored for name, stored in tensors.items() if COPIES not in name}
    return Files(
        config_values(config, "InstructBlipForConditionalGeneration", DTYPE),
        tensors,
        grown(tensors, text.vocab_size),
        token=PLACEHOLDER,
        texts=processor_texts("InstructBlipProcessor", module, vision.image_size, {"num_query_tokens": queries}),
        tokenizers={FOLDER: processor.reading.tokenizer},
    )


CONVERSIONS = (Conversion("instructblip/hf", "lit_mm.families.InstructBlip", files),)
