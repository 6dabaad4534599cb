"""InternLM-XComposer 1.0: which tokens of a conversation are learnt."""

from __future__ import annotations

from collections.abc import Sequence

from lit_mm.prompts.prompt import PICTURE


def label_mask_v1(
    ids: Sequence[int], *, end_of_human_id: int, end_of_assistant_id: int, eos_id: int, bridge: int = 6
) -> list[bool]:
    """Which positions carry loss: the answers, each with its end-of-assistant token, and the first eos.

    Unlike XComposer2's rule there is one marker for each speaker, so nothing is counted. Not learnt are everything
    from the start, or from the last answer's end, to `bridge` tokens after an end-of-human (itself included), what
    follows the first eos, and pictures. A sequence without eos whose last marker ends an answer was cut inside the
    next question: not learnt after that answer.

    Args:
        ids: token ids, `PICTURE` at the positions of pictures.
        end_of_human_id, end_of_assistant_id, eos_id: the ids of the three markers. Padding has the id of eos.
        bridge: tokens from the end-of-human to the answer, the former included; 6 for InternLM's ` <|Bot|>:`.

    Source: `mask_human_targets` of the released XComposer 1.0 model file.
    """
    learn = [token != PICTURE for token in ids]

    def hide(start: int, stop: int) -> None:
        stop = min(stop, len(learn))
        learn[start:stop] = [False] * (stop - start)

    hidden_from = 0
    answer_end, question_end = 0, 0
    for position, token in enumerate(ids):
        if token == end_of_human_id:
            hide(hidden_from, position + bridge)
            hidden_from, question_end = position + bridge, position
        elif token == end_of_assistant_id:
            hidden_from, answer_end = position + 1, position
        elif token == eos_id:
            hide(position + 1, len(learn))
            return learn
    if answer_end > question_end:
        hide(answer_end + 1, len(learn))
    return learn
