"""The mixture of several weighted sources as a data module."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from lit_mm.datamodules.held_out import HeldOut
from lit_mm.documents.document import Document
from lit_mm.documents.sources import open_source
from lit_mm.errors import UserError
from lit_mm.stream.datamodule import Source, StreamDataModule, WorkerStart, name_of
from lit_mm.stream.maker import TooLong
from lit_mm.stream.mixture import Joined, check_weights, draws_per_epoch, square_root_shares
from lit_mm.stream.screen import BadSample

NO_SOURCES = "the mixture has no sources: list at least one under `data.init_args.sources`"


@dataclass
class Member:
    """One source of a mixture, with its weight.

    Args:
        source: the source of documents: a class (`class_path: lit_mm.documents.sources.LlavaConversations`) or a
            declaration (`{format: llava, path: chat.json}`), see `lit_mm.documents.sources`.
        name: name in logs and in the ledger; None takes the name of the source.
        weight: weight relative to the other sources, for `weights: explicit`. For `weights: sqrt` it is a factor of
            the square root, and 1 if it is None.
        repeat: passes over the source per epoch, for `weights: repeat`. 0.5 takes one half in each epoch, in turn.
            None means 1 if `draws` is None, too.
        draws: samples per epoch, for `weights: repeat`, in place of `repeat`. XComposer's data lists give thousands
            of samples.
    """

    source: Source | dict[str, Any]
    name: str | None = None
    weight: float | None = None
    repeat: float | None = None
    draws: int | None = None


class Mixture(StreamDataModule):
    """This data module mixes sources evenly: every part of an epoch has nearly the weights of the whole epoch.

    Args:
        sources: sources with their weights; None where only held-out documents are needed.
        weights: rule for the samples of a source in an epoch. "size" draws every sample once. "sqrt" draws in
            proportion to the square root of the number of samples, times `weight` (InstructBLIP). "explicit" draws in
            proportion to `weight`. "repeat" takes `repeat` passes or `draws` samples.
        heldout_source: documents that are never trained on, for the examination at the end; None for no examination.
        global_batch, micro_batch, row_tokens, row_views, window, num_workers, worker_start: see `StreamDataModule`.
        too_long, on_bad_sample, max_bad, max_unsupervised: see `StreamDataModule`.
    """

    training_arguments = ("sources",)

    def __init__(
        self,
        sources: list[Member] | None = None,
        weights: Literal["size", "sqrt", "explicit", "repeat"] = "size",
        heldout_source: Source | dict[str, Any] | None = None,
        global_batch: int = 64,
        micro_batch: int | None = None,
        row_tokens: int | None = None,
        row_views: int | None = None,
        window: int = 1024,
        num_workers: int = 4,
        too_long: TooLong = "refuse",
        on_bad_sample: BadSample = "fail",
        max_bad: float = 0.01,
        max_unsupervised: float = 0.05,
        worker_start: WorkerStart | None = None,
    ) -> None:
        super().__init__(
            global_batch,
            micro_batch,
            row_tokens,
            row_views,
            window,
            num_workers,
            too_long,
            on_bad_sample,
            max_bad,
            max_unsupervised,
            worker_start=worker_start,
        )
        if sources == []:
            raise UserError(NO_SOURCES)
        self.members = [replace(member, source=_opened(member.source)) for member in sources or []]
        self.weights = weights
        self.heldout_source = None if heldout_source is None else _opened(heldout_source)
        self._held_out = None if heldout_source is None else HeldOut(self.heldout_source, on_bad_sample)
        self.joined = self._joined() if self.members else None

    def _joined(self) -> Joined:
        names = [member.name or name_of(member.source) for member in self.members]
        sizes = [len(member.source) for member in self.members]
        if 0 in sizes:
            raise UserError(f"the data set is empty: source {names[sizes.index(0)]!r} of the mixture has no samples")
        reads = {"explicit": ("weight",), "sqrt": ("weight",), "repeat": ("repeat", "draws")}.get(self.weights, ())
        for name, member in zip(names, self.members, strict=True):
            values = {"weight": member.weight, "repeat": member.repeat, "draws": member.draws}
            keys = [key for key, value in values.items() if value is not None]
            if set(keys) - set(reads) or len(keys) > 1 or (self.weights == "explicit" and not keys):
                texts = {"explicit": "a `weight`", "sqrt": "at most a `weight`", "repeat": "`repeat` or `draws`"}
                expected = texts.get(self.weights, "neither `weight` nor `repeat` nor `draws`")
                got = " and ".join(f"`{key}`" for key in keys) or "none"
                raise UserError(
                    f"source {name!r}: `weights: {self.weights}` needs {expected}, got {got}. `weights: explicit` "
                    "reads `weight`; `weights: repeat` reads `repeat` and `draws`"
                )
        if self.weights == "size":
            draws = sizes
        elif self.weights == "repeat":
            draws = [_draws(name, member, size) for name, member, size in zip(names, self.members, sizes, strict=True)]
        else:
            weights = [1.0 if member.weight is None else member.weight for member in self.members]
            check_weights(weights, names)
            shares = square_root_shares(sizes, weights) if self.weights == "sqrt" else weights
            draws = draws_per_epoch(sizes, shares, names)
        return Joined([member.source for member in self.members], names, draws)

    def source(self) -> Joined:
        if self.joined is None:
            raise UserError(NO_SOURCES)
        return self.joined

    def heldout(self, count: int | None = None) -> list[Document]:
        """See `HeldOut`."""
        return [] if self._held_out is None else self._held_out.documents(count)


def _opened(source: Source | dict[str, Any]) -> Source:
    """Open a declaration; return a source unchanged."""
    return open_source(source) if isinstance(source, dict) else source


def _draws(name: str, member: Member, size: int) -> int:
    """Return the number of samples that an epoch draws by `repeat` or `draws`."""
    if member.repeat is not None and not math.isfinite(member.repeat):
        raise UserError(f"`repeat` of source {name!r} is a positive number, got {member.repeat}")
    draws = member.draws if member.draws is not None else round(size * (1 if member.repeat is None else member.repeat))
    if draws < 1:
        raise UserError(f"source {name!r} of {size} samples is never drawn: raise its `repeat` or `draws`")
    return draws
