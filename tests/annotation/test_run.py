"""A run of an engine gives the same files however it is split or killed, and a data set that training reads."""

from __future__ import annotations

import json
import os
import signal
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageColor

from lit_mm.annotation.capfilt import CapFilt
from lit_mm.annotation.description import Account, Row
from lit_mm.annotation.engine import Engine
from lit_mm.annotation.experts import ExpertError
from lit_mm.annotation.inputs import Input, Inputs
from lit_mm.annotation.journal import Journal
from lit_mm.annotation.language_models import Template
from lit_mm.annotation.monkey import Monkey
from lit_mm.annotation.page import COLOURS, draw_boxes, scaled
from lit_mm.annotation.run import Run, Settings, agree, plan_of
from lit_mm.annotation.shards import LEDGER, PAGE, PLAN, SPEED, read_accounts
from lit_mm.documents.sources import open_source
from lit_mm.documents.sources.check import check_source
from lit_mm.errors import UserError
from tests.annotation.stubs import REFUSED, Captions, Halves, Scores, Stripes, Words, write_images

ROWS = 11


class Counting(Monkey):
    """Counts the rows that it annotates, and kills the process at a row."""

    def __init__(self, kill_at: int | None = None) -> None:
        super().__init__(Captions(), Template(), Halves(), Words(), Stripes(), None, Scores())
        self.kill_at = kill_at
        self.numbers: list[int] = []

    def annotate(self, rows: Sequence[Row], seed: int) -> list[Account]:
        if any(row.number == self.kill_at for row in rows):
            os.kill(os.getpid(), signal.SIGKILL)
        self.numbers += [row.number for row in rows]
        return super().annotate(rows, seed)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), ROWS)


def start(
    images: Path, out: Path, engine: Engine | None = None, rank: int = 0, ranks: int = 1, **settings: Any
) -> tuple[Run, int]:
    """Run one process over a folder of images; finish the run if it is complete. Return it with its number of rows."""
    inputs = Inputs([Input("photographs", str(images), licence="CC-BY-4.0")])
    engine = engine or Counting()
    options = Settings(**{"shard_rows": 4, "batch_rows": 2} | settings)
    agree(out, plan_of(engine, {"class_path": "Counting"}, inputs, options))
    run = Run(engine, inputs, out, options, rank, ranks)
    rows = run.work()
    if run.is_complete():
        run.finish()
    return run, rows


def files(folder: Path) -> dict[str, bytes]:
    """Read all files of a run but the one with its times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != SPEED
    }


@pytest.fixture(scope="module")
def unbroken(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "out"
    start(images, folder)
    return folder


def test_a_run_writes_shards_accounts_ledger_page_and_plan(unbroken: Path) -> None:
    shards = [f"described-{number:06d}.tar" for number in range(3)]
    accounts = [f"accounts/{number:06d}.jsonl" for number in range(3)]
    assert sorted(files(unbroken)) == sorted([*accounts, *shards, PLAN, LEDGER, PAGE])
    assert [account["row"] for account in read_accounts(unbroken, 3)] == list(range(ROWS))
    speed = json.loads((unbroken / SPEED).read_text())
    assert speed["rows"] == ROWS and speed["rows_per_second"] > 0


def test_training_reads_the_output(unbroken: Path) -> None:
    source = open_source({"format": "captions", "path": f"{unbroken}/described-*.tar"})
    errors: list[Exception] = []
    summary = check_source("described", source, errors.append)
    assert not errors and (summary.samples, summary.pictures) == (ROWS, ROWS)
    merged = [account["outputs"][0]["text"] for account in read_accounts(unbroken, 3)]
    assert [source[number].turns[-1].text for number in range(ROWS)] == merged


def test_every_text_has_its_expert_and_the_licences(unbroken: Path) -> None:
    account = next(read_accounts(unbroken, 3))
    assert account["licence"] == "CC-BY-4.0"
    for statement in account["statements"]:
        assert account["experts"][statement["expert"]]["licence"] == ("" if statement["kind"] == "merge" else "CC0")
        assert statement["kept"] or statement["reason"]
    with tarfile.open(unbroken / "described-000000.tar") as tar:
        origin = json.load(tar.extractfile("000000000.json"))
    assert origin["licence"] == "CC-BY-4.0" and origin["id"] == "000.jpg"
    assert origin["text_by"]["expert"].endswith("Template")


def test_images_are_copied_byte_by_byte(unbroken: Path, images: Path) -> None:
    with tarfile.open(unbroken / "described-000000.tar") as tar:
        assert tar.extractfile("000000000.jpg").read() == (images / "000.jpg").read_bytes()
        assert tar.extractfile("000000001.png").read() == (images / "001.png").read_bytes()


@pytest.mark.parametrize("kill_at", [0, 3, 7, 10])
def test_a_killed_run_resumes_without_repeating_a_batch_and_gives_the_same_files(
    images: Path, unbroken: Path, tmp_path: Path, kill_at: int
) -> None:
    out = tmp_path / "out"
    child = os.fork()
    if not child:
        start(images, out, Counting(kill_at))
        os._exit(0)  # not reached
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    engine = Counting()
    start(images, out, engine)
    assert engine.numbers == list(range(kill_at - kill_at % 2, ROWS))
    assert files(out) == files(unbroken)


def test_the_files_do_not_depend_on_the_number_of_processes(images: Path, unbroken: Path, tmp_path: Path) -> None:
    for ranks in (2, 5):
        out = tmp_path / str(ranks)
        rows = [start(images, out, rank=rank, ranks=ranks)[1] for rank in range(ranks)]
        assert sum(rows) == ROWS
        assert files(out) == files(unbroken)


def test_a_finished_run_does_nothing_again(images: Path, unbroken: Path) -> None:
    before = files(unbroken)
    assert start(images, unbroken)[1] == 0
    assert files(unbroken) == before


def test_another_run_does_not_go_into_the_folder(images: Path, unbroken: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds a run that differs in seed"):
        start(images, unbroken, seed=1)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is not a run of `annotate`"):
        start(images, tmp_path)


def test_an_output_that_cannot_be_written_is_named(images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"--out '.*file/out' cannot be written \(Not a directory\)"):
        start(images, tmp_path / "file/out")


def test_a_cut_line_of_a_journal_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'[{"row": 0}]\n[{"row": 1}]\n[{"row"')
    with Journal(path) as journal:
        assert journal.batches == [[{"row": 0}], [{"row": 1}]]
        journal.append([{"row": 2}])
    with Journal(path) as journal:
        assert [batch[0]["row"] for batch in journal.batches] == [0, 1, 2]


def test_two_processes_never_write_one_shard(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with Journal(tmp_path / "journal.jsonl"):
        child = os.fork()
        if not child:
            try:
                with Journal(tmp_path / "journal.jsonl"):
                    os._exit(1)
            except UserError as error:
                os.write(writing, str(error).encode())
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    assert b"another process writes" in os.read(reading, 1000)


# --- bad rows --------------------------------------------------------------------------------------------------------
@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Eight images, of which one is cut short and one is refused by an expert."""
    folder = write_images(tmp_path / "damaged", 8)
    (folder / "003.png").write_bytes((folder / "003.png").read_bytes()[:200])
    Image.new("RGB", (REFUSED[1], REFUSED[0])).save(folder / "006.jpg")
    return folder


def test_a_bad_image_stops_the_run_by_default(damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"source 'photographs', 003\.png: .*damaged.*`on_bad_image: skip`"):
        start(damaged, tmp_path / "out")


@pytest.mark.parametrize(("policy", "listed"), [("skip", []), ("quarantine", ["003.png", "006.jpg"])])
def test_bad_images_are_left_out_and_counted(damaged: Path, tmp_path: Path, policy: str, listed: list[str]) -> None:
    run, _ = start(damaged, tmp_path / "out", on_bad_image=policy, max_bad=0.5)
    ledger = json.loads((run.folder / LEDGER).read_text())
    assert ledger["rows"]["photographs"] == {
        "rows": 8,
        "annotated": 6,
        "bad": 2,
        "kinds": {"bad_entry": 1, "unreadable_image": 1},
    }
    assert [fault["id"] for fault in ledger["faults"]] == listed
    assert ledger["subsets"] == {"described": 6}


def test_a_bad_sample_is_named_once_with_its_place(images: Path, tmp_path: Path) -> None:
    conversation = {"image": ["000.jpg", "001.png"], "conversations": [{"from": "human", "value": "<image><image>"}]}
    conversation["conversations"].append({"from": "gpt", "value": "two"})
    (tmp_path / "two.jsonl").write_text(json.dumps(conversation))
    inputs = Inputs([Input("two", str(tmp_path / "two.jsonl"), format="llava", images=str(images))])
    with pytest.raises(UserError, match=r"^source 'two', two\.jsonl:1: an engine annotates one image"):
        Run(Counting(), inputs, tmp_path / "out", Settings()).work()


def test_a_link_without_its_image_is_a_bad_row(damaged: Path, tmp_path: Path) -> None:
    (damaged / "004.jpg").unlink()
    (damaged / "004.jpg").symlink_to("nowhere.jpg")
    run, _ = start(damaged, tmp_path / "out", on_bad_image="quarantine", max_bad=0.5)
    ledger = json.loads((run.folder / LEDGER).read_text())
    assert [fault["id"] for fault in ledger["faults"]] == ["003.png", "004.jpg", "006.jpg"]


def test_an_image_that_vanishes_in_a_run_loses_no_row(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 3)

    class Vanishing(Counting):
        def annotate(self, rows: Sequence[Row], seed: int) -> list[Account]:
            accounts = super().annotate(rows, seed)
            (folder / "002.jpg").rename(folder / "away")
            return accounts

    with pytest.raises(UserError, match=r"there is no image '.*002\.jpg'"):
        start(folder, tmp_path / "out", Vanishing(), batch_rows=3)
    (folder / "away").rename(folder / "002.jpg")
    engine = Counting()
    run, _ = start(folder, tmp_path / "out", engine, batch_rows=3)
    assert not engine.numbers and len(list(read_accounts(run.folder, 1))) == 3


def test_a_run_that_a_bad_image_stopped_goes_on_with_another_policy(damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"003\.png"):
        start(damaged, tmp_path / "out")
    engine = Counting()
    start(damaged, tmp_path / "out", engine, on_bad_image="skip", max_bad=0.5)
    assert engine.numbers[0] == 2 and (tmp_path / "out" / LEDGER).is_file()


def test_too_many_bad_images_stop_the_run(damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 of the first 7 rows of this process are bad"):
        start(damaged, tmp_path / "out", on_bad_image="skip", max_bad=0.2, batch_rows=8, shard_rows=8)


def test_an_expert_that_cannot_work_stops_the_run_whatever_the_policy(images: Path, tmp_path: Path) -> None:
    class Broken(Counting):
        def annotate(self, rows: Sequence[Row], seed: int) -> list[Account]:
            raise ExpertError("the server does not answer")

    with pytest.raises(ExpertError, match="the server"):
        start(images, tmp_path / "out", Broken(), on_bad_image="skip", max_bad=1.0)


# --- sources ---------------------------------------------------------------------------------------------------------
def test_capfilt_over_two_sources_writes_web_synthetic_and_human_sets(images: Path, tmp_path: Path) -> None:
    entries = [
        {"image": str(path), "caption": f"text {n}", "license": "CC0"} for n, path in enumerate(images.iterdir())
    ]
    (tmp_path / "web").mkdir()
    (tmp_path / "web/metadata.jsonl").write_text("\n".join(map(json.dumps, entries)))
    conversation = {"image": str(images / "000.jpg"), "conversations": [{"from": "human", "value": "<image>"}]}
    conversation["conversations"].append({"from": "gpt", "value": "people wrote this"})
    (tmp_path / "people.jsonl").write_text(json.dumps(conversation))
    inputs = Inputs(
        [
            Input("web", str(tmp_path / "web"), format="folder", places=str(images)),
            Input(
                "people",
                str(tmp_path / "people.jsonl"),
                format="llava",
                human=True,
                licence="CC-BY",
                places=str(images),
            ),
        ]
    )
    run = Run(CapFilt(Captions(), Scores()), inputs, tmp_path / "out", Settings(shard_rows=5))
    run.folder.mkdir()
    run.work()
    ledger = run.finish()
    assert ledger["texts"]["web"] == {"texts": ROWS, "kept": 5, "dropped": {"score": 6}, "noise_ratio": 0.5455}
    assert ledger["texts"]["synthetic"]["texts"] == ROWS
    assert ledger["texts"]["human"] == {"texts": 1, "kept": 1, "dropped": {}, "noise_ratio": 0.0}
    people = open_source({"format": "captions", "path": f"{run.folder}/human-*.tar"})
    assert people[0].turns[-1].text == "people wrote this"
    accounts = list(read_accounts(run.folder, run.shards))
    assert [account["licence"] for account in accounts] == ["CC0"] * ROWS + ["CC-BY"]


def test_tar_shards_without_texts_are_a_source(images: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        for path in sorted(images.iterdir())[:3]:
            tar.add(path, path.name)
    inputs = Inputs([Input("tar", str(tmp_path / "images.tar"))])
    row = inputs.row(2, inputs.entry(2))
    assert (row.identity, row.text, row.image.size) == ("002", "", Image.open(images / "002.jpg").size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "nowhere"}, "there is no folder 'nowhere'"),
        ({"path": "nowhere", "format": "photos"}, "there is no format 'photos'"),
        ({"path": "nowhere", "text": "txt"}, r"takes only `path`, got \['text'\]"),
        ({"path": "nowhere", "human": True}, "`human` needs texts"),
    ],
)
def test_a_source_that_cannot_be_opened_is_named(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Inputs([Input("a", **arguments)])


def test_the_page_shows_twenty_samples_and_escapes_texts(tmp_path: Path) -> None:
    run, _ = start(write_images(tmp_path / "many", 25), tmp_path / "out")
    page = (run.folder / PAGE).read_text()
    assert page.count("<section>") == page.count("described, by merge") == 20
    assert '>merge</td><td class="text"' not in page  # the merged text stands once in a section
    assert "STOP &lt;b&gt;" in page and "STOP <b>" not in page
    assert page.count("data:image/png;base64,") == 20
    assert "a real one" in page and "its score 0.05 is not above 0.4" in page


def test_boxes_are_drawn_around_small_text_and_inside_of_the_image() -> None:
    image = Image.new("RGB", (101, 101), "white")
    boxes = [(0.1, 0.1, 0.9, 0.2), (0.0, 0.3, 1.0, 1.0)]  # a line of text, and a box to the border
    statements = [{"kind": "text", "kept": True, "box": box} for box in boxes]
    drawing = draw_boxes(image, statements)
    green = ImageColor.getrgb(COLOURS["text"])
    assert drawing.crop((10, 10, 91, 21)).getcolors() == [(81 * 11, (255, 255, 255))]
    assert [drawing.getpixel(place) for place in ((50, 9), (50, 8))] == [green, (255, 255, 255)]
    assert [drawing.getpixel(place) for place in ((0, 60), (1, 60), (100, 60), (50, 28), (50, 100))] == [green] * 5
    assert image.getpixel((50, 9)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((300, 200), (300, 200)),
        ((960, 640), (480, 320)),
        ((4000, 60), (4000, 60)),  # a strip stays readable, and scrolls
        ((60000, 600), (4800, 48)),
        ((2, 4), (32, 64)),  # enlarged, so that boxes are seen
    ],
)
def test_images_of_the_page_are_neither_large_nor_unreadable(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert scaled(Image.new("L", size)).size == expected


def test_a_page_without_a_sample_says_which_rows_are_bad(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(b"no image")
    run, _ = start(tmp_path / "images", tmp_path / "out", on_bad_image="skip", max_bad=1.0)
    page = (run.folder / PAGE).read_text()
    assert "0 of 0 annotated images" in page and "<section>" not in page and "unreadable image" in page
