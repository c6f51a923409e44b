"""Metrics on cases worked by hand from the official rules."""

from __future__ import annotations

import hashlib
import json
import math
import re

import pytest

from jair import vqa_accuracy
from jair.metrics import caption_scores, exact_match, label_match, tokenize
from jair.metrics.answers import is_label
from jair.metrics.contractions import CONTRACTIONS
from jair.metrics.vqa import normalise


def ten(**counts: int) -> list[str]:
    """Ten answers: `ten(cat=4)` are four cats and six that nobody else gave."""
    answers = [answer for answer, count in counts.items() for _ in range(count)]
    return answers + [f"other{i}" for i in range(10 - len(answers))]


@pytest.mark.parametrize(
    ("matches", "accuracy"),
    # m people who agree are left out with (m - 1)/3, the other 10 - m with m/3, each at most 1.
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0), (10, 1.0)],
)
def test_accuracy_is_the_mean_over_leaving_one_out(matches: int, accuracy: float) -> None:
    assert vqa_accuracy("cat", ten(cat=matches)) == pytest.approx(accuracy, abs=1e-12)


def test_nothing_is_normalised_where_all_agree() -> None:
    assert vqa_accuracy("Yes", ["yes"] * 10) == 0
    assert vqa_accuracy("two", ["2"] * 10) == 0
    assert vqa_accuracy("yes.", ["yes."] * 10) == 1
    assert vqa_accuracy(" yes\n", ["yes", "yes "] * 5) == 1  # stripped before they are compared
    assert vqa_accuracy("a\tb", ["a b"] * 10) == 1
    assert vqa_accuracy("Yes", ["yes"] * 9 + ["no"]) == 1


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("black/white", "black white"),  # beside no space: a space
        ("black / white", "black white"),
        ("black/ white and x/y", "black white and xy"),  # once beside a space: goes everywhere
        ("1,000", "1000"),  # a number with a comma: every mark goes
        ("1,000 up-to-date", "1000 uptodate"),
        ("red,blue", "red blue"),
        ("red, blue", "red blue"),
        ("x-ray", "x ray"),
        ("- x-ray", "xray"),
        ("what?!", "what"),
        ("{a} [cat] (b) <c>", "cat b c"),
        ("it's", "it's"),  # apostrophes and colons are no marks
        ("5:30", "5:30"),
        ('`x`@"y"', "x y"),
        ("p.m.", "pm"),
        ("3.5", "3.5"),
        ("3.", "3"),
        (".5", ".5"),
        ("no. 5", "no 5"),
        ("no.5", "no.5"),
        ("." * 33, "."),  # 32 go, as in the official code
        ("None", "0"),
        ("zero one two three four five six seven eight nine ten eleven", "0 1 2 3 4 5 6 7 8 9 10 eleven"),
        ("The cat and a dog on an A", "cat and dog on"),
        ("theatre", "theatre"),
        ("dont", "don't"),
        ("DONT", "don't"),
        ("shes", "shes"),  # not in the table
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("Im", "im"),  # lower-cased before the table, which has only "Im"
        ("a", ""),
        ("  two   words ", "2 words"),
        ("ice cream", "ice cream"),
        ("\u0663,\u0664", "\u0663 \u0664"),  # digits are 0 to 9
    ],
)
def test_normalisation(text: str, normalised: str) -> None:
    assert normalise(text) == normalised


def test_both_sides_are_normalised() -> None:
    answers = ["two dogs"] * 3 + ["2 dogs."] + ["The two dogs"] + ["a cat"] * 5
    assert vqa_accuracy("2 dogs", answers) == 1
    assert vqa_accuracy("Two, dogs!", answers) == 1
    assert vqa_accuracy("Cat", answers) == 1
    assert vqa_accuracy("dogs", answers) == 0


def test_the_contractions_are_the_official_ones() -> None:
    """By the hash of the table in GT-Vision-Lab/VQA at a013f00."""
    assert len(CONTRACTIONS) == 120
    table = json.dumps(sorted(CONTRACTIONS.items())).encode()
    assert hashlib.sha256(table).hexdigest() == (
        "3e5960526f62912d3b70896069c43c13d7c21be38d50ca28efbb9095b499454f"
    )


@pytest.mark.parametrize(
    ("prediction", "answers", "error", "message"),
    [
        (2, ["2"] * 10, TypeError, "prediction: expected a str, got int"),
        ("2", "2222222222", TypeError, "answers: expected a sequence of 10 str, got str"),
        ("2", None, TypeError, "answers: expected a sequence of 10 str, got NoneType"),
        ("2", ["2"] * 9 + [2], TypeError, "answers: expected a sequence of 10 str, got int in it"),
        ("2", ["2"] * 9, ValueError, "answers: expected 10, got 9"),
        ("2", [], ValueError, "answers: expected 10, got 0"),
    ],
)
def test_accuracy_refuses(prediction: object, answers: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        vqa_accuracy(prediction, answers)  # type: ignore[arg-type]


def test_exact_match_and_labels() -> None:
    assert exact_match(" Red. ", ["red"]) == 1
    assert exact_match("red..", ["red"]) == 0  # one period
    assert exact_match("dark red", ["red"]) == 0
    assert exact_match("blue", ["red", "Blue"]) == 1
    assert label_match("Entailment.", ["entailment"]) == 1
    assert label_match("entail", ["entailment"]) == 0
    assert label_match("", ["neutral"]) == 0
    assert is_label(" Neutral. ")
    assert not is_label("")
    assert not is_label("neutral contradiction")


@pytest.mark.parametrize(
    ("caption", "words"),
    # What Stanford's PTBTokenizer 3.4.1 with COCO's list of punctuation gives.
    [
        (
            "A man's black-and-white cat doesn't sit, on the mat.",
            "a man 's black-and-white cat does n't sit on the mat",
        ),
        (
            "Two dogs; one cat: 3.5 feet & 1,000 $5 50% birds!",
            "two dogs one cat 3.5 feet & 1,000 $ 5 50 % birds",
        ),
        (
            "They're can't won't I'll he'd it's let's cannot",
            "they 're ca n't wo n't i 'll he 'd it 's let 's can not",
        ),
        ("a t-shirt -- with \"quotes\" and 'single' quotes...", "a t-shirt with quotes and single quotes"),
        ("a café with naïve décor at 5:30", "a café with naïve décor at 5:30"),
        ("dogs' bowl, o'clock, a/b and/or #1", "dogs bowl o'clock a/b and/or # 1"),
        ("`tick` it’s “curly” – dash — em 6'2\"", "tick it 's curly dash em 6 2"),
    ],
)
def test_words_of_a_caption(caption: str, words: str) -> None:
    assert tokenize(caption) == words.split()
    assert tokenize("a (big) mat") == ["a", "big", "mat"]  # COCO's keeps -lrb- and -rrb- as words


def test_bleu_by_hand() -> None:
    pytest.importorskip("pycocoevalcap", reason="the extra 'train' is not installed")
    # "the the cat": 2 of 3 words are in the reference (clipped), 1 of 2 pairs, no triple; 3 of 6 words long.
    scores = caption_scores(["The the cat."], [["the cat sat on a mat"]])
    brevity = math.exp(1 - 6 / 3)
    assert scores["bleu1"] == pytest.approx(brevity * 2 / 3, rel=1e-6)
    assert scores["bleu2"] == pytest.approx(brevity * math.sqrt(2 / 3 * 1 / 2), rel=1e-6)
    assert scores["bleu3"] == pytest.approx(0, abs=1e-4)
    # The corpus: counts are added before they are divided; 7 and 6 words said and written, so no penalty.
    scores = caption_scores(["a red cube", "a big blue ball"], [["a red cube"], ["the blue ball"]])
    assert scores["bleu1"] == pytest.approx(5 / 7, rel=1e-6)
    assert scores["bleu2"] == pytest.approx(math.sqrt(5 / 7 * 3 / 5), rel=1e-6)
    assert caption_scores(["a b c d"], [["x", "a b c d"]])["bleu4"] == pytest.approx(1, rel=1e-6)


def test_cider_by_hand() -> None:
    pytest.importorskip("pycocoevalcap", reason="the extra 'train' is not installed")
    # Two images. "red" and "cube" are in one: idf log 2; "a" in both: 0. Unigrams (red, cube) of the first
    # and its reference (red, ball): cosine 1/2. Pairs: (a red), (red cube) against (a red), (red ball): 1/2.
    # Triples differ, no fours. The number of pairs is equal, so there is no penalty for the length.
    scores = caption_scores(["a red cube", "a dog"], [["a red ball"], ["a dog"]])
    assert scores["cider_each"][0] == pytest.approx(10 * (1 / 2 + 1 / 2) / 4, rel=1e-9)
    # (dog) and (a dog) agree with themselves; there are neither triples nor fours.
    assert scores["cider_each"][1] == pytest.approx(10 * 2 / 4, rel=1e-9)
    assert scores["cider"] == pytest.approx((2.5 + 5) / 2, rel=1e-9)
    # A longer caption: 4 pairs instead of 2 cost exp(-2^2 / (2 * 6^2)).
    longer = caption_scores(["a red ball red ball", "a dog"], [["a red ball"], ["a dog"]])["cider_each"][0]
    unigrams = (1 * 1 + 1 * 1) / (math.sqrt(8) * math.sqrt(2))  # clipped at the reference's counts
    pairs = (1 + 1) / (math.sqrt(1 + 4 + 1) * math.sqrt(2))  # a red, red ball twice, ball red
    triples = 1 / math.sqrt(3)  # a red ball | red ball red, ball red ball
    assert longer == pytest.approx(10 / 4 * (unigrams + pairs + triples) * math.exp(-4 / 72), rel=1e-9)
    assert caption_scores(["a red cube"], [["a red cube"]])["cider"] == 0  # one image: no weights


def test_caption_scores_refuse() -> None:
    for predictions, references, message in (
        ([], [], "predictions: expected one for each image and at least one image, got 0 for 0"),
        (["a"], [], "predictions: expected one for each image and at least one image, got 1 for 0"),
        (["a", "b"], [["a"], []], "references: expected at least one caption of each image, got none of 1"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            caption_scores(predictions, references)


def test_one_text_is_no_list_of_texts() -> None:
    for call, message in (
        (lambda: exact_match("r", "red"), "answers: expected a sequence of str, got str"),
        (
            lambda: caption_scores("ab", [["a"], ["b"]]),
            "predictions: expected a sequence with an entry for each image, got str",
        ),
        (
            lambda: caption_scores(["a"], "a"),
            "references: expected a sequence with an entry for each image, got str",
        ),
        (
            lambda: caption_scores(["a", "b"], [["a"], "b"]),
            "references: expected a sequence of captions for each image, got str of 1",
        ),
    ):
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            call()
