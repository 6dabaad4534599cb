"""This benchmark measures whether a captioner looks: CIDEr-D with a page's own picture and with another page's picture.

    python benchmarks/captions.py runs/families/blip [--stage caption] [--pages 400]

The run's model writes captions for held-out pages, by greedy decoding. The references are the captions of the pages.
It prints both figures, and their difference with its 95 % interval (paired bootstrap over pages).
"""

from __future__ import annotations

import argparse

from lit_mm.commands.recipe import quiet
from lit_mm.commands.trained import open_trained
from lit_mm.documents.document import Document
from lit_mm.evaluation.examiners import without_sight
from lit_mm.evaluation.metrics import Row, Scored, score_rows
from lit_mm.evaluation.statistics import paired_bootstrap
from lit_mm.inference.generate import answer
from lit_mm.module import MultimodalModule

TOKENS = 48  # longest caption


def captions(module: MultimodalModule, documents: list[Document], references: list[Document]) -> Scored:
    """Score the captions of documents by CIDEr-D."""
    texts = answer(module, documents, batch_size=64, max_new_tokens=TOKENS)
    pairs = zip(texts, references, strict=True)
    return score_rows("cider", [Row(r.id, r.id, text, (r.answer,)) for text, r in pairs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder")
    parser.add_argument("--stage", help="stage whose end is measured; by default the newest checkpoint")
    parser.add_argument("--pages", type=int, default=400, help="number of held-out pages")
    choices = parser.parse_args()
    quiet()
    module, data, _ = open_trained(choices.run, stage=choices.stage)
    pages = data.heldout(choices.pages)
    own, other = captions(module, pages, pages), captions(module, without_sight(pages), pages)
    gain = paired_bootstrap(other.scores, own.scores, [page.id for page in pages])
    print(f"CIDEr-D of {len(pages)} held-out pages ({own.note}): {100 * own.figure:.1f} with the page's picture,")
    print(f"{100 * other.figure:.1f} with another page's; gain {100 * gain.difference:.1f}, ", end="")
    print(f"95 % interval {100 * gain.interval.low:.1f} to {100 * gain.interval.high:.1f}")


if __name__ == "__main__":
    main()
