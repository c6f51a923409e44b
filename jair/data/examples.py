"""One example of any data set and task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Example:
    """A picture, what is asked and what is to be said.

    image: RGB, of any size. prompt: what the text encoder reads. answer: what the decoder learns to write.
    answers: every reference (ten for VQA, all captions of an image, else the one; none where the test
    questions are published alone). id: the question's or
    image's, as its data set names it. group: a type of question or answer, for reports.
    """

    image: Image
    prompt: str
    answer: str
    answers: tuple[str, ...]
    id: str
    group: str = ""
