"""Prompts by chat templates: ids as transformers', labels turn by turn, pictures, and templates that are refused."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.prompts.prompt import PictureRun, answers_apart
from lit_mm.prompts.template import ChatTemplate
from lit_mm.prompts.tokenizer import Tokenizer
from tests.prompts.published import vocabulary
from tests.prompts.templates import (
    CHATML,
    LLAMA_3_DATED,
    MARKED,
    MULTIMODAL,
    QWEN_3,
    QWEN_3_SILENT,
    QWEN_3_THINKING,
    TEMPLATES,
    THINK,
    Published,
    backend_json,
    tokenizer_of,
)

ANSWERS = ("Three.", "2019", "a\n\nb", "", "\nfoo", " yes", "  two", "你好", "x = 1\n    y")
MERGES = ("qwen 2", "phi 3", "chatml", "marked")  # prompts end with a newline, and an answer keeps its own
CHATS = (
    (("user", "How many?"), ("assistant", "Three.")),
    (("user", "How many?"),),
    (("system", "Answer in a word."), ("user", "How many?"), ("assistant", "Three."), ("user", "Red? ")),
    (("user", "a"), ("assistant", "b"), ("user", "c\n"), ("assistant", "d"), ("user", ""), ("assistant", "f")),
    *((("user", "How many?"), ("assistant", answer), ("user", "and?"), ("assistant", answer)) for answer in ANSWERS),
)


def document_of(turns: Any) -> Document:
    """A document of (role, text or parts) pairs."""
    return Document("d", tuple(Turn(role, parts if isinstance(parts, tuple) else (parts,)) for role, parts in turns))


def messages_of(document: Document) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.text} for turn in document.turns]


def flat(prompt: ChatTemplate, document: Document, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Ids, with -1 - n for picture n, and supervision flags."""
    ids: list[int] = []
    learn: list[bool] = []
    for run in prompt.runs(document, tokenizer):
        ids += [-1 - run.number] if isinstance(run, PictureRun) else run.ids
        learn += [False] if isinstance(run, PictureRun) else run.learn
    return ids, learn


def reference_of(published: Published) -> PreTrainedTokenizerFast:
    """The tokenizer of transformers with the same vocabulary and template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(backend_json()),
        bos_token=published.bos,
        eos_token=published.eos,
        pad_token="<pad>",
        chat_template=published.template,
    )


def chats_of(published: Published) -> list[Document]:
    return [document_of(turns) for turns in CHATS if published.system or turns[0][0] != "system"]


# --- ids and labels --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_transformers(name: str) -> None:
    published, apart = TEMPLATES[name], 0
    tokenizer, reference = tokenizer_of(published), reference_of(published)
    prompt = ChatTemplate(variables=published.variables)
    for document in chats_of(published):
        waits = document.turns[-1].role == "user"
        theirs = reference.apply_chat_template(
            messages_of(document), add_generation_prompt=waits, return_dict=False, **published.variables
        )
        number = answers_apart(prompt.runs(document, tokenizer))
        apart += number
        ours = flat(prompt, document, tokenizer)[0]
        assert (ours == theirs) is not bool(number), document
        assert tokenizer.decode(ours, skip_special=False) == tokenizer.decode(theirs, skip_special=False)
    assert apart == (2 if name in MERGES else 0)  # the answers "\nfoo"


@pytest.mark.parametrize("name", TEMPLATES)
def test_labels_are_those_of_rendering_turn_by_turn(name: str) -> None:
    """The reference encodes the text at once; a token is learnt if it has a character behind a generation prompt."""
    published = TEMPLATES[name]
    tokenizer, reference = tokenizer_of(published), reference_of(published)
    prompt = ChatTemplate(variables=published.variables)
    for document in chats_of(published):
        if answers_apart(prompt.runs(document, tokenizer)):
            continue
        messages = messages_of(document)

        def text_of(number: int, prompted: bool, messages: Any = messages) -> str:
            return reference.apply_chat_template(
                messages[:number], tokenize=False, add_generation_prompt=prompted, **published.variables
            )

        whole = text_of(len(messages), messages[-1]["role"] == "user")
        learnt: set[int] = set()
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                start = len(text_of(number, True))
                learnt |= set(range(start, whole.index(published.stop, start) + len(published.stop)))
        encoding = tokenizers.Tokenizer.from_str(backend_json()).encode(whole, add_special_tokens=False)
        expected = [any(at in learnt for at in range(*offsets)) for offsets in encoding.offsets]
        assert flat(prompt, document, tokenizer)[1] == expected, document


def test_labels_are_the_assistant_mask_of_a_template_with_markers() -> None:
    published = TEMPLATES["marked"]
    tokenizer, reference = tokenizer_of(published), reference_of(published)
    for document in chats_of(published):
        ids, learn = flat(ChatTemplate(), document, tokenizer)
        theirs = reference.apply_chat_template(
            messages_of(document), return_dict=True, return_assistant_tokens_mask=True
        )
        if ids[: len(theirs["input_ids"])] == theirs["input_ids"]:
            assert learn[: len(theirs["input_ids"])] == [flag == 1 for flag in theirs["assistant_masks"]]
        assert (ids, learn) == flat(ChatTemplate(markers=False), document, tokenizer)


def test_markers_choose_the_answers_that_are_learnt() -> None:
    marked = "{%- if loop.last %}{%- generation %}"
    only_last = MARKED.replace("{%- generation %}", marked).replace(
        "{%- endgeneration %}", "{%- endgeneration %}{%- else %}{{- message['content'] + '<|im_end|>' }}{%- endif %}"
    )
    tokenizer, document = tokenizer_of(TEMPLATES["marked"]), document_of(CHATS[3])
    assert flat(ChatTemplate(only_last), document, tokenizer) == flat(
        ChatTemplate(CHATML, answers="last"), document, tokenizer
    )


def test_only_the_last_answer_is_learnt_on_request() -> None:
    tokenizer, document = tokenizer_of(TEMPLATES["chatml"]), document_of(CHATS[3])
    ids, learn = flat(ChatTemplate(answers="last"), document, tokenizer)
    assert tokenizer.decode([i for i, flag in zip(ids, learn, strict=True) if flag], False) == "f<|im_end|>"
    assert ids == flat(ChatTemplate(), document, tokenizer)[0]


@pytest.mark.parametrize("published", [*TEMPLATES.values(), QWEN_3_THINKING, QWEN_3_SILENT])
def test_all_that_follows_the_prompt_of_generation_is_learnt(published: Published, picture: Any) -> None:
    tokenizer = tokenizer_of(published)
    learnt = "last" if published in (QWEN_3_THINKING, QWEN_3_SILENT) else "all"
    prompt = ChatTemplate(variables=published.variables, answers=learnt)
    for answer in ANSWERS:
        for earlier in ((), (("user", "how?"), ("assistant", answer))):
            document = document_of((*earlier, ("user", ("in ", picture, " is?")), ("assistant", answer)))
            ids, learn = flat(prompt, document, tokenizer)
            question, _ = flat(prompt, document.without_answer(), tokenizer)
            assert ids[: len(question)] == question
            ends = [n for n, token in enumerate(ids) if token in prompt.stop_ids(tokenizer) and n >= len(question)]
            assert all(learn[len(question) : ends[0] + 1]) and not any(learn[ends[0] + 1 :])
            answered = tokenizer.decode(ids[len(question) : ends[0]], skip_special=False)
            assert answered.split() == (published.lead + answer).split()
            assert prompt.answer_text(ids[len(question) : ends[0]], document, tokenizer) == answer.strip()


@pytest.mark.parametrize("name", TEMPLATES)
def test_generation_stops_at_eos_and_at_the_end_of_an_answer(name: str) -> None:
    published = TEMPLATES[name]
    tokenizer = tokenizer_of(published)
    expected = {tokenizer.id_of(published.stop), tokenizer.id_of(published.eos)}
    assert ChatTemplate(variables=published.variables).stop_ids(tokenizer) == expected


# --- reasoning -------------------------------------------------------------------------------------------------------
def test_an_empty_reasoning_is_learnt_unless_the_prompt_holds_it() -> None:
    document, tokenizer = document_of(CHATS[0]), tokenizer_of(QWEN_3_THINKING)
    for variables, learnt in (({}, f"{THINK}Three.<|im_end|>"), ({"enable_thinking": False}, "Three.<|im_end|>")):
        ids, learn = flat(ChatTemplate(variables=variables), document, tokenizer)
        assert tokenizer.decode([i for i, flag in zip(ids, learn, strict=True) if flag], False) == learnt


def test_reasoning_is_learnt_and_left_out_of_the_answer() -> None:
    tokenizer, prompt = tokenizer_of(QWEN_3_THINKING), ChatTemplate()
    document = document_of((("user", "How many?"), ("assistant", "<think>\nI count.\n</think>\n\nThree.")))
    ids, learn = flat(prompt, document, tokenizer)
    answer = [i for i, flag in zip(ids, learn, strict=True) if flag]
    assert tokenizer.decode(answer, skip_special=False) == "<think>\nI count.\n</think>\n\nThree.<|im_end|>"
    assert prompt.answer_text(answer[:-1], document, tokenizer) == "Three."


def test_a_template_that_drops_earlier_reasoning_is_refused_for_several_answers() -> None:
    document, tokenizer = document_of(CHATS[3]), tokenizer_of(QWEN_3_THINKING)
    with pytest.raises(UserError, match=r"not incremental: up to the end of turn 1 it writes '<think>.*answers: last"):
        ChatTemplate().runs(document, tokenizer)
    with pytest.raises(UserError, match=r"up to the generation prompt before turn 1 .*answers: last"):
        ChatTemplate(variables={"enable_thinking": False}).runs(document, tokenizer)
    for variables in ({}, {"enable_thinking": False}):
        assert ChatTemplate(variables=variables, answers="last").runs(document, tokenizer)


# --- pictures and the system's text ----------------------------------------------------------------------------------
def test_pictures_stand_at_their_places_in_the_text(picture: Any) -> None:
    tokenizer = tokenizer_of(TEMPLATES["gemma"])  # which strips texts
    document = document_of(
        (
            ("user", (picture, "a", picture, "b", picture)),
            ("assistant", "x"),
            ("user", (" ", picture)),
            ("assistant", "y"),
        )
    )
    ids, learn = flat(ChatTemplate(), document, tokenizer)
    text = "".join(f"#{-1 - i}" if i < 0 else tokenizer.decode([i], False) for i in ids)
    assert text == (
        "<bos><start_of_turn>user\n#0a#1b#2<end_of_turn>\n<start_of_turn>model\nx<end_of_turn>\n"
        "<start_of_turn>user\n#3<end_of_turn>\n<start_of_turn>model\ny<end_of_turn>\n"
    )
    assert not any(flag for i, flag in zip(ids, learn, strict=True) if i < 0)


def test_texts_stand_around_a_picture(picture: Any) -> None:
    tokenizer = tokenizer_of(TEMPLATES["chatml"])
    prompt = ChatTemplate(image_start="<|vision_start|>", image_end="<|vision_end|>\n")
    ids, _ = flat(prompt, document_of((("user", (picture, "what?")),)), tokenizer)
    text = "".join("#" if i < 0 else tokenizer.decode([i], False) for i in ids)
    assert text == "<|im_start|>user\n<|vision_start|>#<|vision_end|>\nwhat?<|im_end|>\n<|im_start|>assistant\n"


def test_a_multimodal_template_writes_the_tokens_of_a_picture(picture: Any) -> None:
    tokenizer = tokenizer_of(replace(TEMPLATES["chatml"], template=MULTIMODAL))
    document = document_of((("user", (picture, "a", picture)), ("assistant", "b")))
    ours = flat(ChatTemplate(placeholder="<|image_pad|>"), document, tokenizer)
    theirs = flat(ChatTemplate(CHATML, image_start="<|vision_start|>", image_end="<|vision_end|>"), document, tokenizer)
    assert ours == theirs


def test_a_page_of_pictures_moves_to_the_first_question(picture: Any) -> None:
    tokenizer = tokenizer_of(TEMPLATES["chatml"])
    moved = document_of((("page", (picture,)), ("user", "what?"), ("assistant", "a")))
    expected = document_of((("user", (picture, "what?")), ("assistant", "a")))
    assert flat(ChatTemplate(), moved, tokenizer) == flat(ChatTemplate(), expected, tokenizer)


def test_the_line_end_of_llavas_format_is_left_out(picture: Any) -> None:
    tokenizer = tokenizer_of(TEMPLATES["chatml"])
    llava = replace(document_of((("user", (picture, "\nwhat?")),)), text_format="llava")
    assert flat(ChatTemplate(), llava, tokenizer) == flat(
        ChatTemplate(), document_of((("user", (picture, "what?")),)), tokenizer
    )


def test_the_system_of_a_document_comes_before_that_of_the_prompt_and_of_the_template() -> None:
    tokenizer = tokenizer_of(TEMPLATES["qwen 2"])
    question = ("user", "q")
    for prompt, turns, text in (
        (ChatTemplate(), (question,), "You are a helpful assistant."),
        (ChatTemplate(system="Be brief."), (question,), "Be brief."),
        (ChatTemplate(system="Be brief."), (("system", "Be kind."), question), "Be kind."),
    ):
        ids, _ = flat(prompt, document_of(turns), tokenizer)
        assert tokenizer.decode(ids, False).startswith(f"<|im_start|>system\n{text}<|im_end|>\n<|im_start|>user\nq")


# --- templates and documents that are refused ------------------------------------------------------------------------
TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
PROMPTED = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
LOOP = "{% for m in messages %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (LOOP + TURN + "{% endfor %}", "has no generation prompt"),
        (LOOP + TURN.replace("<|im_end|>", "") + "{% endfor %}" + PROMPTED, r"ends an answer with '\\n', which has no"),
        (LOOP + "{% if not (loop.last and m.role == 'assistant') %}" + TURN + "{% endif %}{% endfor %}" + PROMPTED,
         "drops an answer at the end"),
        (LOOP.replace("messages", "messages[-2:]") + TURN + "{% endfor %}" + PROMPTED,
         "drops, changes or moves 'first'"),
        (LOOP.replace("messages", "messages[::-1]") + TURN + "{% endfor %}" + PROMPTED, "not incremental"),
        (LOOP + TURN.replace("m.content", "m.content | upper") + "{% endfor %}" + PROMPTED,
         "drops, changes or moves 'first"),
        (LOOP + TURN.replace("m.content", "m.content | replace('answer', 'x')") + "{% endfor %}" + PROMPTED,
         "turn 1: the chat template changes the answer 'answer one' to 'x one"),
        (LOOP + TURN + "{% endfor %}{{ messages | length }}" + PROMPTED, "not incremental"),
        (LOOP + TURN.replace("<|im_end|>", "{% if loop.last or m.role == 'user' %}<|im_end|>{% endif %}")
         + "{% endfor %}" + PROMPTED, "not incremental: up to the end of turn 1"),
        ("{{ raise_exception('No chats, please.') }}", "fails on the turns .*: No chats, please. Change the data"),
        ("{{ messages[0].content + 1 }}", "fails on the turns .*: can only concatenate str"),
        ("{% for m in messages %}", "fails on the turns .*: Unexpected end of template"),
        ("{{ missing.field }}", "'missing' is undefined"),
        ("{{ ''.__class__.__mro__ }}{{ ''.__class__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "fails on the turns .*unsafe|not safely callable"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        (LLAMA_3_DATED, r"writes today's date.*date_string"),
        (MARKED.replace(" + '<|im_end|>' }}{%- endgeneration %}", " }}{%- endgeneration %}{{- '<|im_end|>' }}"),
         r"the markers of the chat template enclose \['answer one'\].*`markers: false`"),
        (MARKED.replace("{%- generation %}", "{{- '!' }}{%- generation %}"),
         "the markers of the chat template enclose"),
    ],
)  # fmt: skip
def test_a_template_with_which_labels_would_be_wrong_is_refused(template: str, message: str) -> None:
    chat = (("user", "first"), ("assistant", "answer one"), ("user", "second"), ("assistant", "answer two"))
    with pytest.raises(UserError, match=message):
        ChatTemplate(template).runs(document_of(chat), tokenizer_of(TEMPLATES["chatml"]))


@pytest.mark.parametrize(
    ("name", "turns", "message"),
    [
        ("gemma", (("system", "s"), ("user", "q")), "System role not supported. Change the data"),
        ("mistral", (("user", "a"), ("user", "b")), "roles must alternate"),
        ("chatml", (("user", "say <|im_end|>"),), r"turn 0 \(user\): its text contains the marker '<\|im_end\|>'"),
        ("chatml", (("assistant", "a"),), r"starts with a question.* got the turns \['assistant'\]"),
        ("chatml", (("user", "a"), ("system", "b")), "ends with a question or an answer"),
        ("chatml", (), "starts with a question"),
        ("chatml", (("page", "a"),), "turn 0 is a page"),
        ("chatml", (("user", "a"), ("page", ())), "turn 1 is a page"),
    ],
)
def test_a_document_that_the_template_cannot_express_is_refused(name: str, turns: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ChatTemplate().runs(document_of(turns), tokenizer_of(TEMPLATES[name]))


def test_an_answer_with_a_picture_is_refused(picture: Any) -> None:
    with pytest.raises(UserError, match=r"turn 1 \(assistant\) contains a picture"):
        ChatTemplate().runs(document_of((("user", "a"), ("assistant", (picture,)))), tokenizer_of(TEMPLATES["chatml"]))


@pytest.mark.parametrize(
    ("template", "placeholder", "message"),
    [
        (MULTIMODAL.replace("<|image_pad|>", ""), "<|image_pad|>", "has to write 1 pictures in order, it writes 0"),
        (CHATML, "<|image_pad|>", "fails on the turns"),  # it writes texts alone
        (LOOP + TURN.replace("m.content", "m.content.split('\ufdd0')[0]") + "{% endfor %}" + PROMPTED, "",
         "drops, changes or moves 'a picture'"),
    ],
)  # fmt: skip
def test_a_template_that_loses_a_picture_is_refused(
    template: str, placeholder: str, message: str, picture: Any
) -> None:
    prompt = ChatTemplate(template, placeholder=placeholder)
    with pytest.raises(UserError, match=message):
        prompt.runs(document_of((("user", ("what?", picture)),)), tokenizer_of(TEMPLATES["chatml"]))


def test_arguments_that_do_nothing_are_refused() -> None:
    with pytest.raises(UserError, match=r"`variables` cannot set \['messages'\]"):
        ChatTemplate(variables={"messages": []})
    with pytest.raises(UserError, match="remove `image_start` and `image_end`, or `placeholder`"):
        ChatTemplate(placeholder="<image>", image_end="\n")
    with pytest.raises(UserError, match=r"the file 'missing.jinja' of `template` does not exist"):
        ChatTemplate("missing.jinja")


# --- files -----------------------------------------------------------------------------------------------------------
def folder_of(path: Path, **settings: Any) -> Tokenizer:
    path.mkdir(exist_ok=True)
    (path / "tokenizer.json").write_text(backend_json())
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"} | settings))
    return Tokenizer.from_pretrained(path)


def test_the_template_is_read_from_the_files_of_a_tokenizer(tmp_path: Path) -> None:
    assert folder_of(tmp_path).chat_template is None
    with pytest.raises(UserError, match=r"have no chat template\. Copy the published"):
        ChatTemplate().runs(document_of(CHATS[0]), folder_of(tmp_path))
    assert folder_of(tmp_path, chat_template="one").chat_template == "one"
    several = [{"name": "tool_use", "template": "two"}, {"name": "default", "template": "three"}]
    assert folder_of(tmp_path, chat_template=several).chat_template == "three"
    assert folder_of(tmp_path, chat_template=several[:1]).chat_template is None
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "four"}))
    assert folder_of(tmp_path, chat_template="one").chat_template == "four"
    (tmp_path / "chat_template.jinja").write_text(QWEN_3)
    assert folder_of(tmp_path, chat_template="one").chat_template == QWEN_3


def test_a_file_replaces_the_template_of_the_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text(CHATML)
    tokenizer, document = tokenizer_of(TEMPLATES["gemma"]), document_of(CHATS[0])
    prompt = ChatTemplate(str(tmp_path / "chat.jinja"))
    assert flat(prompt, document, tokenizer) == flat(ChatTemplate(CHATML), document, tokenizer)
    copy = pickle.loads(pickle.dumps((prompt, tokenizer)))  # workers hold both
    assert flat(copy[0], document, copy[1]) == flat(prompt, document, tokenizer)


@pytest.mark.parametrize("name", ["qwen", "tekken", "sentencepiece"])
def test_real_vocabularies_read_answers_back(name: str) -> None:
    tokenizer, prompt = vocabulary(name), ChatTemplate(CHATML)
    for answer in ANSWERS:
        document = document_of((("user", "How many?"), ("assistant", answer), ("user", "and?"), ("assistant", answer)))
        ids, learn = flat(prompt, document, tokenizer)
        question, _ = flat(prompt, document.without_answer(), tokenizer)
        assert ids[: len(question)] == question and learn[len(question)]
        learnt = tokenizer.decode([i for i, flag in zip(ids, learn, strict=True) if flag], False)
        assert [text.strip() for text in re.split(r"<\|im_end\|>", learnt)] == [answer.strip(), answer.strip(), ""]
