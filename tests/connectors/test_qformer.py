"""The Q-Former and its connectors. Its outputs are tested in tests/parity/test_blip2_qformer.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_mm.connectors.flags import WithFlags
from lit_mm.connectors.qformer import QFormer, who_sees_whom
from lit_mm.connectors.qformer_projector import QFormerProjector
from lit_mm.errors import UserError

SIZES = {"queries": 3, "width": 16, "layers": 4, "heads": 2, "ffn_width": 24}
TEXT = {"vocab_size": 30, "max_positions": 6, "head": True}
IDS = torch.tensor([[1, 4, 5], [1, 6, 0]])
REAL = torch.tensor([[1, 1, 1], [1, 1, 0]])


def test_shapes_of_the_modes() -> None:
    qformer, features = QFormer(10, **SIZES, **TEXT).eval(), torch.randn(2, 7, 10)
    assert qformer(features).shape == (2, 3, 16)
    assert qformer(None, IDS).shape == (2, 3, 16)
    assert qformer(features, IDS).shape == (2, 6, 16)
    assert qformer.logits(qformer(None, IDS)).shape == (2, 3, 30)
    assert [layer.cross is not None for layer in qformer.layers] == [True, False, True, False]


def test_who_sees_whom() -> None:
    def rows(sight: Any) -> list[str]:
        mask = who_sees_whom(sight, 2, torch.tensor([[1, 1, 0]]))[0]
        return ["".join(str(int(seen)) for seen in row) for row in mask]

    assert rows("unimodal") == ["11000", "11000", "00110", "00110", "00110"]
    assert rows("bidirectional") == ["11110"] * 5
    assert rows("multimodal_causal") == ["11000", "11000", "11100", "11110", "11110"]


def test_a_mask_hides_what_it_says() -> None:
    qformer, features = QFormer(10, **SIZES, **TEXT).eval(), torch.randn(2, 7, 10)
    other = IDS.clone()
    other[:, -1] = 9  # padding of the second row, the last token of the first
    causal = who_sees_whom("multimodal_causal", 3, REAL)
    one, two = qformer(features, IDS, causal), qformer(features, other, causal)
    torch.testing.assert_close(one[:, :5], two[:, :5])  # queries and earlier text
    assert not torch.allclose(one[0, 5], two[0, 5])
    everyone = who_sees_whom("bidirectional", 3, REAL)
    one, two = qformer(features, IDS, everyone), qformer(features, other, everyone)
    assert not torch.allclose(one[0, :3], two[0, :3])
    torch.testing.assert_close(one[1, :5], two[1, :5])  # padding is seen by nobody


def test_every_parameter_of_the_mode_gets_a_gradient_and_no_other() -> None:
    features = torch.randn(2, 7, 10)

    def learnt(*inputs: Any, head: bool = False) -> set[str]:
        qformer = QFormer(10, **SIZES, **TEXT)
        out = qformer(*inputs)
        (qformer.logits(out) if head else out).square().sum().backward()
        key = ("key.bias",)  # softmax does not feel it, up to rounding
        return {n for n, p in qformer.named_parameters() if p.grad is not None and p.grad.any() and key[0] not in n}

    every = {n for n, _ in QFormer(10, **SIZES, **TEXT).named_parameters() if not n.endswith("key.bias")}
    text = {n for n in every if n.startswith(("words", "positions", "head")) or "text_ffn" in n}
    image = {n for n in every if n == "queries" or "cross" in n or "query_ffn" in n}
    assert learnt(features) == every - text
    assert learnt(None, IDS, head=True) == every - image
    assert learnt(features, IDS, head=True) == every


def test_dropout_acts_in_training_alone() -> None:
    qformer, features = QFormer(10, **SIZES, dropout=0.5), torch.randn(2, 7, 10)
    assert not torch.equal(qformer(features), qformer(features))
    qformer.eval()
    assert torch.equal(qformer(features), qformer(features))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": 3}, "`heads` must divide"),
        ({"queries": 0}, "at least 1"),
        ({"cross_every": 0}, "at least 1"),
        ({"head": True}, "needs a text branch"),
    ],
)
def test_what_cannot_be_built_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        QFormer(10, **SIZES | wrong)


def test_what_cannot_be_read_is_refused() -> None:
    bare, full = QFormer(10, **SIZES), QFormer(10, **SIZES, **TEXT)
    with pytest.raises(UserError, match="neither image features nor text ids"):
        full()
    with pytest.raises(UserError, match="has no text branch"):
        bare(None, IDS)
    with pytest.raises(UserError, match="7 tokens, the position table 6"):
        full(None, torch.zeros(1, 7, dtype=torch.long))
    with pytest.raises(UserError, match="no head that predicts text"):
        bare.logits(torch.zeros(1, 16))


# --- around it -------------------------------------------------------------------------------------------------------
def test_a_projector_makes_its_queries_of_any_number_of_features() -> None:
    projector = QFormerProjector(10, 20, **SIZES, cross_every=2)
    for features in (1, 7, 50):
        assert projector(torch.randn(2, features, 10)).shape == (2, 3, 20)
    assert projector.token_grid((4, 9)) == (1, 3)
    assert projector.learned().shape == (0, 20)
    projector(torch.randn(2, 7, 10)).square().sum().backward()
    assert all(p.grad is not None for p in projector.parameters())


def test_visual_tokens_start_at_the_given_scale() -> None:
    torch.manual_seed(0)
    tokens = QFormerProjector(10, 400, **SIZES | {"width": 64}, start=0.3)(torch.randn(8, 7, 10) * 70)
    assert tokens.std().item() == pytest.approx(0.3, rel=0.1)


def test_flags_stand_before_the_connectors_own_vectors() -> None:
    inner = WithFlags(QFormerProjector(10, 20, **SIZES), 20)
    flags = WithFlags(inner, 20)
    torch.nn.init.constant_(flags.start, 1)
    torch.nn.init.constant_(flags.end, 2)
    torch.nn.init.constant_(inner.start, 3)
    assert flags.learned()[:, 0].tolist() == [1, 2, 3, 0]
    assert flags.token_grid((2, 2)) == (1, 3)
    assert not inner.end.any()  # zeros when new
    x = torch.randn(2, 7, 10)
    assert flags.eval()(x).shape == (2, 3, 20)
