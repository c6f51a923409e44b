"""Published formats, written here with real JPEG files: reading, resuming, ranks, whatever can be broken."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="the extra 'train' is not installed")
pytest.importorskip("webdataset", reason="the extra 'train' is not installed")
pytest.importorskip("sklearn", reason="scikit-learn, which ships photographs, is not installed")

from PIL import Image
from sklearn.datasets import load_sample_images

from jair.data.collate import Collator, flipped, swap_sides
from jair.data.images import to_pixels
from jair.data.sources import Source, SourceSpec, open_source
from jair.data.tasks import make
from jair.data.tokenizers import bytes_tokenizer, load_tokenizer, train_tokenizer

COUNT = 7


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    """JPEG files of parts of photographs, no two alike."""
    made = []
    for i in range(COUNT):
        whole = load_sample_images().images[i % 2]
        buffer = io.BytesIO()
        Image.fromarray(whole[20 * i : 20 * i + 60, 30 * i : 30 * i + 80]).save(buffer, "JPEG", quality=95)
        made.append(buffer.getvalue())
    return made


def put(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def vqav2(root: Path, photos: list[bytes]) -> str:
    questions = [{"image_id": i, "question": f"what is {i}?", "question_id": 100 + i} for i in range(COUNT)]
    annotations = [
        {
            "question_id": 100 + i,
            "image_id": i,
            "question_type": "what",
            "answer_type": "other",
            "multiple_choice_answer": f"thing {i}",
            "answers": [
                {"answer": f"thing {i}", "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)
            ],
        }
        for i in range(COUNT)
    ]
    put(root / "v2_OpenEnded_mscoco_train2014_questions.json", json.dumps({"questions": questions}))
    put(root / "v2_mscoco_train2014_annotations.json", json.dumps({"annotations": annotations}))
    for i, photo in enumerate(photos):
        put(root / "train2014" / f"COCO_train2014_{i:012d}.jpg", photo)
    return "vqav2"


def gqa(root: Path, photos: list[bytes]) -> str:
    questions: dict[str, Any] = {
        str(100 + i): {
            "imageId": str(i),
            "question": f"what is {i}?",
            "answer": f"thing {i}",
            "fullAnswer": f"It is thing {i}.",
            "isBalanced": True,
            "types": {"structural": "query"},
        }
        for i in range(COUNT)
    }
    questions["999"] = {**questions["100"], "isBalanced": False}
    put(root / "train_balanced_questions.json", json.dumps(questions))
    for i, photo in enumerate(photos):
        put(root / "images" / f"{i}.jpg", photo)
    return "gqa"


def snli_ve(root: Path, photos: list[bytes]) -> str:
    rows = [
        {"Flikr30kID": str(i), "sentence2": f"what is {i}", "gold_label": "neutral", "pairID": str(100 + i)}
        for i in range(COUNT)
    ]
    put(root / "snli_ve_train.jsonl", "\n".join(map(json.dumps, rows)) + "\n")
    for i, photo in enumerate(photos):
        put(root / "flickr30k_images" / f"{i}.jpg", photo)
    return "snli_ve"


def coco_captions(root: Path, photos: list[bytes]) -> str:
    images = [{"id": 100 + i, "file_name": f"COCO_train2014_{i:012d}.jpg"} for i in range(COUNT)]
    captions = [
        {"image_id": 100 + i, "id": 10 * i + n, "caption": f"thing {i}  seen\n{n} times"}
        for i in range(COUNT)
        for n in range(3)
    ]
    put(root / "captions_train2014.json", json.dumps({"images": images, "annotations": captions}))
    for i, photo in enumerate(photos):
        put(root / "train2014" / f"COCO_train2014_{i:012d}.jpg", photo)
    return "coco_captions"


def cc(root: Path, photos: list[bytes]) -> str:
    rows = [
        f"thing {i} seen\thttp://x/{i}" if i % 2 else f"https://x/{i}\tthing {i} seen" for i in range(COUNT)
    ]
    put(root / "train.tsv", "\n".join(rows) + "\n")
    for i, photo in enumerate(photos):
        put(root / "train" / f"{i:09d}.jpg", photo)
    return "cc"


def shard(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def webdataset(root: Path, photos: list[bytes]) -> str:
    for number, indices in enumerate(((0, 1, 2), (3, 4), (5, 6))):
        members = []
        for i in indices:
            key = f"{number:05d}{i:04d}"
            members += [(f"{key}.jpg", photos[i]), (f"{key}.txt", f"thing {i} seen".encode())]
            members += [(f"{key}.json", json.dumps({"caption": f"thing {i} seen"}).encode())]
        shard(root / f"{number:05d}.tar", members)
    return "webdataset"


FORMATS = [vqav2, gqa, snli_ve, coco_captions, cc, webdataset]
Writer = Callable[[Path, list[bytes]], str]


def opened(writer: Writer, root: Path, photos: list[bytes], **options: Any) -> Source:
    kind = writer(root, photos)
    return open_source(SourceSpec.parse(f"{kind}:{root}"), "train", **{"seed": 1, **options})


def key(example: Any) -> tuple[Any, ...]:
    return example.id, example.prompt, example.answer, example.answers, example.image.tobytes()


@pytest.mark.parametrize("writer", FORMATS)
def test_every_example_is_read(writer: Writer, tmp_path: Path, photos: list[bytes]) -> None:
    source = opened(writer, tmp_path, photos)
    found = list(source.evaluation())
    assert len(found) == COUNT
    assert source.skipped.total == 0
    for i, example in enumerate(found):
        assert example.image.tobytes() == Image.open(io.BytesIO(photos[i])).convert("RGB").tobytes()
        assert example.answer in example.answers
        if writer in (vqav2, gqa):
            assert (example.id, example.prompt, example.answer) == (
                f"{100 + i}",
                f"what is {i}?",
                f"thing {i}",
            )
            assert example.group == {"vqav2": "other", "gqa": "query"}[source.name.split("/")[0]]
            assert len(example.answers) == (10 if writer is vqav2 else 1)
        elif writer is snli_ve:
            assert (example.prompt, example.answer) == (f"does it follow: what is {i}", "neutral")
        else:
            assert example.prompt == "describe the picture"
            assert example.answer.startswith(f"thing {i} seen")
    assert len(list(source.evaluation(3))) == 3
    metrics = {"vqav2": "vqa", "gqa": "exact", "snli_ve": "label"}
    assert source.metric == metrics.get(source.name.split("/")[0], "caption")


@pytest.mark.parametrize("writer", FORMATS)
def test_epochs_are_whole_and_differ(writer: Writer, tmp_path: Path, photos: list[bytes]) -> None:
    source = opened(writer, tmp_path, photos)
    epochs = [[source.next().image.tobytes() for _ in range(COUNT)] for _ in range(4)]
    assert all(len(set(epoch)) == COUNT for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize("writer", FORMATS)
def test_resumed_streams_are_unbroken_ones(writer: Writer, tmp_path: Path, photos: list[bytes]) -> None:
    expected = [
        key(example) for s in [opened(writer, tmp_path, photos)] for example in (s.next() for _ in range(16))
    ]
    source = opened(writer, tmp_path, photos)
    got = []
    for _ in range(16):  # opened anew for every example
        got.append(key(source.next()))
        state = json.loads(json.dumps(source.state_dict()))
        source = opened(writer, tmp_path, photos)
        source.load_state_dict(state)
    assert got == expected


@pytest.mark.parametrize("writer", FORMATS)
def test_ranks_share_an_epoch(writer: Writer, tmp_path: Path, photos: list[bytes]) -> None:
    seen: list[set[bytes]] = []
    for rank in range(2):
        source = opened(writer, tmp_path, photos, rank=rank, world_size=2)
        seen.append(set())
        example = source.next()
        while source.state_dict()["epoch"] == 0:
            seen[rank].add(example.image.tobytes())
            example = source.next()
    assert len(seen[0] | seen[1]) == COUNT
    assert len(seen[0] & seen[1]) == (0 if writer is webdataset else 1)  # seven are not two equal shares


def spoil(kind: str, root: Path) -> list[str]:
    """Break what a format can have broken; the reasons that must be told."""
    if kind == "webdataset":
        data = (root / "00001.tar").read_bytes()
        (root / "00001.tar").write_bytes(data[:1500])
        members = [
            ("a.jpg", b"no picture"),
            ("a.txt", b"text"),
            ("b.txt", b"text"),
            ("c.jpg", b"x"),
            ("c.txt", b" "),
        ]
        shard(root / "00003.tar", members)
        return ["broken shard", "broken image", "missing image", "empty caption"]
    pictures = sorted(root.rglob("*.jpg"))
    pictures[0].unlink()
    pictures[1].write_bytes(pictures[1].read_bytes()[:300])
    pictures[2].write_bytes(b"")
    reasons = ["missing image", "broken image"]
    if kind == "snli_ve":
        with (root / "snli_ve_train.jsonl").open("a") as file:
            file.write('{"Flikr30kID": "1"\n{"sentence2": "x"}\n')
            file.write('{"Flikr30kID": "1", "sentence2": "x", "gold_label": "-"}\n')
        reasons += ["bad JSON line", "missing Flikr30kID", "example without a label"]
    if kind == "cc":
        with (root / "train.tsv").open("a") as file:
            file.write("one cell\nno\turl\n")
        reasons += ["bad row"]
    return reasons


@pytest.mark.parametrize("writer", FORMATS)
def test_what_is_broken_is_counted_named_and_skipped(
    writer: Writer, tmp_path: Path, photos: list[bytes]
) -> None:
    kind = writer(tmp_path, photos)
    reasons = spoil(kind, tmp_path)
    spec = SourceSpec.parse(f"{kind}:{tmp_path}")
    source = open_source(spec, "train")
    good = list(source.evaluation())
    assert len(good) == (5 if kind == "webdataset" else 4)
    assert set(source.skipped.counts) == set(reasons)
    assert all(source.skipped.names[reason] for reason in reasons)
    streamed = open_source(spec, "train")
    ids = {streamed.next().id for _ in range(3 * COUNT)}
    assert ids == {example.id for example in good}
    with pytest.raises(ValueError, match=f"{kind}/"):
        list(open_source(spec, "train", strict=True).evaluation())


@pytest.mark.parametrize("writer", FORMATS)
def test_a_source_without_a_good_example_says_so(writer: Writer, tmp_path: Path, photos: list[bytes]) -> None:
    kind = writer(tmp_path, [b"broken"] * COUNT)
    source = open_source(SourceSpec.parse(f"{kind}:{tmp_path}"), "train")
    message = f"{kind}/.*: expected examples that can be read, got none in a whole epoch: .*: broken image"
    with pytest.raises(ValueError, match=message):
        source.next()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("photos:x", "source: expected 'scenes' or .*, got 'photos'"),
        ("gqa", "source: expected a path after 'gqa', got ''"),
        ("scenes:x", "source: expected no path after 'scenes', got 'x'"),
        ("gqa:x,task=caption", "task: expected 'questions', got 'caption'"),
        ("gqa:x,tasks=caption", "source: expected options task=... or weight=..., got 'tasks=caption'"),
        ("gqa:x,weight=a", "weight: expected a number, got 'a'"),
        ("gqa:x,weight=0", "weight: expected a finite number > 0, got 0"),
    ],
)
def test_specs_that_do_not_fit(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SourceSpec.parse(text)


def test_missing_files_and_splits(tmp_path: Path) -> None:
    for kind in ("vqav2", "gqa", "snli_ve", "coco_captions", "cc"):
        with pytest.raises(OSError, match="No such file"):
            open_source(SourceSpec.parse(f"{kind}:{tmp_path}"), "train")
        with pytest.raises(ValueError, match=f"split: expected .* of {kind}, got 'dev'"):
            open_source(SourceSpec.parse(f"{kind}:{tmp_path}"), "dev")
    with pytest.raises(ValueError, match="expected shards"):
        open_source(SourceSpec.parse(f"webdataset:{tmp_path}"), "train")
    put(tmp_path / "train_balanced_questions.json", "{")
    with pytest.raises(ValueError, match=r"train_balanced_questions\.json: expected JSON"):
        open_source(SourceSpec.parse(f"gqa:{tmp_path}"), "train")


def test_a_batch(tmp_path: Path, photos: list[bytes]) -> None:
    source = opened(gqa, tmp_path, photos)
    examples = list(source.evaluation(2))
    tokenizer = bytes_tokenizer()
    batch = Collator(tokenizer, 32, 12, 4)(examples)
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert torch.equal(batch["pixel_values"][1], to_pixels(examples[1].image, 32))
    words = [byte + 3 for byte in b"what is 0?"]
    assert batch["input_ids"][0].tolist() == [*words, 1]
    assert batch["attention_mask"].all()
    assert batch["labels"][0].tolist() == [byte + 3 for byte in b"thi"] + [1]  # cut, and ended
    short = Collator(tokenizer, 32, 12, 9)(
        [examples[0], type(examples[0])(examples[0].image, "a", "b", ("b",), "")]
    )
    assert short["attention_mask"].sum(1).tolist() == [11, 2]
    assert short["labels"][1].tolist() == [98 + 3, 1, *[-100] * 6]
    with pytest.raises(ValueError, match="examples: expected at least one, got none"):
        Collator(tokenizer, 32, 12, 4)([])


def test_augmentation_is_a_function_of_its_seed(tmp_path: Path, photos: list[bytes]) -> None:
    examples = list(opened(gqa, tmp_path, photos).evaluation(4))
    collate = Collator(bytes_tokenizer(), 32, 64, 16)
    one, same, other = (collate(examples, seed)["pixel_values"] for seed in (5, 5, 6))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    plain = Collator(bytes_tokenizer(), 32, 64, 16, train=False)(examples, 5)["pixel_values"]
    assert torch.equal(plain, collate(examples)["pixel_values"])


def test_a_mirror_image_has_other_words() -> None:
    image = Image.fromarray(np.arange(27, dtype=np.uint8).reshape(3, 3, 3))
    mirrored, prompt, answer = flipped(image, "Left of the bright copyright?", "the right one")
    assert np.array_equal(np.asarray(mirrored), np.asarray(image)[:, ::-1])
    assert (prompt, answer) == ("Right of the bright copyright?", "the left one")
    assert swap_sides("Left, right, LEFT") == "Right, left, RIGHT"
    assert (
        swap_sides("the leftmost cup, a right-hand turn, leftover")
        == "the rightmost cup, a left-hand turn, leftover"
    )


def test_tasks() -> None:
    from random import Random

    captions = ["a red cat on a mat"]
    for seed in range(20):
        prompt, answer = make("completion", captions, "a dog", [], Random(seed))
        assert f"{prompt.removeprefix('complete: ')} {answer}" == captions[0]
        prompt, answer = make("masked", captions, "a dog", [], Random(seed))
        assert prompt.removeprefix("fill in: ").replace("_", answer) == captions[0]
        prompt, answer = make("matching", captions, "a dog", [], Random(seed))
        assert (captions[0] in prompt) == (answer == "yes")
        assert ("a dog" in prompt) == (answer == "no")
    assert make("objects", captions, "a dog", ["cat", "mat"], Random(0)) == (
        "what is in the picture?",
        "cat, mat",
    )


def test_false_captions_are_those_of_similar_pictures(tmp_path: Path, photos: list[bytes]) -> None:
    kind = coco_captions(tmp_path, photos)
    source = open_source(SourceSpec.parse(f"{kind}:{tmp_path},task=matching"), "train")
    asked = [source.next() for _ in range(60)]
    for example in asked:
        own = f"thing {int(example.id) - 100} seen"
        assert (own in example.prompt) == (example.answer == "yes")
    assert 15 < sum(example.answer == "yes" for example in asked) < 45


def test_a_tokenizer_of_the_data_is_found_beside_the_model(tmp_path: Path) -> None:
    made = train_tokenizer(
        ["what colour is the small cat?", "what shape is the small cat?"] * 20, vocab_size=300
    )
    assert (made.pad_token_id, made.eos_token_id) == (0, 1)
    made.save_pretrained(tmp_path)
    words = load_tokenizer(tmp_path)("what colour is the cat?", add_special_tokens=False).input_ids
    assert len(words) < 12
    assert load_tokenizer(tmp_path).decode(words).strip() == "what colour is the cat?"
    other = "Où sont les 42 chats ?"  # not a byte of it is lost
    assert made.decode(made(other, add_special_tokens=False).input_ids).strip() == other
    assert len(train_tokenizer([], vocab_size=258)) == 258
    with pytest.raises(ValueError, match=r"^vocab_size: expected an int >= 258, got 257$"):
        train_tokenizer([], vocab_size=257)
