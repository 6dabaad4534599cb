"""Files with answers in the formats of the benchmarks' servers."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from lit_mm.errors import UserError
from lit_mm.evaluation.benchmarks.benchmark import Submission
from lit_mm.evaluation.benchmarks.question import Question
from lit_mm.evaluation.benchmarks.reader import find, read_rows
from lit_mm.evaluation.postprocessing import postprocess

ANSWER = "answer"  # in `Submission.fields`: the answer of the model
SHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
XLSX = {  # the parts of a workbook with one sheet, besides the sheet itself
    "[Content_Types].xml": f'<Types xmlns="{PACKAGE}/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Override PartName="/xl/workbook.xml" ContentType='
    '"application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"/>'
    '<Override PartName="/xl/worksheets/sheet1.xml" ContentType='
    '"application/vnd.openxmlformats-officedocument.spreadsheetml.worksheet+xml"/></Types>',
    "_rels/.rels": f'<Relationships xmlns="{PACKAGE}/relationships"><Relationship Id="rId1" '
    f'Type="{OFFICE}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
    "xl/workbook.xml": f'<workbook xmlns="{SHEET}" xmlns:r="{OFFICE}"><sheets>'
    '<sheet name="Sheet1" sheetId="1" r:id="rId1"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{PACKAGE}/relationships"><Relationship Id="rId1" '
    f'Type="{OFFICE}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
}


def write_submission(
    submission: Submission, questions: Sequence[Question], answers: Mapping[str, str], data: Path, path: Path
) -> Path:
    """Write the answers in the format of a server.

    Args:
        submission: format.
        questions: all questions of the split.
        answers: id -> answer.
        data: folder of all benchmarks.
        path: path of the file without its ending.
    Returns:
        The path of the file.
    Raises:
        UserError: a question has no answer.
    """
    missing = [question.id for question in questions if question.id not in answers]
    if missing:
        raise UserError(
            f"the submission was not written: {len(missing)} of {len(questions)} questions have no answer, "
            f"the first is {missing[0]!r}. Evaluate the whole split, without --documents"
        )
    entries = [
        _filled(submission, question.entry, postprocess(answers[question.id], submission.postprocessing))
        for question in questions
    ]
    if submission.all_of:
        keys = [key for key, source in submission.fields.items() if source != ANSWER]
        by_key = {tuple(entry[key] for key in keys): entry for entry in entries}
        whole = [_filled(submission, row, "") for row in read_rows(data / submission.all_of, submission.rows)]
        entries = [by_key.get(tuple(entry[key] for key in keys), entry) for entry in whole]
    path = path.with_suffix(f".{submission.format}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if submission.format == "json":
        path.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    else:
        write_table(path, [list(submission.fields), *([entry[key] for key in submission.fields] for entry in entries)])
    return path


def _filled(submission: Submission, row: Mapping[str, Any], answer: str) -> dict[str, Any]:
    return {
        key: answer if source == ANSWER else find(row, source, "submission")
        for key, source in submission.fields.items()
    }


def write_table(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    """Write rows as an Excel workbook with one sheet. Whole numbers become numbers, everything else text.

    Source: ECMA-376, part 1, section 18 (SpreadsheetML), with inline strings.
    """
    lines = []
    for row in rows:
        cells = "".join(
            f"<c><v>{cell}</v></c>"
            if isinstance(cell, int) or str(cell).isdecimal()
            else f'<c t="inlineStr"><is><t xml:space="preserve">{escape(_printable(str(cell)))}</t></is></c>'
            for cell in ("" if value is None else value for value in row)
        )
        lines.append(f"<row>{cells}</row>")
    header = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
    sheet = f'<worksheet xmlns="{SHEET}"><sheetData>{"".join(lines)}</sheetData></worksheet>'
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in {**XLSX, "xl/worksheets/sheet1.xml": sheet}.items():
            file.writestr(name, header + content)


def _printable(text: str) -> str:
    """Drop control characters, which XML does not allow."""
    return "".join(letter for letter in text if letter >= " " or letter in "\t\n\r")
