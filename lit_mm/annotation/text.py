"""The expert that reads text: PP-OCR in the package rapidocr."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lit_mm.annotation.description import Description, Identity, rounded_box
from lit_mm.annotation.experts import Models, TextExpert, class_path, optional_package
from lit_mm.annotation.language_models import digest_of_file
from lit_mm.errors import UserError

PUBLISHED = "PaddleOCR, English, with angle classifier"


class RapidText(TextExpert):
    """Reads text with rapidocr, whose PP-OCR weights are in the package. The order is that of the detector.

    A box has corners 0 and 2 of the reader's quadrilateral, as released. The score is the confidence of the
    recogniser; strings of any confidence are returned, so that the filter can say why it drops them.

    Args:
        threads: number of threads per process; 0 for all processors.
        angles: True asks a classifier whether a line stands upside down, as released. The one in the package squeezes
            long lines and then turns upright ones: 10 of 69 lines of rendered pages, which read as nonsense. False
            takes every line as upright.
    Raises:
        UserError: the number is negative.
    """

    def __init__(self, threads: int = 0, angles: bool = False) -> None:
        if threads < 0:
            raise UserError(f"RapidText: `threads` is at least 0, got {threads}")
        self.threads, self.angles = threads, angles
        self._reader: Any = None
        self._digest = ""

    def load(self, models: Models) -> None:
        """See `Expert.load`.

        Raises:
            UserError: rapidocr or onnxruntime is not installed.
        """
        package = optional_package("rapidocr", "RapidText", "'lit_mm[engines]'")
        optional_package("onnxruntime", "RapidText", "'lit_mm[engines]'")
        self._reader = package.RapidOCR(
            params={
                "Global.text_score": 0.0,
                "Global.use_cls": self.angles,
                "Global.log_level": "critical",
                "EngineConfig.onnxruntime.intra_op_num_threads": self.threads or -1,
            }
        )
        folder = Path(package.__file__).parent / "models"
        self._digest = " ".join(digest_of_file(file) for file in sorted(folder.glob("*.onnx")))

    def identity(self) -> Identity:
        version = f"rapidocr {importlib.metadata.version('rapidocr')}"
        return Identity(class_path(self), self._digest, "Apache-2.0", version, PUBLISHED)

    def texts(self, images: Sequence[Image.Image]) -> list[list[Description]]:
        """See `TextExpert.texts`."""
        return [self._of_image(image) for image in images]

    def _of_image(self, image: Image.Image) -> list[Description]:
        result = self._reader(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]))  # the reader takes BGR
        if result.boxes is None:
            return []
        descriptions = []
        for corners, text, score in zip(result.boxes, result.txts, result.scores, strict=True):
            box = rounded_box((*corners[0], *corners[2]), image.height, image.width)
            if text.strip():
                descriptions.append(Description(text, box, float(score)))
        return descriptions
