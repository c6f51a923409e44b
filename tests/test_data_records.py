"""One odd record costs only itself: it is skipped, counted and named; an odd file is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("PIL", reason="the extra 'models' is not installed")

from PIL import Image

from jair.data.sources import CAPTION_TASKS, KINDS, Source, SourceSpec, open_source

HALF = "\ud800"  # of a surrogate pair: JSON can write it, UTF-8 cannot hold it


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def pictures(folder: Path, pattern: str) -> None:
    folder.mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (8, 6), "red").save(folder / pattern.format(i))


def opened(kind: str, root: Path, **options: Any) -> Source:
    return open_source(SourceSpec.parse(f"{kind}:{root}"), "train", **options)


def check_skipped(kind: str, root: Path, reason: str, where: str) -> None:
    """The two good records are read, the odd one is told; strict refuses it by name."""
    source = opened(kind, root)
    assert len(list(source.evaluation())) == 2
    assert {source.next().id for _ in range(4)} == {example.id for example in source.evaluation()}
    assert source.skipped.counts == {reason: 1}
    assert where in source.skipped.names[reason][0]
    assert source.skipped.names[reason][0].isprintable()
    with pytest.raises(ValueError, match=rf"^{kind}/.*: {reason}$") as caught:
        opened(kind, root, strict=True)
    assert where in str(caught.value)


def vqa_files(root: Path, question: Any = None, annotation: Any = None) -> None:
    questions: list[Any] = [{"image_id": i, "question": "what?", "question_id": i} for i in range(3)]
    answers = [{"answer": "x"}] * 10
    annotations: list[Any] = [
        {"question_id": i, "answer_type": "other", "answers": answers} for i in range(3)
    ]
    if question is not None:
        questions[1] = question
    if annotation is not None:
        annotations[1] = annotation
    put(root / "v2_OpenEnded_mscoco_train2014_questions.json", {"questions": questions})
    put(root / "v2_mscoco_train2014_annotations.json", {"annotations": annotations})
    pictures(root / "train2014", "COCO_train2014_{:012d}.jpg")


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ({"question": "what?", "question_id": 1}, "missing image_id"),
        ({"image_id": 1, "question_id": 1}, "missing question"),
        ({"image_id": 1, "question": None, "question_id": 1}, "missing question"),
        ({"image_id": 1, "question": HALF, "question_id": 1}, "bad text"),
        ({"image_id": "a", "question": "what?", "question_id": 1}, "bad image_id"),
        ({"image_id": 1, "question": "what?"}, "missing question_id"),
        ({"image_id": 1, "question": "what?", "question_id": [1]}, "missing question_id"),
        ([1], "missing question_id"),
    ],
)
def test_odd_vqa_questions(question: Any, reason: str, tmp_path: Path) -> None:
    vqa_files(tmp_path, question)
    check_skipped("vqav2", tmp_path, reason, "train2014_questions.json: questions[1]")


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ({"question_id": 1, "answers": []}, "question without answers"),
        ({"question_id": 1}, "question without answers"),
        ({"question_id": 1, "answers": [{"answer": "x"}, {}]}, "missing answer"),
        ({"question_id": 7, "answers": [{"answer": "x"}]}, "question without annotation"),
    ],
)
def test_odd_vqa_answers(annotation: Any, reason: str, tmp_path: Path) -> None:
    vqa_files(tmp_path, annotation=annotation)
    check_skipped("vqav2", tmp_path, reason, "questions[1]")


@pytest.mark.parametrize("count", [1, 9, 11])
def test_vqa_questions_without_ten_answers_are_trained_on_and_not_scored(count: int, tmp_path: Path) -> None:
    vqa_files(tmp_path, annotation={"question_id": 1, "answers": [{"answer": "x"}] * count})
    source = opened("vqav2", tmp_path, strict=True)
    assert {source.next().id for _ in range(3)} == {"0", "1", "2"}
    with pytest.raises(ValueError, match=r"^vqav2/questions: question 1: not 10 answers$"):
        list(source.evaluation())
    source = opened("vqav2", tmp_path)
    assert [example.id for example in source.evaluation()] == ["0", "2"]
    assert source.skipped.names == {"not 10 answers": ["question 1"]}


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"imageId": "1", "question": "q?"}, "missing answer"),
        ({"imageId": "1", "question": "q?", "answer": None}, "missing answer"),
        ({"question": "q?", "answer": "no"}, "missing imageId"),
        ({"imageId": "../1", "question": "q?", "answer": "no"}, "bad file name"),
        ({"imageId": "", "question": "q?", "answer": "no"}, "bad file name"),
        ({"imageId": "1\0", "question": "q?", "answer": "no"}, "bad file name"),
        ("text", "missing imageId"),
    ],
)
def test_odd_gqa_questions(entry: Any, reason: str, tmp_path: Path) -> None:
    good = {str(i): {"imageId": str(i), "question": "q?", "answer": "yes"} for i in (0, 2)}
    put(tmp_path / "train_balanced_questions.json", {"0": good["0"], "77": entry, "2": good["2"]})
    pictures(tmp_path / "images", "{}.jpg")
    check_skipped("gqa", tmp_path, reason, "train_balanced_questions.json: 77")


def test_a_gqa_name_that_no_file_can_have_is_a_missing_image(tmp_path: Path) -> None:
    entry = {"imageId": "1", "question": "q?", "answer": "yes"}
    put(tmp_path / "train_balanced_questions.json", {"0": entry, "1": {**entry, "imageId": "x" * 300}})
    pictures(tmp_path / "images", "{}.jpg")
    source = opened("gqa", tmp_path)
    assert [example.id for example in source.evaluation()] == ["0"]
    assert source.skipped.counts == {"missing image": 1}


LINE = {"Flikr30kID": "1.jpg", "sentence2": "s", "gold_label": "neutral", "pairID": "p"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"sentence2": "caf\xe9"}', "bad text"),
        (json.dumps({**LINE, "Flikr30kID": "a/b"}).encode(), "bad file name"),
        (json.dumps({**LINE, "sentence2": None}).encode(), "missing sentence2"),
        (json.dumps({**LINE, "sentence2": HALF}).encode(), "bad text"),
        (json.dumps({**LINE, "gold_label": ["neutral"]}).encode(), "missing gold_label"),
        (b"[1]", "missing Flikr30kID"),
        (b"1" * 5000, "bad JSON line"),
        (b"[" * 100_000, "bad JSON line"),
    ],
)
def test_odd_snli_ve_lines(line: bytes, reason: str, tmp_path: Path) -> None:
    good = [json.dumps({**LINE, "pairID": name}).encode() for name in ("a", "b")]
    put(tmp_path / "snli_ve_train.jsonl", b"\n".join([good[0], line, good[1], b""]))
    pictures(tmp_path / "flickr30k_images", "{}.jpg")
    check_skipped("snli_ve", tmp_path, reason, "snli_ve_train.jsonl:2")


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_snli_ve_lines_end_at_line_feeds_only(mark: str, end: str, tmp_path: Path) -> None:
    rows = [{**LINE, "sentence2": f"a{mark}b", "pairID": None}, {**LINE, "pairID": None}]
    text = end.join(json.dumps(row, ensure_ascii=False) for row in rows) + end
    put(tmp_path / "snli_ve_train.jsonl", text.encode())
    pictures(tmp_path / "flickr30k_images", "{}.jpg")
    found = list(opened("snli_ve", tmp_path, strict=True).evaluation())
    assert [example.prompt for example in found] == [f"does it follow: a{mark}b", "does it follow: s"]
    assert [example.id for example in found] == ["1", "2"]


@pytest.mark.parametrize("task", CAPTION_TASKS)
@pytest.mark.parametrize(
    ("caption", "reason"),
    [(" \n", "empty caption"), (None, "missing caption"), (HALF, "bad text")],
)
def test_odd_coco_captions(caption: Any, reason: str, task: str, tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)]
    annotations = [{"image_id": i, "id": i, "caption": f"thing {i} seen"} for i in range(3)]
    annotations[1]["caption"] = caption
    put(tmp_path / "captions_train2014.json", {"images": images, "annotations": annotations})
    pictures(tmp_path / "train2014", "{}.jpg")
    check_skipped("coco_captions", tmp_path, reason, "captions_train2014.json: annotations[1]")
    source = open_source(SourceSpec.parse(f"coco_captions:{tmp_path},task={task}"), "train")
    assert {source.next().id for _ in range(30)} == {"0", "2"}


def test_odd_coco_images(tmp_path: Path) -> None:
    images: list[Any] = [{"id": 0, "file_name": "0.jpg"}, {"id": 1}, [], {"id": 3, "file_name": "\0"}]
    annotations = [{"image_id": i, "id": i, "caption": "a thing"} for i in range(2)]
    put(tmp_path / "captions_train2014.json", {"images": images, "annotations": annotations})
    pictures(tmp_path / "train2014", "{}.jpg")
    source = opened("coco_captions", tmp_path)
    assert [example.id for example in source.evaluation()] == ["0"]
    counts = {"missing file_name": 2, "bad file name": 1, "caption without image": 1}
    assert source.skipped.counts == counts


@pytest.mark.parametrize("task", CAPTION_TASKS)
@pytest.mark.parametrize(
    ("row", "reason"),
    [(b" \thttp://b", "empty caption"), (b"caf\xe9\thttp://b", "bad text"), (b"", "bad row")],
)
def test_odd_rows_keep_the_numbers_of_the_others(row: bytes, reason: str, task: str, tmp_path: Path) -> None:
    put(tmp_path / "train.tsv", b"a dog\thttp://a\n" + row + b"\nhttp://c\ta cat\n")
    pictures(tmp_path / "train", "{:09d}.jpg")
    check_skipped("cc", tmp_path, reason, "train.tsv:2")
    source = open_source(SourceSpec.parse(f"cc:{tmp_path},task={task}"), "train")
    assert {source.next().id for _ in range(30)} == {"0", "2"}


def test_a_carriage_return_in_a_caption_ends_no_row(tmp_path: Path) -> None:
    put(tmp_path / "train.tsv", b"a\rdog\thttp://a\r\nhttp://c\ta cat\r\n")
    pictures(tmp_path / "train", "{:09d}.jpg")
    found = [(example.id, example.answer.split()) for example in opened("cc", tmp_path).evaluation()]
    assert found == [("0", ["a", "dog"]), ("1", ["a", "cat"])]


def test_a_long_caption_is_a_caption(tmp_path: Path) -> None:
    words = "word " * 40_000  # more than the csv module takes for a cell
    put(tmp_path / "train.tsv", f"{words}\thttp://a\n".encode())
    pictures(tmp_path / "train", "{:09d}.jpg")
    assert [example.answer for example in opened("cc", tmp_path).evaluation()] == [words]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "expected a JSON object, got list"),
        (b"{", "expected JSON, got Expecting"),
        (b'{"a": "caf\xe9"}', "expected JSON, got 'utf-8' codec can't decode"),
    ],
)
def test_an_odd_file_is_named(content: Any, message: str, tmp_path: Path) -> None:
    files = {
        "coco_captions": "captions_train2014.json",
        "gqa": "train_balanced_questions.json",
        "vqav2": "v2_OpenEnded_mscoco_train2014_questions.json",
    }
    assert set(files) < set(KINDS)
    for kind, name in files.items():
        put(tmp_path / name, content)
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            opened(kind, tmp_path)


def test_a_file_without_its_list_or_without_a_good_record_is_named(tmp_path: Path) -> None:
    put(tmp_path / "captions_train2014.json", {"images": []})
    with pytest.raises(ValueError, match=r"train2014\.json: expected a list 'annotations', got NoneType"):
        opened("coco_captions", tmp_path)
    put(tmp_path / "train_balanced_questions.json", {"1": {"imageId": "../x", "question": "", "answer": ""}})
    with pytest.raises(
        ValueError, match=r"^gqa/questions: expected at least one example, got none \(1 skipped: .*: bad file"
    ):
        opened("gqa", tmp_path)
