"""Generation: cache, beams, sampling, the end of a sequence, batches of different lengths."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from test_jair_model import batch, small

from jair import JAIR, GraphedGenerate, generation

pytest.importorskip("transformers", reason="the extra 'models' is not installed")
EOS = 1


def lively(**changes: object) -> JAIR:
    """A model whose answers differ from sample to sample and that sometimes ends one."""
    model = small(**changes)
    with torch.no_grad():
        model.decoder.norm.weight.normal_(std=3)  # else the last word, whose embedding is the head, repeats
        for layer in model.decoder.layers:
            layer.cross_out.weight.mul_(6)
    return model


def greedy_by_hand(model: JAIR, pixels: torch.Tensor, words: torch.Tensor, steps: int) -> list[list[int]]:
    """Each sample alone, the whole forward pass for every word."""
    answers = []
    for i in range(len(words)):
        said = torch.zeros(1, 1, dtype=torch.long)
        kept = words[i : i + 1, words[i] != 0]
        while said.shape[1] <= steps and said[0, -1] != EOS:
            logits = model(pixels[i : i + 1], kept, decoder_input_ids=said).logits[:, -1]
            said = torch.cat([said, logits.argmax(-1, keepdim=True)], 1)
        answers.append(said[0].tolist())
    longest = max(map(len, answers))
    return [answer + [0] * (longest - len(answer)) for answer in answers]


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("fusion", ["joint_adaptive", "concat"])
def test_greedy_is_the_forward_pass_word_by_word(fusion: str, use_cache: bool) -> None:
    model = lively(fusion=fusion)
    pixels, words, _ = batch(6)
    words[1, 4:], words[2, 1:], words[3, :3] = 0, 0, 0
    expected = greedy_by_hand(model, pixels, words, 8)
    assert model.generate(pixels, words, max_new_tokens=8, use_cache=use_cache).tolist() == expected
    assert len({tuple(answer) for answer in expected}) > 1


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_model_in_training_answers_as_in_evaluation_and_stays_as_it_is(num_beams: int) -> None:
    model = lively()
    pixels, words, _ = batch(3)
    expected = model.generate(pixels, words, num_beams=num_beams)
    model.train()
    model.image_encoder.backbone.embedder.eval()  # as where it is frozen
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(model.generate(pixels, words, num_beams=num_beams), expected)
    with pytest.raises(ValueError, match="pixel_values: expected shape"):
        model.generate(pixels[:2], words, num_beams=num_beams)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_after_the_end_comes_padding_and_all_ended_stops() -> None:
    model = lively()
    pixels, words, _ = batch(3)
    script = iter([[5, 1, 7], [1, 9, 8], [4, 4, 1], [3, 3, 3]])

    def choose(_logits: torch.Tensor) -> torch.Tensor:
        return torch.tensor(next(script))

    next_word = generation.NextWord(model, *model.encode(pixels, words), 8, beams=1, use_cache=True)
    start = torch.zeros(3, 1, dtype=torch.long)
    answers = generation.extend(next_word, start, 8, choose, pad=0, eos=EOS)
    assert answers.tolist() == [[0, 5, 1, 0], [0, 1, 0, 0], [0, 7, 8, 1]]


def test_cached_logits_equal_uncached() -> None:
    model = lively()
    pixels, words, answers = batch()
    tokens, mask = model.encode(pixels, words)
    said = torch.cat([torch.zeros(3, 1, dtype=torch.long), answers], 1)
    whole = model(pixels, words, decoder_input_ids=said).logits.float()
    cached = generation.NextWord(model, tokens, mask, 6, beams=1, use_cache=True)
    for t in range(6):
        torch.testing.assert_close(cached.logits(said[:, : t + 1]), whole[:, t], rtol=1e-6, atol=1e-6)


def test_one_beam_is_greedy() -> None:
    model = lively()
    pixels, words, _ = batch(4)
    next_word = generation.NextWord(model, *model.encode(pixels, words), 8, beams=1, use_cache=True)
    beam = generation.beam_search(next_word, torch.zeros(4, 1, dtype=torch.long), 8, 1, 1.0, pad=0, eos=EOS)
    assert torch.equal(beam, model.generate(pixels, words, max_new_tokens=8))


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_wide_beam_finds_the_best_of_all(penalty: float, use_cache: bool) -> None:
    model = small(vocab_size=5)
    with torch.no_grad():
        model.embedding.weight.mul_(6)
    pixels, words = batch(3)[0], torch.randint(2, 5, (3, 6))
    got = model.generate(
        pixels, words, max_new_tokens=3, num_beams=130, length_penalty=penalty, use_cache=use_cache
    )
    best: list[tuple[float, list[int]]] = [(float("-inf"), [])] * 3
    for answer in itertools.product(range(5), repeat=3):
        ended = answer.index(EOS) + 1 if EOS in answer else 3
        if any(answer[ended:]):
            continue  # after the end there is padding alone
        said = torch.tensor([[0, *answer]]).repeat(3, 1)
        log_p = model(pixels, words, decoder_input_ids=said[:, :-1]).logits.log_softmax(-1)
        scores = log_p.gather(2, said[:, 1:, None])[:, :ended, 0].sum(1) / ended**penalty
        best = [max(old, (s, list(answer))) for old, s in zip(best, scores.tolist(), strict=True)]
    width = got.shape[1] - 1
    assert got[:, 1:].tolist() == [answer[:width] for _, answer in best]
    assert not any(any(answer[width:]) for _, answer in best)


def test_beam_with_padding_is_each_sample_alone() -> None:
    model = lively(fusion="cross_attention")
    pixels, words, _ = batch(3)
    words[1, 4:], words[2, :5] = 0, 0
    together = model.generate(pixels, words, max_new_tokens=6, num_beams=3)
    for i in range(3):
        kept = words[i : i + 1, words[i] != 0]
        alone = model.generate(pixels[i : i + 1], kept, max_new_tokens=6, num_beams=3)[0].tolist()
        assert together[i].tolist() == alone + [0] * (together.shape[1] - len(alone))


def test_sampling_draws_from_the_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(20000, 1)
    generator = torch.Generator().manual_seed(0)

    def shares(temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0) -> torch.Tensor:
        words = generation.sampler(temperature, top_k, top_p, generator)(logits)
        return torch.bincount(words, minlength=4) / len(words)

    p = logits[0].softmax(0)
    torch.testing.assert_close(shares(), p, rtol=0, atol=0.015)
    assert shares(temperature=1e-310).max() == 1
    torch.testing.assert_close(shares(temperature=3.0), (logits[0] / 3).softmax(0), rtol=0, atol=0.015)
    of_two = p * torch.tensor([1, 1, 0, 0]) / p[:2].sum()
    torch.testing.assert_close(shares(top_k=2), of_two, rtol=0, atol=0.015)
    torch.testing.assert_close(shares(top_p=float(p[0]) + 0.01), of_two, rtol=0, atol=0.015)
    assert shares(top_p=0.01).tolist() == [1, 0, 0, 0]


def test_sampling_repeats_with_its_generator() -> None:
    model = lively()
    pixels, words, _ = batch(4)
    options = {"max_new_tokens": 8, "do_sample": True, "temperature": 5.0}
    first, second, other = (
        model.generate(pixels, words, **options, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert first.shape != other.shape or not torch.equal(first, other)


@pytest.mark.parametrize("fusion", ["joint_adaptive", "concat"])
def test_steps_of_a_recording_are_generate(fusion: str) -> None:
    model = lively(fusion=fusion)
    pixels, words, _ = batch(2)
    answer = GraphedGenerate(model, batch_size=2, max_new_tokens=5)
    for length in (6, 3):  # used again, with shorter texts
        expected = model.generate(pixels, words[:, :length], max_new_tokens=5)
        assert torch.equal(answer(pixels, words[:, :length]), expected)
    model.config = dataclasses.replace(model.config, eos_token_id=int(expected[0, 2]))
    expected = model.generate(pixels, words[:, :3], max_new_tokens=5)
    assert torch.equal(answer(pixels, words[:, :3]), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: GraphedGenerate(m, batch_size=0, max_new_tokens=8),
            "batch_size: expected an int >= 1, got 0",
        ),
        (
            lambda m: GraphedGenerate(m, text_length=99, max_new_tokens=8),
            "text_length: expected at most max_text_length = ",
        ),
        (lambda m: GraphedGenerate(m, max_new_tokens=99), "max_new_tokens: expected at most max_target_l"),
        (lambda m: GraphedGenerate(m.train()), "model: expected one in evaluation mode"),
        (
            lambda m: GraphedGenerate(m, max_new_tokens=8)(*batch(2)[:2]),
            "input_ids: expected shape .1, 1 to 10.",
        ),
    ],
)
def test_recordings_that_do_not_fit(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(small())


def test_a_recording_casts_nothing() -> None:
    pixels, words, _ = batch(1)
    mask, answer = words != 0, GraphedGenerate(small(), max_new_tokens=2)
    for arguments, message in (
        ((pixels.half(), words, mask), "pixel_values: expected dtype float64 like the model's weights"),
        ((pixels, words.float(), mask), "input_ids: expected dtype int64 or int32, got float32"),
        ((pixels, words, mask.tolist()), "attention_mask: expected a tensor or None, got list"),
    ):
        with pytest.raises(TypeError, match=message):
            answer(*arguments)
    assert torch.equal(answer(pixels, words.int(), mask), answer(pixels, words, mask))
