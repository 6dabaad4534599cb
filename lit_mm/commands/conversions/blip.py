"""BLIP in the layouts of transformers: captioner and retrieval model."""

from __future__ import annotations

from transformers import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval, PreTrainedModel

from lit_mm.commands.conversions.conversion import Conversion, Files, processor_texts, tensors_of_transformers
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule
from lit_mm.tiling.plan import Stretch
from lit_mm.vision.timm_vit import TimmViT
from lit_mm.weights.layouts.blip import TIED

FAMILY = "lit_mm.families.Blip"
DTYPE = "float32"  # of the published files


def files(module: MultimodalModule, family: type[PreTrainedModel]) -> Files:
    """Describe the files of a model of transformers.

    Raises:
        UserError: parts or inputs of the model are none of BLIP's in transformers.
    """
    network, processor = module.network, module.processor
    vision, text = network.vision, network.text
    if not isinstance(processor.tiling, Stretch) or not isinstance(vision, TimmViT):
        raise UserError(
            f"transformers' BLIP has a ViT and stretches images to squares; the run has a {type(vision).__name__} and "
            f"{processor.tiling}"
        )
    block, tokenizer = vision.vit.blocks[0], processor.tokenizer
    side = vision.image_size
    config = BlipConfig(
        vision_config={
            "hidden_size": vision.width,
            "intermediate_size": block.mlp.fc1.out_features,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.heads,
            "image_size": side,
            "patch_size": vision.patch_grid.patch,
            "layer_norm_eps": block.norm1.eps,
        },
        text_config={
            "vocab_size": text.vocab_size,
            "hidden_size": text.width,
            "encoder_hidden_size": vision.width,
            "intermediate_size": text.layers[0].ffn.fc1.out_features,
            "num_hidden_layers": text.num_layers,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.positions.num_embeddings,
            "hidden_dropout_prob": text.dropout,
            "attention_probs_dropout_prob": text.dropout,
            "layer_norm_eps": text.norm.eps,
            "bos_token_id": network.decoder_id,
            "eos_token_id": tokenizer.eos_id,
            "sep_token_id": tokenizer.eos_id,
            "pad_token_id": tokenizer.pad_id,
        },
        image_text_hidden_size=network.contrast.width,
    )
    tensors = tensors_of_transformers(config, DTYPE, 0, family=family)
    tensors = {name: stored for name, stored in tensors.items() if not name.endswith(tuple(TIED))}
    return Files(
        config.to_dict() | {"architectures": [family.__name__], "dtype": DTYPE},
        tensors,
        texts=processor_texts("BlipProcessor", module, side),
    )


def captioner(module: MultimodalModule) -> Files:
    """Describe the files of the captioner, see `files`."""
    return files(module, BlipForConditionalGeneration)


def retrieval(module: MultimodalModule) -> Files:
    """Describe the files of the retrieval model, see `files`."""
    return files(module, BlipForImageTextRetrieval)


CONVERSIONS = (
    Conversion("blip/hf", FAMILY, captioner, frozenset({"lm"})),
    Conversion("blip_retrieval/hf", FAMILY, retrieval, frozenset({"itc_finetune", "itm_finetune", "itc", "itm"})),
)
