"""Made files of five entries in the published format of every benchmark."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from PIL import Image

FIVE = range(5)
WORDS = ("red", "green", "blue", "black", "white")
CAPTIONS = [f"a {word} circle on a large page number {number} ." for number, word in enumerate(WORDS)]


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (30 + number, 20), (number * 20, 0, 0))


def encoded(number: int) -> bytes:
    stream = io.BytesIO()
    picture(number).save(stream, "PNG")
    return stream.getvalue()


def save(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number).save(path, "PNG")  # the reader goes by content, as for the extensionless images of SEED-Bench


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def annotators(word: str) -> list[dict[str, Any]]:
    return [{"answer": word, "answer_confidence": "yes", "answer_id": number} for number in range(1, 11)]


def karpathy(folder: str, place: dict[str, Any]) -> Callable[[Path], None]:
    def make(data: Path) -> None:
        images = []
        for n in FIVE:
            name = f"{n}.jpg"
            save(data / folder / (place.get("filepath") or "flickr30k-images") / name, n)
            sentences = [{"raw": CAPTIONS[n], "imgid": n, "sentid": 2 * n}, {"raw": f"{WORDS[n]} page", "imgid": n}]
            images.append(
                {**place, "filename": name, "imgid": n, "cocoid": 100 + n, "split": "test", "sentences": sentences}
            )
        images.append({**images[0], "split": "train", "filename": "absent.jpg"})
        write(data / folder / f"dataset_{folder}.json", {"images": images, "dataset": folder})

    return make


def nocaps(data: Path) -> None:
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 30, "height": 20} for n in FIVE]
    for n in FIVE:
        save(data / f"nocaps/images/{n}.jpg", n)
    notes = [{"id": 10 * n + k, "image_id": n, "caption": CAPTIONS[n]} for n in FIVE for k in (0, 1)]
    write(data / "nocaps/nocaps_val_4500_captions.json", {"images": images, "annotations": notes})


def textcaps(data: Path) -> None:
    rows = []
    for n in FIVE:
        save(data / f"textvqa/train_images/im{n}.jpg", n)
        rows += [
            {
                "image_id": f"im{n}",
                "caption_str": CAPTIONS[n],
                "caption_id": 5 * n + k,
                "reference_strs": [CAPTIONS[n]] * 5,
            }
            for k in FIVE
        ]
    write(data / "textcaps/TextCaps_0.1_val.json", {"dataset_type": "val", "data": rows})


def coco_vqa(folder: str, questions: str, annotations: str) -> Callable[[Path], None]:
    def make(data: Path) -> None:
        for n in FIVE:
            save(data / f"coco/val2014/COCO_val2014_{n + 7:012d}.jpg", n)
        asked = [{"image_id": n + 7, "question": f"What colour is page {n}?", "question_id": 70 + n} for n in FIVE]
        write(data / folder / questions, {"questions": asked, "data_type": "mscoco"})
        notes = [{"question_id": 70 + n, "image_id": n + 7, "answers": annotators(WORDS[n])} for n in reversed(FIVE)]
        write(data / folder / annotations, {"annotations": notes})

    return make


def gqa(data: Path) -> None:
    for n in FIVE:
        save(data / f"gqa/images/n{n}.jpg", n)
    rows = {
        f"20{n}": {"question": "Which colour?", "imageId": f"n{n}", "answer": WORDS[n], "isBalanced": True}
        for n in FIVE
    }
    write(data / "gqa/testdev_balanced_questions.json", rows)


def scienceqa(data: Path) -> None:
    problems = {
        str(n): {
            "question": "Which colour?",
            "choices": list(WORDS[:3]),
            "answer": n % 3,
            "hint": "Look." if n else "",
            "image": "image.png" if n < 5 else None,
            "split": "test",
        }
        for n in range(6)
    }
    for n in FIVE:
        save(data / f"scienceqa/images/test/{n}/image.png", n)
    write(data / "scienceqa/problems.json", problems)
    write(data / "scienceqa/pid_splits.json", {"test": list(problems), "train": []})


def vizwiz(data: Path) -> None:
    rows = []
    for n in FIVE:
        save(data / f"vizwiz/val/VizWiz_val_{n:08d}.jpg", n)
        rows.append(
            {
                "image": f"VizWiz_val_{n:08d}.jpg",
                "question": "What is it?",
                "answers": annotators(WORDS[n]),
                "answer_type": "other",
                "answerable": 1,
            }
        )
    write(data / "vizwiz/val.json", rows)


def textvqa(data: Path) -> None:
    rows = []
    for n in FIVE:
        save(data / f"textvqa/train_images/im{n}.jpg", n)
        rows.append(
            {
                "question": "What word is it?",
                "image_id": f"im{n}",
                "question_id": 34602 + n,
                "answers": [WORDS[n]] * 10,
                "set_name": "val",
            }
        )
    write(data / "textvqa/TextVQA_0.5.1_val.json", {"data": rows, "dataset_name": "textvqa"})
    ocr = [{"image_id": f"im{n}", "ocr_tokens": [WORDS[n].upper(), "5"], "ocr_info": []} for n in FIVE]
    write(data / "textvqa/TextVQA_Rosetta_OCR_v0.2_val.json", {"data": ocr})


def ai2d(data: Path) -> None:
    rows = [
        {
            "question": "Which colour?",
            "options": list(WORDS[:4]),
            "answer": str(n % 4),
            "image": {"bytes": encoded(n), "path": f"{n}.png"},
        }
        for n in FIVE
    ]
    (data / "ai2d/data").mkdir(parents=True)
    for shard, part in enumerate((rows[:3], rows[3:])):
        path = data / f"ai2d/data/test-{shard:05d}-of-00002.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part), path)


def docvqa(data: Path) -> None:
    rows = []
    for n in FIVE:
        save(data / f"docvqa/val/documents/d{n}.png", n)
        rows.append(
            {
                "questionId": n,
                "question": "What colour?",
                "image": f"documents/d{n}.png",
                "docId": n,
                "answers": [WORDS[n], WORDS[n].upper()],
                "data_split": "val",
            }
        )
    write(data / "docvqa/val/val_v1.0.json", {"dataset_name": "docvqa", "data": rows})


def infovqa(data: Path) -> None:
    rows = []
    for n in FIVE:
        save(data / f"infovqa/images/{n}.jpeg", n)
        rows.append(
            {
                "questionId": n,
                "question": "What colour?",
                "image_local_name": f"{n}.jpeg",
                "answers": [WORDS[n]],
                "answer_type": ["single span"],
            }
        )
    write(data / "infovqa/infographicsVQA_val_v1.0_withQT.json", {"data": rows})


def monkey_lines(folder: str, file: str) -> Callable[[Path], None]:
    def make(data: Path) -> None:
        rows = []
        for n in FIVE:
            save(data / folder / f"images/{n}.jpg", n)
            rows.append({"image": f"images/{n}.jpg", "question": "What colour?", "question_id": n, "answer": WORDS[n]})
        write_lines(data / folder / file, rows)

    return make


def chartqa(data: Path) -> None:
    for half, numbers in (("human", (0, 1)), ("augmented", (2, 3, 4))):
        rows = []
        for n in numbers:
            save(data / f"chartqa/test/png/{n}.png", n)
            rows.append({"imgname": f"{n}.png", "query": "How many?", "label": str(100 * (n + 1))})
        write(data / f"chartqa/test/test_{half}.json", rows)


def mme(data: Path) -> None:
    folder = data / "mme/MME_Benchmark_release_version"
    for subset, images, texts in (("color", "", ""), ("artwork", "images", "questions_answers_YN")):
        for n in (0, 1):
            save(folder / subset / images / f"{n}.jpg", n)
            (folder / subset / texts).mkdir(parents=True, exist_ok=True)
            lines = [
                f"Is it {word}? Please answer yes or no.\t{label}" for word, label in (("red", "Yes"), ("blue", "No"))
            ]
            (folder / subset / texts / f"{n}.txt").write_text("\n".join(lines) + "\n")


def pope(data: Path) -> None:
    for n in FIVE:
        save(data / f"coco/val2014/COCO_val2014_{n:012d}.jpg", n)
    for part in ("random", "popular", "adversarial"):
        rows = [
            {
                "question_id": n + 1,
                "image": f"COCO_val2014_{n:012d}.jpg",
                "text": "Is there a dog in the image?",
                "label": ("yes", "no")[n % 2],
            }
            for n in FIVE
        ]
        write_lines(data / f"pope/coco_pope_{part}.json", rows)


def hateful_memes(data: Path) -> None:
    rows = []
    for n in FIVE:
        save(data / f"hateful_memes/img/0{n}.png", n)
        rows.append({"id": n, "img": f"img/0{n}.png", "label": n % 2, "text": f"words {n}"})
    write_lines(data / "hateful_memes/dev_seen.jsonl", rows)


def vsr(data: Path) -> None:
    rows = []
    for n in FIVE:
        save(data / f"vsr/images/{n:012d}.jpg", n)
        rows.append(
            {
                "image": f"{n:012d}.jpg",
                "image_link": "",
                "caption": "The cat is left of the dog.",
                "label": n % 2,
                "relation": "left of",
            }
        )
    write_lines(data / "vsr/splits/zeroshot/test.jsonl", rows)


def iconqa(data: Path) -> None:
    problems = {
        str(n): {
            "question": "Which colour?",
            "choices": list(WORDS[: 2 + n % 3]),
            "answer": n % 2,
            "ques_type": "choose_txt",
            "split": "test",
        }
        for n in FIVE
    }
    for n in FIVE:
        save(data / f"iconqa/iconqa/test/choose_txt/{n}/image.png", n)
    write(data / "iconqa/problems.json", problems)
    write(data / "iconqa/pid_splits.json", {"choose_txt_test": list(problems), "choose_txt_train": ["9"]})


def mmbench(file: str) -> Callable[[Path], None]:
    """Two questions, of two and three options, whose rotations refer to the image of the first."""

    def make(data: Path) -> None:
        head = [
            "index",
            "question",
            "hint",
            "A",
            "B",
            "C",
            "D",
            "answer",
            "category",
            "image",
            "source",
            "l2-category",
            "comment",
            "split",
        ]
        lines = ["\t".join(head)]
        for question, options in ((1, ["red", "blue"]), (2, ["red", "blue", "black"])):
            for turn in range(len(options)):
                rotated = options[turn:] + options[:turn]
                cells = {
                    "index": question + turn * 10**6,
                    "question": "Which colour?",
                    "answer": "ABC"[rotated.index("red")],
                    "image": str(question) if turn else base64.b64encode(encoded(question)).decode(),
                    "category": "colour",
                    "hint": "nan",
                    **dict(zip("ABCD", [*rotated, "", ""], strict=False)),
                }
                lines.append("\t".join(str(cells.get(key, "")) for key in head))
        (data / "mmbench").mkdir(parents=True)
        (data / "mmbench" / file).write_text("\n".join(lines) + "\n")

    return make


def seed(data: Path) -> None:
    rows = []
    for n in FIVE:
        save(data / f"seed_bench/SEED-Bench-image/1_{n}", n)
        rows.append(
            {
                "question_id": f"10{n}",
                "data_id": f"1_{n}",
                "data_type": "image",
                "question_type_id": 1 + n % 2,
                "question": "Which colour?",
                "answer": "ABCD"[n % 4],
                **{f"choice_{letter}": WORDS[k] for k, letter in enumerate("abcd")},
            }
        )
    rows.append({**rows[0], "question_id": "999", "data_type": "video", "data_id": "absent.mp4"})
    write(data / "seed_bench/SEED-Bench.json", {"questions": rows, "question_type": {}})


def refcoco(file: str) -> Callable[[Path], None]:
    def make(data: Path) -> None:
        rows = []
        for n in FIVE:
            save(data / f"coco/train2014/{n}.jpg", n)
            rows.append(
                {
                    "image": f"train2014/{n}.jpg",
                    "sent": "the red one",
                    "bbox": [3, 2, 15, 10],
                    "height": 20,
                    "width": 30 + n,
                }
            )
        write_lines(data / "refcoco" / file, rows)

    return make


MAKERS: dict[str, Callable[[Path], None]] = {
    "flickr30k": karpathy("flickr30k", {}),
    "flickr30k_retrieval": karpathy("flickr30k", {}),
    "coco_captions": karpathy("coco", {"filepath": "val2014"}),
    "coco_retrieval": karpathy("coco", {"filepath": "val2014"}),
    "nocaps": nocaps,
    "textcaps": textcaps,
    "vqav2": coco_vqa("vqav2", "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"),
    "okvqa": coco_vqa("okvqa", "OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"),
    "gqa": gqa,
    "scienceqa": scienceqa,
    "vizwiz": vizwiz,
    "textvqa": textvqa,
    "textvqa_ocr": textvqa,
    "ai2d": ai2d,
    "docvqa": docvqa,
    "infovqa": infovqa,
    "stvqa": monkey_lines("stvqa", "stvqa.jsonl"),
    "estvqa": monkey_lines("estvqa", "estvqa.jsonl"),
    "chartqa": chartqa,
    "deepform": monkey_lines("deepform", "test_DeepForm.jsonl"),
    "klc": monkey_lines("klc", "test_KleisterCharity.jsonl"),
    "wtq": monkey_lines("wtq", "test_WikiTableQuestions.jsonl"),
    "mme": mme,
    "pope": pope,
    "hateful_memes": hateful_memes,
    "vsr": vsr,
    "iconqa": iconqa,
    "mmbench": mmbench("mmbench_dev_20230712.tsv"),
    "mmbench_cn": mmbench("mmbench_dev_cn_20231003.tsv"),
    "seed": seed,
    "refcoco": refcoco("refcoco_val.jsonl"),
    "refcoco_plus": refcoco("refcoco+_val.jsonl"),
    "refcocog": refcoco("refcocog_val.jsonl"),
}
