"""BERT and DeiT checkpoints start BLIP's parts."""

from __future__ import annotations

import timm
import torch
from transformers import BertConfig, BertForPreTraining

from lit_mm.language.med import DECODER, ENCODER, MED
from lit_mm.vision.timm_vit import TimmViT
from lit_mm.weights.blip import bert_to_med, deit_to_vit
from lit_mm.weights.convert import load_strict


def bert() -> BertForPreTraining:
    config = BertConfig(
        vocab_size=30,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=16,
    )
    model = BertForPreTraining(config).eval()
    torch.nn.init.zeros_(model.bert.embeddings.token_type_embeddings.weight)  # BLIP has none
    return model


@torch.inference_mode()
def test_text_encoder_that_starts_from_bert_equals_bert() -> None:
    model, text = bert(), MED(8, 32, 24, 2, 3, 40, 16).eval()
    fresh = {name: tensor.clone() for name, tensor in text.state_dict().items()}
    load_strict(text, bert_to_med(model.state_dict(), text))
    ids, visible = torch.randint(30, (2, 5)), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    expected = model.bert(ids, attention_mask=visible).last_hidden_state
    torch.testing.assert_close(text(ids, visible)[visible], expected[visible], rtol=0, atol=1e-5)
    for name, tensor in text.state_dict().items():
        if ".cross." in name:
            assert torch.equal(tensor, fresh[name])
    assert torch.equal(text.words.weight[30:], fresh["words.weight"][30:])
    encoder, decoder = text.layers[0].encoder_attention.query.weight, text.layers[0].decoder_attention.query.weight
    assert torch.equal(encoder, decoder) and encoder.data_ptr() != decoder.data_ptr()


@torch.inference_mode()
def test_vision_encoder_that_starts_from_deit_equals_timm() -> None:
    model = timm.create_model("deit_tiny_patch16_224", img_size=32, depth=2).eval()
    vision = TimmViT(32, 16, 192, 2, 3).eval()
    load_strict(vision, deit_to_vit(model.state_dict()))
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(vision(pixels), model.forward_features(pixels))


@torch.inference_mode()
def test_position_table_of_another_image_size_is_resized_on_loading() -> None:
    small, large = TimmViT(32, 16, 12, 1, 2), TimmViT(64, 16, 12, 1, 2, position_size=32)
    load_strict(large, small.state_dict())
    assert large(torch.randn(1, 3, 64, 64)).shape == (1, 17, 12)


def test_later_tokens_change_the_encoder_and_not_the_decoder() -> None:
    text = MED(8, 32, 24, 2, 3, 40, 16).eval()
    ids, features = torch.randint(32, (1, 5)), torch.randn(1, 3, 8)
    other = ids.clone()
    other[0, -1] = (ids[0, -1] + 1) % 32
    visible = torch.ones(1, 5, dtype=torch.bool)
    for mode, same in ((ENCODER, False), (DECODER, True)):
        first, second = (text(x, visible, mode, features)[0, 0] for x in (ids, other))
        assert torch.equal(first, second) is same, mode


@torch.inference_mode()
def test_position_table_is_resized_in_every_forward_with_any_view() -> None:
    small = TimmViT(32, 16, 12, 1, 2, any_view=True).eval()
    large = TimmViT(64, 16, 12, 1, 2, position_size=32).eval()
    load_strict(large, small.state_dict())
    pixels = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(small(pixels), large(pixels), rtol=0, atol=1e-5)
