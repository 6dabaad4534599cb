"""Candidates are ranked by the likelihood that training would give them."""

from __future__ import annotations

import pytest
import torch

from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.evaluation.answering import ranked, verbalisers
from lit_mm.evaluation.benchmarks.benchmark import Candidates
from lit_mm.evaluation.benchmarks.question import Question
from lit_mm.evaluation.candidates import candidate_ids, likelihoods
from lit_mm.families import EncoderDecoder
from lit_mm.inference.generate import prompt_sample
from lit_mm.language.t5 import T5
from lit_mm.samples.collate import collate
from tests.tiny import Noise, xcomposer2

TEXTS = ("red", "a large blue circle", "page 123", "?")


def decoder_only():
    return xcomposer2(trained=True).eval()


def encoder_decoder():
    torch.manual_seed(0)
    language = T5(width=32, layers=2, heads=2, head_width=16, ffn_width=48, vocab_size=512)
    return EncoderDecoder(language, "nano").eval()


def questions(pictures: bool) -> list[Document]:
    return [
        Document(str(n), (Turn("user", ((Noise(n),) if pictures else ()) + (f"what is the colour {'of ' * n}?",)),))
        for n in range(3)
    ]


def by_learning(module, document: Document, text: str, end: bool) -> list[float]:
    """Log-probabilities of the candidate's tokens as in training, where the answer is a part of the row."""
    whole = Document(document.id, (*document.turns, Turn("assistant", (text,))))
    learnt = module.network(collate([module.processor.sample(whole)], module.processor))
    scores = module.network.language.logits(learnt.hidden).log_softmax(-1)
    values = scores.gather(1, learnt.ids[:, None])[:, 0].tolist()
    stop = module.processor.prompt.stop_ids(module.processor.tokenizer)
    last = next(n for n, token in enumerate(learnt.ids.tolist()) if token in stop)
    return values[: last + end]


@pytest.mark.parametrize("end", [False, True], ids=["without its end", "with its end"])
@pytest.mark.parametrize("make", [decoder_only, encoder_decoder])
@torch.no_grad()
def test_the_likelihood_of_a_candidate_is_that_of_training(make, end: bool) -> None:
    module = make()
    documents = questions(pictures=make is decoder_only)
    groups = [TEXTS[: 2 + number] for number in range(3)]  # two, three and four candidates
    ids = [
        [candidate_ids(module.processor, document, text, end=end) for text in group]
        for document, group in zip(documents, groups, strict=True)
    ]
    batch = collate(
        [prompt_sample(module.processor, document) for document in documents], module.processor.for_questions()
    )
    sums = likelihoods(module.network, batch, ids, length="sum")
    means = likelihoods(module.network, batch, ids, length="mean")
    for document, group, of_sums, of_means in zip(documents, groups, sums, means, strict=True):
        for text, total, mean in zip(group, of_sums, of_means, strict=True):
            values = by_learning(module, document, text, end)
            assert total == pytest.approx(sum(values), abs=2e-5)  # fp32; measured 5e-6
            assert mean == pytest.approx(sum(values) / len(values), abs=2e-5)


def test_the_likeliest_verbaliser_decides() -> None:
    module = decoder_only()
    question = Question("q", Noise(0), "what is it ?", ())
    document = Document("q", (Turn("user", (Noise(0), "what is it ?")),))
    with torch.no_grad():
        batch = collate([prompt_sample(module.processor, document)], module.processor)
        ids = [candidate_ids(module.processor, document, text) for text in TEXTS]
        values = likelihoods(module.network, batch, [ids])[0]
    best = values.index(max(values))
    texts = {"others": tuple(text for n, text in enumerate(TEXTS) if n != best), "best": (TEXTS[best],)}
    assert ranked(module, [document], [question], Candidates(texts)) == ["best"]


def test_the_options_of_a_question_are_ranked_as_letters_or_as_texts() -> None:
    question = Question("q", None, "?", ("B",), choices=("red", "blue"))
    assert verbalisers(question, Candidates()) == {"A": ("A",), "B": ("B",)}
    assert verbalisers(question, Candidates(as_letters=False)) == {"A": ("red",), "B": ("blue",)}
    with pytest.raises(UserError, match="no options to rank"):
        verbalisers(Question("q", None, "?", ()), Candidates())


def test_a_candidate_without_tokens_is_refused() -> None:
    module = decoder_only()
    with pytest.raises(UserError, match="has no token"):
        candidate_ids(module.processor, questions(True)[0], "")
