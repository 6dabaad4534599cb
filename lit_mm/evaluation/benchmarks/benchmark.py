"""A benchmark as data: where its files lie, how it is asked and scored, and what was published.

Each YAML file of this folder is one `Benchmark`. Names of families occur only in these files, which are tables of
published procedures; the code compares them with the name of the model's class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from lit_mm.errors import UserError, suggestion
from lit_mm.evaluation.benchmarks.question import check_template
from lit_mm.evaluation.benchmarks.reader import Reader
from lit_mm.evaluation.benchmarks.typed import typed
from lit_mm.evaluation.metrics import find_metric
from lit_mm.evaluation.postprocessing import find_postprocessing
from lit_mm.inference.decoding import Decoding

FOLDER = Path(__file__).parent
ENDINGS = (".yaml", ".yml")
OTHERS = "ours"  # name of the procedure for families without a published one


@dataclass(frozen=True)
class Candidates:
    """Candidate answers that are ranked by likelihood.

    Attributes:
        texts: candidate -> its verbalisers, of which the likeliest counts; empty: the options of the question.
        as_letters: True ranks the letters of the options, False their texts. It is used if `texts` is empty.
        prefix: text in front of each candidate.
        length: "mean" divides the log-likelihood by the number of tokens, "sum" does not; None: as the family
            declares, see `lit_mm.evaluation.candidates.Ranking`, or "mean".
        end: True counts the token that ends the answer; None: as the family declares, or False.
        odds_of: candidate of `texts` whose log-odds against the likeliest other candidate are the answer, a number; ""
            answers with the likeliest candidate.
    """

    texts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    as_letters: bool = True
    prefix: str = ""
    length: Literal["mean", "sum"] | None = None
    end: bool | None = None
    odds_of: str = ""


@dataclass(frozen=True)
class Procedure:
    """How the authors of some families ask and score a benchmark.

    Attributes:
        name: name of the procedure, unique in its benchmark.
        metric: name in `lit_mm.evaluation.metrics.METRICS`.
        prompt: template of the user's turn, see `lit_mm.evaluation.benchmarks.question.TEXTS`.
        prompt_mark: origin of the prompt: "v" was read in a public file, "r" is recalled and still to be checked,
            "stand-in" was published for another benchmark or family, "ours" is our own choice; "" without a prompt.
        source: file or section in which the procedure is published, or from which our own takes its prompt.
        families: names of the classes whose authors use it.
        answering: "generation" writes an answer, "candidates" ranks candidates by likelihood, "retrieval" ranks
            pictures for captions and captions for pictures.
        decoding: arguments of `lit_mm.inference.decoding.Decoding`.
        candidates: candidates, if `answering` is "candidates".
        postprocessing: names in `lit_mm.evaluation.postprocessing.POSTPROCESSING`, applied in order to an answer.
        detail: name of a further figure of the metric to report in place of its main figure, "" for the main one.
        average: "rows" scores all rows together, "subsets" averages the figures of the subsets.
        gold: what a metric compares with: "letters" or "texts" of the right options in multiple choice; "pairs" writes
            answer and references as pairs of an unnamed key and values, for metrics of keys and values.
    """

    name: str
    metric: str
    prompt: str = "{question}"
    prompt_mark: Literal["v", "r", "stand-in", "ours", ""] = ""
    source: str = ""
    families: tuple[str, ...] = ()
    answering: Literal["generation", "candidates", "retrieval"] = "generation"
    decoding: dict[str, Any] = field(default_factory=dict)
    candidates: Candidates | None = None
    postprocessing: tuple[str, ...] = ()
    detail: str = ""
    average: Literal["rows", "subsets"] = "rows"
    gold: Literal["letters", "texts", "pairs"] = "letters"

    def decoder(self) -> Decoding:
        """Return the settings of decoding."""
        return Decoding(**self.decoding)


@dataclass(frozen=True)
class Published:
    """A published figure, in the unit that papers print.

    Attributes:
        model: name of the model in the paper.
        figure: the figure.
        mark: "v" was read in a public file or table, "r" is recalled, "s" was read in a secondary summary.
        split: split of the benchmark; it may be one that this project does not read.
        metric: metric, with "/" and the detail if the figure is one of its details.
        source: short name of the source.
        family: name of the model's class here, "" if there is none.
    """

    model: str
    figure: float
    mark: Literal["v", "r", "s"]
    split: str
    metric: str
    source: str
    family: str = ""


@dataclass(frozen=True)
class Submission:
    """The file that a benchmark's server takes.

    Attributes:
        format: "json" is a list of entries, "xlsx" a table with a header.
        fields: key of the file -> key of the published entry, or "answer".
        all_of: file with one entry per question that the server expects; "" for the questions asked. A question that
            was not asked gets an empty answer.
        rows: path of the list in `all_of`.
        postprocessing: names in `lit_mm.evaluation.postprocessing.POSTPROCESSING`.
        url: address of the server.
    """

    format: Literal["json", "xlsx"]
    fields: dict[str, str]
    all_of: str = ""
    rows: str = ""
    postprocessing: tuple[str, ...] = ()
    url: str = ""


@dataclass(frozen=True)
class Split:
    """A split of a benchmark.

    Attributes:
        reader: keys of the benchmark's reader that differ in this split.
        size: number of questions of the published split, 0 if unknown.
        submission: file for the server, if the answers are not public.
    """

    reader: dict[str, Any] = field(default_factory=dict)
    size: int = 0
    submission: Submission | None = None


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        title: name in papers.
        home: address from which the files come.
        layout_source: public code or page in which the layout of the files was read.
        reader: keys of `Reader`; a split overrides some of them.
        splits: name -> split, the default first.
        procedures: procedures; the last is ours and serves all families without a published one.
        scale: factor from the metric's figure to the unit that papers print.
        published: published figures.
        note: what a reader of the figure must know.
        name: name of the file.
    """

    title: str
    home: str
    layout_source: str
    reader: dict[str, Any]
    splits: dict[str, Split]
    procedures: tuple[Procedure, ...]
    scale: float = 100.0
    published: tuple[Published, ...] = ()
    note: str = ""
    name: str = ""

    def split(self, name: str = "") -> str:
        """Return the name of a split; "" chooses the default.

        Raises:
            UserError: there is no such split.
        """
        if name and name not in self.splits:
            raise UserError(f"benchmark {self.name!r} has no split {name!r}; there are {', '.join(self.splits)}")
        return name or next(iter(self.splits))

    def reader_of(self, split: str) -> Reader:
        """Return the reader of a split."""
        where = f"{self.name}.yaml: reader of {split}"
        reader = typed(Reader, self.reader | self.splits[split].reader, where)
        reader.check(where)
        return reader

    def procedure_of(self, family: str, name: str = "") -> Procedure:
        """Return the procedure for a family.

        Args:
            family: name of the model's class.
            name: name of a procedure to use in place of the family's; "" for the family's.
        Raises:
            UserError: there is no procedure of this name.
        """
        if name:
            names = [procedure.name for procedure in self.procedures]
            if name not in names:
                raise UserError(f"benchmark {self.name!r} has no procedure {name!r}; there are {', '.join(names)}")
            return self.procedures[names.index(name)]
        return next((p for p in self.procedures if family in p.families), self.procedures[-1])

    def published_of(self, family: str) -> list[Published]:
        """Return the published figures of a family."""
        return [entry for entry in self.published if family and entry.family == family]


def benchmark_names() -> list[str]:
    """Return the names of all benchmarks."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_benchmark(name: str) -> Benchmark:
    """Load a benchmark by its name, or from a YAML file of the user's, whose name without ending becomes its name.

    Args:
        name: name, or path of a file that ends in .yaml.
    Raises:
        UserError: there is no such benchmark, its file cannot be read, or see `parse_benchmark`.
    """
    if name.endswith(ENDINGS):
        return parse_benchmark(Path(name).stem, _read_yaml(name))
    names = benchmark_names()
    if name not in names:
        guess = suggestion(name, names, otherwise=f"There are {', '.join(names)}, and files such as mine.yaml.")
        raise UserError(f"there is no benchmark {name!r}. {guess}")
    return parse_benchmark(name, yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))


def _read_yaml(file: str) -> Any:
    try:
        return yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"the benchmark {file!r} cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the benchmark {file!r} is not YAML: {' '.join(str(error).split())}") from error


def parse_benchmark(name: str, content: Mapping[str, Any]) -> Benchmark:
    """Convert the parsed YAML of a benchmark, and check all that can be checked without its files.

    Raises:
        UserError: a key is unknown, missing or of the wrong type; a metric, placeholder, post-processing or setting of
            decoding is unknown; or the procedures do not end in ours.
    """
    where = f"{name}.yaml"
    if not isinstance(content, Mapping):
        raise UserError(
            f"{where}: expected the keys of a benchmark, such as title and reader, got {str(content)[:80]!r}"
        )
    if "name" in content:
        raise UserError(f"{where}: the name of a benchmark is that of its file. Remove `name`")
    benchmark = typed(Benchmark, {**content, "name": name}, where)
    if not benchmark.splits or not benchmark.procedures:
        raise UserError(f"{where}: a benchmark has at least one split and one procedure")
    last = benchmark.procedures[-1]
    if last.name != OTHERS or last.families:
        raise UserError(f"{where}: the last procedure is {OTHERS!r} and names no families, got {last.name!r}")
    for split in benchmark.splits:
        benchmark.reader_of(split)
    for procedure in benchmark.procedures:
        place = f"{where}: procedure {procedure.name!r}"
        find_metric(procedure.metric)
        check_template(procedure.prompt, place)
        if (procedure.answering != "retrieval") != bool(procedure.prompt_mark and procedure.source):
            raise UserError(
                f"{place}: a prompt needs `prompt_mark` (v, r, stand-in or ours) and `source`, and retrieval has "
                f"no prompt. Got {procedure.prompt_mark!r} and {procedure.source!r}"
            )
        if (procedure.name == OTHERS) != (procedure.prompt_mark == OTHERS) and procedure.answering != "retrieval":
            raise UserError(
                f"{place}: the mark {OTHERS!r} is for the prompt of the procedure {OTHERS!r}, and that prompt has "
                "no other mark"
            )
        for step in procedure.postprocessing:
            find_postprocessing(step, place)
        if (procedure.candidates is not None) != (procedure.answering == "candidates"):
            raise UserError(f"{place}: `answering: candidates` needs `candidates`, and no other `answering` has them")
        if (candidates := procedure.candidates) and candidates.odds_of and len(candidates.texts) < 2:
            raise UserError(f"{place}: `odds_of` compares one of at least two candidates of `texts`")
        if candidates and candidates.odds_of and candidates.odds_of not in candidates.texts:
            raise UserError(f"{place}: `odds_of` is one of {sorted(candidates.texts)}, got {candidates.odds_of!r}")
        try:
            procedure.decoder()
        except TypeError as error:
            raise UserError(f"{place}: decoding: {error}") from error
    return benchmark
