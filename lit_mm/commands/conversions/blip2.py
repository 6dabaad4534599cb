"""BLIP-2 in the layouts of transformers: one for each stage."""

from __future__ import annotations

from typing import Any

from transformers import Blip2Config, Blip2ForImageTextRetrieval

from lit_mm.commands.conversions.conversion import (
    Conversion,
    Files,
    grown,
    id_of,
    processor_texts,
    rows_with,
    tensors_of_transformers,
    text_config,
)
from lit_mm.commands.conversions.instructblip import COPIES, DTYPE, PLACEHOLDER, vision_config
from lit_mm.connectors.qformer_paired import PairedQFormer
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule
from lit_mm.tiling.plan import Stretch

FAMILY = "lit_mm.families.Blip2"
HEAD = "language_model.lm_head.weight"


def qformer_config(connector: PairedQFormer, vision_width: int, *, reads_text: bool) -> dict[str, Any]:
    """Build the config of the Q-Former.

    Args:
        vision_width: width of the image features.
        reads_text: True if the files hold its text branch.
    """
    qformer = connector.qformer
    layers = qformer.layers
    crossing = [number for number, layer in enumerate(layers) if layer.cross is not None]
    vocabulary = {} if qformer.words is None else {"vocab_size": qformer.words.num_embeddings}
    positions = {} if qformer.words is None else {"max_position_embeddings": qformer.positions.num_embeddings}
    return {
        **vocabulary,
        **positions,
        "hidden_size": qformer.width,
        "num_hidden_layers": len(layers),
        "num_attention_heads": layers[0].attention.heads,
        "intermediate_size": layers[0].query_ffn.fc1.out_features,
        "hidden_dropout_prob": qformer.dropout,
        "attention_probs_dropout_prob": qformer.dropout,
        "layer_norm_eps": qformer.norm.eps,
        "cross_attention_frequency": crossing[1] if len(crossing) > 1 else len(layers),
        "encoder_hidden_size": vision_width,
        "use_qformer_text_input": reads_text,
    }


def halves(module: MultimodalModule, *, reads_text: bool) -> dict[str, Any]:
    """Build the arguments of `Blip2Config` that both stages have.

    transformers gives the norm of the features the encoder's epsilon, 1e-6; LAVIS has 1e-5 there.

    Raises:
        UserError: parts or inputs of the model are none of BLIP-2's in transformers.
    """
    connector, tiling = module.network.connector, module.processor.tiling
    if not isinstance(tiling, Stretch) or not isinstance(connector, PairedQFormer):
        raise UserError(
            f"transformers' BLIP-2 has a Q-Former and stretches images to squares; the run has a "
            f"{type(connector).__name__} and {tiling}"
        )
    vision = vision_config(module)
    sizes = {key: value for key, value in vision.to_dict().items() if key != "model_type"}
    return {
        "vision_config": sizes,
        "qformer_config": qformer_config(connector, vision.hidden_size, reads_text=reads_text),
        "num_query_tokens": len(connector.qformer.queries),
    }


def pixels(module: MultimodalModule, queries: int | None) -> dict[str, str]:
    """Build the configs of the processor.

    Args:
        queries: number of visual tokens in the text; None for a text without.
    """
    side = module.network.vision.image_size
    return processor_texts("Blip2Processor", module, side, {"num_query_tokens": queries})


def generation(module: MultimodalModule) -> Files:
    """Describe the files of the second stage.

    Raises:
        UserError: parts or inputs of the model are none of BLIP-2's in transformers.
    """
    arguments = halves(module, reads_text=False)
    text = text_config(module, ("opt", "t5"))
    rows, token_id = text.vocab_size, id_of(PLACEHOLDER, module)
    text.vocab_size = rows_with(token_id, rows)
    if text.model_type == "t5":  # its config would replace the activation
        text.dense_act_fn = module.network.language.lm.config.dense_act_fn
        text.decoder_start_token_id = module.network.language.start_id
    config = Blip2Config(**arguments, text_config=text.to_dict(), image_token_index=token_id)
    tensors = tensors_of_transformers(config, DTYPE, rows)
    tied = {name for name in tensors if COPIES in name} if text.model_type == "t5" else {HEAD}
    if text.model_type == "t5" or text.tie_word_embeddings:
        tensors = {name: stored for name, stored in tensors.items() if name not in tied}
    return Files(
        config.to_dict() | {"architectures": ["Blip2ForConditionalGeneration"], "dtype": DTYPE},
        tensors,
        grown(tensors, text.vocab_size),
        token=PLACEHOLDER,
        texts=pixels(module, config.num_query_tokens),
    )


def retrieval(module: MultimodalModule) -> Files:
    """Describe the files of the first stage, with the tokenizer of the Q-Former.

    Raises:
        UserError: parts or inputs of the model are none of BLIP-2's in transformers.
    """
    contrast, _ = module.network.connector.heads()
    width = contrast.vision.out_features
    config = Blip2Config(**halves(module, reads_text=True), image_text_hidden_size=width, image_token_index=None)
    return Files(
        config.to_dict() | {"architectures": ["Blip2ForImageTextRetrieval"], "dtype": DTYPE},
        tensors_of_transformers(config, DTYPE, 0, family=Blip2ForImageTextRetrieval),
        texts=pixels(module, None),
        tokenizer=module.processor.reading.tokenizer,
        parts={"language": module.network.language.lm.config.to_dict()},
    )


CONVERSIONS = (
    Conversion("blip2/hf", FAMILY, generation, frozenset({"next_token"})),
    Conversion("blip2_retrieval/hf", FAMILY, retrieval, frozenset({"itc", "itm", "itg"})),
)
