"""BLIP's CapFilt: a captioner writes a second text for every web image, and a filter drops texts that do not match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lit_mm.annotation.description import Account, Description, Output, Row, Statement, Verdict
from lit_mm.annotation.engine import Engine, draw_seed
from lit_mm.annotation.experts import Expert, OverallExpert, ScoreExpert
from lit_mm.errors import UserError
from lit_mm.inference.decoding import Decoding

WEB, SYNTHETIC, HUMAN = "web", "synthetic", "human"
# The released captioner counts the four tokens of its prompt in both lengths; here new tokens are counted
NUCLEUS = Decoding(max_new_tokens=30, min_new_tokens=10, sample=True, top_p=0.9, repetition_penalty=1.1)


class CapFilt(Engine):
    """Writes three data sets: filtered web texts, filtered synthetic texts, and human texts as they are.

    The captioner writes one text per web image. The filter judges web text and synthetic text independently, so both,
    one or none of an image may pass. The share of dropped texts is the noise ratio of each kind. Captioner and filter
    are separate fine-tunings of one pre-trained model, which share no weights: sharing lowers the noise ratio of
    synthetic texts from 25 to 8 %. A new model is then trained on the three data sets from the original initialisation.

    Args:
        captioner: writes synthetic texts, by `NUCLEUS` as published; None: there are none.
        filter: scores texts; None: all texts pass.
        threshold: a text passes above this probability of a match. At 0.5 this is the decision of the matching head.
    Raises:
        UserError: there is neither a captioner nor a filter, or the threshold is not in 0 to 1.
    Source: arXiv:2201.12086, section 3.3; the threshold is by the authors, issues 46 and 54 of
        github.com/salesforce/BLIP. Code of CapFilt was not released.
    """

    def __init__(
        self,
        captioner: OverallExpert | None = None,
        filter: ScoreExpert | None = None,
        threshold: float = 0.5,
    ) -> None:
        super().__init__()
        if captioner is None and filter is None:
            raise UserError("CapFilt needs a `captioner`, a `filter`, or both, got neither")
        if not 0 <= threshold <= 1:
            raise UserError(f"CapFilt: `threshold` is 0 to 1, got {threshold:g}")
        self.captioner, self.filter, self.threshold = captioner, filter, threshold

    @property
    def subsets(self) -> tuple[str, ...]:
        return (WEB, SYNTHETIC, HUMAN)

    def experts(self) -> Mapping[str, Expert]:
        experts = {"captioner": self.captioner, "filter": self.filter}
        return {name: expert for name, expert in experts.items() if expert is not None}

    def annotate(self, rows: Sequence[Row], seed: int) -> list[Account]:
        web = [row for row in rows if not row.is_human]
        synthetic = self._synthetic(web, seed)
        pairs = [(row, WEB, row.text) for row in web if row.text.strip()]
        pairs += [(row, SYNTHETIC, text) for row, text in zip(web, synthetic, strict=True) if text.strip()]
        verdicts = {
            (row.number, kind): verdict for (row, kind, _), verdict in zip(pairs, self._judged(pairs), strict=True)
        }
        for row, text in zip(web, synthetic, strict=True):
            if self.captioner is not None and not text.strip():
                verdicts[row.number, SYNTHETIC] = Verdict(Description(text), "empty", "the captioner wrote nothing")
        return [self._account(row, verdicts) for row in rows]

    def _synthetic(self, rows: Sequence[Row], seed: int) -> list[str]:
        if self.captioner is None or not rows:
            return [""] * len(rows)
        with self.clock("captioner"):
            seeds = [draw_seed(seed, row, "captioner") for row in rows]
            captions = self.captioner.captions([row.image for row in rows], seeds)
        return [" ".join(caption.split()) for caption in captions]

    def _judged(self, pairs: Sequence[tuple[Row, str, str]]) -> list[Verdict]:
        """Judge each text by itself."""
        if self.filter is None or not pairs:
            return [Verdict(Description(text)) for _, _, text in pairs]
        with self.clock("filter"):
            scores = self.filter.scores([row.image for row, _, _ in pairs], [text for _, _, text in pairs])
        return [self._judge(text, score) for (_, _, text), score in zip(pairs, scores, strict=True)]

    def _judge(self, text: str, score: float) -> Verdict:
        description = Description(text, score=score)
        if score > self.threshold:
            return Verdict(description)
        reason = f"its match probability {score:.4g} is not above {self.threshold:g}"
        return Verdict(description, "score", reason)

    def _account(self, row: Row, verdicts: Mapping[tuple[int, str], Verdict]) -> Account:
        if row.is_human:
            return self._human(row)
        scorer = "" if self.filter is None else "filter"
        statements: list[Statement] = []
        outputs: list[Output] = []
        for kind, writer in ((WEB, ""), (SYNTHETIC, "captioner")):
            verdict = verdicts.get((row.number, kind))
            if verdict is None:
                continue
            statements.append(Statement(kind, writer, verdict, scorer if verdict.rule != "empty" else ""))
            if verdict.passed:
                outputs.append(Output(kind, writer, verdict.description.text))
        return Account(tuple(statements), tuple(outputs))

    @staticmethod
    def _human(row: Row) -> Account:
        if row.text.strip():
            return Account((Statement(HUMAN, "", Verdict(Description(row.text))),), (Output(HUMAN, "", row.text),))
        verdict = Verdict(Description(row.text), "empty", "the source has no text for this image")
        return Account((Statement(HUMAN, "", verdict),), ())
