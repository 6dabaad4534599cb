"""The sizes of a micro-batch that decide its cost: numbers alone, known before any pixel is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from lit_mm.planning.counting import Monomial
from lit_mm.samples.batch import IGNORE, Batch, Views
from lit_mm.samples.processor import TEXT, Processor, Sample

Shape = tuple[int, int]  # (height, width) of a view, pixels


@dataclass(frozen=True)
class Row:
    """Sizes of the samples of a micro-batch.

    Attributes:
        lengths: number of positions of each sample.
        supervised: number of supervised tokens, copies included.
        routed: number of positions that routed linears treat as visual, copies included.
        targets: number of target tokens of each sample of an encoder-decoder; () for a decoder.
        views: shape -> number of views, copies included.
        second_views: shape -> number of views of the second vision encoder, copies included.
        second_counts: number of views of the second vision encoder of each sample; () for none.
        reading: number of positions of the second texts, padding included; 0 for none.
        copies: how often the samples of `lengths` occur. A number in place of longer tuples makes the plan of a
            micro-batch of any size arithmetic.
    """

    lengths: tuple[int, ...]
    supervised: int
    routed: int = 0
    targets: tuple[int, ...] = ()
    views: Mapping[Shape, int] = field(default_factory=dict)
    second_views: Mapping[Shape, int] = field(default_factory=dict)
    second_counts: tuple[int, ...] = ()
    reading: int = 0
    copies: int = 1

    @classmethod
    def of_batch(cls, batch: Batch) -> Row:
        """Read the sizes of a batch without waiting for its device. A blank view counts, because it is encoded."""
        second = batch.second_views
        return cls(
            lengths=batch.lengths,
            supervised=batch.num_supervised,
            routed=len(batch.visual if batch.routed is None else batch.routed),
            targets=batch.target.lengths if batch.target is not None else (),
            views=_shapes(batch.views),
            second_views=_shapes(second),
            second_counts=second.counts if second is not None else (),
            reading=batch.texts.ids.shape[1] if batch.texts is not None else 0,
        )

    @classmethod
    def of_samples(cls, samples: Sequence[Sample], processor: Processor) -> Row:
        """Compute the sizes of the batch that these samples will make. Pictures are not read."""
        lengths, targets, routed, supervised = [], [], 0, 0
        views: Counter[Shape] = Counter()
        second: Counter[Shape] = Counter()
        counts = []
        for sample in samples:
            learnt = int((sample.labels[1:] != IGNORE).sum())
            answer = int((sample.labels != IGNORE).sum()) if processor.writes_target else 0
            length = len(sample) - answer
            lengths.append(length)
            targets.append(answer)
            supervised += answer or learnt
            index = sample.index[:length]
            places = processor.layout.routed(index)
            routed += int((index != TEXT).sum()) if places is None else len(places)
            for plan in sample.plans:
                views.update(view.size for view in plan.views)
                second.update(view.size for view in plan.second)
            counts.append(sum(len(plan.second) for plan in sample.plans))
        if not views and processor.tiling is not None:  # the blank view of a row without pictures
            plan = processor.tiling(64, 64)
            views[plan.views[0].size] += 1
            second.update(view.size for view in plan.second[:1])
        texts = [len(processor.reading(sample.document)) for sample in samples] if processor.reading else []
        return cls(
            tuple(lengths),
            supervised,
            routed,
            tuple(targets) if processor.writes_target else (),
            dict(views),
            dict(second),
            tuple(counts) if second else (),
            max([1, *texts]) if processor.reading else 0,  # texts are padded to a position at least
        )

    @classmethod
    def of_image(cls, processor: Processor, height: int, width: int, text: int, source: str = "") -> Row:
        """Compute the sizes of a sample of one image and a text, half of which is learnt.

        Args:
            processor: processor of the stage.
            height, width: size of the image, pixels.
            text: number of text tokens.
            source: name of the document's source.
        Raises:
            UserError: the tiling refuses the image.
        """
        visual, views, second = 0, Counter(), Counter()
        if processor.token_grid is not None:
            plan = processor.tiling_of(source)(height, width)
            visual = processor.visual_tokens(height, width, source)
            views.update(view.size for view in plan.views)
            second.update(view.size for view in plan.second)
        answer = text // 2
        target = (answer,) if processor.writes_target else ()
        return cls(
            (visual + text - sum(target),),
            answer,
            visual,
            target,
            dict(views),
            dict(second),
            (sum(second.values()),) if second else (),
            text if processor.reading else 0,
        )

    def times(self, count: int) -> Row:
        """Return the sizes of a micro-batch that holds the samples of this one several times."""
        return replace(
            self,
            supervised=self.supervised * count,
            routed=self.routed * count,
            views={shape: views * count for shape, views in self.views.items()},
            second_views={shape: views * count for shape, views in self.second_views.items()},
            copies=self.copies * count,
        )

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.lengths) * self.copies

    def moments(self, memory: Sequence[int] = ()) -> dict[Monomial, float]:
        """Sum every monomial of the sizes over the samples.

        The sizes are l (positions), r (routed positions), x (l without r), s (supervised tokens), t (target tokens)
        and m (vectors of the memory).

        Args:
            memory: number of vectors of the memory of each sample of `lengths`; () for none.
        """
        total = sum(self.lengths) * self.copies
        sums: dict[Monomial, float] = {
            (): 1,
            ("l",): total,
            ("r",): self.routed,
            ("x",): total - self.routed,
            ("s",): self.supervised,
            ("l", "l"): self._products(self.lengths, self.lengths),
        }
        if self.targets:
            sums[("t",)] = sum(self.targets) * self.copies
            sums[("t", "t")] = self._products(self.targets, self.targets)
            sums[("l", "t")] = self._products(self.lengths, self.targets)
        if memory:
            sums[("m",)] = sum(memory) * self.copies
            sums[("l", "m")] = self._products(self.lengths, memory)
        return sums

    def _products(self, sizes: Sequence[int], others: Sequence[int]) -> int:
        """Sum the products of two sizes over all samples."""
        return sum(a * b for a, b in zip(sizes, others, strict=True)) * self.copies


def _shapes(views: Views | None) -> dict[Shape, int]:
    shapes: Counter[Shape] = Counter()
    for group in views.groups if views is not None else ():
        shapes[tuple(group.shape[-2:])] += len(group)
    return dict(shapes)
