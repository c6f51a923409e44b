"""Pre-training tasks, all as text generation: what is asked and what is to be said, from captions.

Which tasks there are is our decision, after the habit of the paper's group.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

CAPTION = "describe the picture"


def make(
    task: str, captions: Sequence[str], wrong: str, objects: Sequence[str], rng: Random
) -> tuple[str, str]:
    """(prompt, answer) of a task.

    Args:
        task: "caption", "completion" (a caption's beginning is given), "masked" (some words are left out),
            "matching" (is it this picture's caption?) or "objects" (what is in the picture).
        captions: true ones, of which one is drawn. wrong: a false one. objects: for "objects".
    """
    caption = rng.choice(captions)
    words = caption.split()
    if task == "completion":
        cut = rng.randint(1, max(1, len(words) - 1))
        return f"complete: {' '.join(words[:cut])}", " ".join(words[cut:]) or caption
    if task == "masked":
        hidden = rng.randrange(len(words))
        shown = " ".join("_" if i == hidden else word for i, word in enumerate(words))
        return f"fill in: {shown}", words[hidden]
    if task == "matching":
        true = rng.random() < 0.5
        return f"does this match the picture: {caption if true else wrong}?", "yes" if true else "no"
    if task == "objects":
        return "what is in the picture?", ", ".join(objects)
    return CAPTION, caption
