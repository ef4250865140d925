"""Encoder-decoders explained as they are used: a source, and what has been written so far."""

import json

import pytest
import torch
from byte_tokenizers import byte_level
from state import snapshot
from tiny_models import build

from captum_lrpx import (
    ALTILogit,
    AttnLRPx,
    DecoderLogits,
    Explanation,
    LLMRelevance,
    LRPx,
    Target,
    Token,
    TokenLogits,
    ask_batch,
    explain,
    ledger,
)
from captum_lrpx.cli import main

SOURCE, WRITTEN = "the keys to the capital", "the keys"
SEQUENCES = ("bart", "m2m_100", "marian", "pegasus", "t5")
EXACT = {"rtol": 0.0, "atol": 1e-10}


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level()


def sequence(kind, tokenizer, **options):
    return build(
        kind,
        "SEQ_TO_SEQ_CAUSAL_LM",
        vocab_size=len(tokenizer),
        max_position_embeddings=128,
        decoder_start_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        **options,
    )


@pytest.fixture(scope="module")
def t5(tokenizer):
    return sequence("t5", tokenizer, dtype=torch.float64, biases=False)


def logits(model, tokenizer, written):
    source = torch.tensor([tokenizer(SOURCE).input_ids])
    decoded = torch.tensor([[0, *tokenizer(written).input_ids]])
    return model(input_ids=source, decoder_input_ids=decoded).logits[0, -1].detach()


# explain() ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lrpx", "attnlrpx", "altilogit"])
@pytest.mark.parametrize("kind", SEQUENCES)
def test_a_sequence_is_explained_by_source_and_what_has_been_written(kind, method, tokenizer):
    model = sequence(kind, tokenizer)
    before = snapshot(model)
    found = explain(model, tokenizer, SOURCE, "are", written=WRITTEN, method=method)
    assert snapshot(model) == before
    assert found.certificate.holds
    assert found.text == f"{SOURCE}\n<|start|>{WRITTEN}"
    assert found.labels == (*SOURCE.split(), "<|start|>", *WRITTEN.split())
    assert found.position == len(found.tokens) - 1
    token = tokenizer.convert_tokens_to_ids("Ġare")
    expected = logits(model, tokenizer, WRITTEN)
    assert found.value == pytest.approx(float(expected[token]), abs=1e-5)
    assert found.rank == 1 + int((expected > expected[token]).sum())
    assert list(found.sums) == ["source", "written"]
    assert sum(found.sums.values()) == pytest.approx(found.sum)
    assert found.sums["source"] == pytest.approx(sum(found.relevances[:5]))


def test_without_biases_both_sum_to_the_value(t5, tokenizer):
    found = explain(t5, tokenizer, SOURCE, "are", written=WRITTEN, method="lrpx")
    assert found.delta == pytest.approx(0.0, abs=1e-6)  # transformers sums norms in float32
    assert min(map(abs, found.sums.values())) > 1e-3


def test_altilogit_gives_the_contributions_of_its_class(t5, tokenizer):
    found = explain(t5, tokenizer, SOURCE, "are", written=WRITTEN, method="altilogit")
    source, written = (torch.tensor([found.ids[part.first : part.stop]]) for part in found.parts)
    target = tokenizer.convert_tokens_to_ids("Ġare")
    expected = ALTILogit(DecoderLogits(t5)).attribute((source, written), target=target)
    torch.testing.assert_close(
        torch.tensor([found.relevances], dtype=torch.float64), torch.cat(expected, 1), **EXACT
    )


def test_nothing_written_is_the_start_token(t5, tokenizer):
    found = explain(t5, tokenizer, SOURCE)
    assert found.labels == (*SOURCE.split(), "<|start|>")
    best = int(logits(t5, tokenizer, "").argmax())
    (standing,) = found.standings
    assert (standing.index, standing.rank) == (best, 1)
    assert found.target.startswith("logit of the predicted token")


def test_what_is_written_may_be_generated_or_ids(t5, tokenizer):
    made = t5.generate(
        torch.tensor([tokenizer(SOURCE).input_ids]), max_new_tokens=3, min_new_tokens=3,
        do_sample=False,
    )[0].tolist()  # fmt: skip
    found = explain(t5, tokenizer, SOURCE, written=3)
    assert list(found.ids[5:]) == made
    for ids in (made[1:], torch.tensor(made[1:]), torch.tensor([made[1:]])):
        again = explain(t5, tokenizer, SOURCE, written=ids)
        assert again.relevances == found.relevances


def test_targets_of_a_sequence(t5, tokenizer):
    expected = logits(t5, tokenizer, WRITTEN)
    are, to = tokenizer.convert_tokens_to_ids(["Ġare", "Ġto"])

    def value(target):
        return explain(t5, tokenizer, SOURCE, target, written=WRITTEN, certify=False).value

    close = {"abs": 1e-6}
    assert value(Target("are", contrast="to")) == pytest.approx(
        float(expected[are] - expected[to]), **close
    )
    assert value(Target(("are", Token("Ġto")))) == pytest.approx(
        float(expected[are] + expected[to]), **close
    )
    assert value(are) == pytest.approx(float(expected[are]), **close)
    assert value(Target("are", quantity="log_prob")) == pytest.approx(
        float(expected.log_softmax(-1)[are]), **close
    )
    assert value(Target(lambda rows: rows.logsumexp(-1))) == pytest.approx(
        float(expected.logsumexp(-1)), **close
    )


def test_a_record_of_several_inputs_keeps_them(t5, tokenizer, tmp_path):
    found = explain(t5, tokenizer, SOURCE, "are", written=WRITTEN)
    assert Explanation.from_json(found.to_json()) == found
    words = found.words()
    assert words.sums == pytest.approx(found.sums)
    assert (found - found).sums == {"source": 0.0, "written": 0.0}
    assert f"source {found.sums['source']:+.4f}   written" in str(found)
    assert f"source {found.sums['source']:+.4f}" in found.to_html(tmp_path / "page.html")
    plain = json.loads(found.to_json())
    for broken in ({"name": 3}, {"grid": [2, 2]}, {"first": "0"}):
        plain["parts"][0] = {**json.loads(found.to_json())["parts"][0], **broken}
        with pytest.raises(ValueError, match="not a stored explanation"):
            Explanation.from_json(json.dumps(plain))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": " "}, "empty"),
        ({"text": torch.tensor([5, 10_000])}, "does not know"),
        ({"written": [10_000]}, "does not know"),
        ({"written": -1}, "number of tokens"),
        ({"written": torch.tensor([[5], [6]])}, "one text is explained at a time"),
        ({"target": Target(span="keys")}, "single text"),
        ({"target": Target("are", position=2)}, "single text"),
        ({"truncate": True}, "single text"),
        ({"method": "input_x_gradient"}, "explains one text"),
    ],
)
def test_what_cannot_be_explained_is_refused(t5, tokenizer, options, message):
    given = {"text": SOURCE, "target": "are", **options}
    with pytest.raises(ValueError, match=message):
        explain(t5, tokenizer, given.pop("text"), given.pop("target"), **given)


def test_a_model_of_one_text_writes_at_its_end(loaded):
    with pytest.raises(ValueError, match="is no encoder-decoder"):
        explain(*loaded["sva-gpt2"], SOURCE, "are", written="the")


def test_the_command(tokenizer, tmp_path, capsys):
    model = sequence("t5", tokenizer)
    for each in (model, tokenizer):
        each.save_pretrained(tmp_path / "model")
    record = tmp_path / "record.json"
    arguments = ["explain", SOURCE, "--model", str(tmp_path / "model"), "--target", "are"]
    main([*arguments, "--written", WRITTEN, "--json", str(record)])
    assert "written" in capsys.readouterr().out
    found = Explanation.from_json(record)
    expected = explain(model, tokenizer, SOURCE, "are", written=WRITTEN)
    assert found.relevances == pytest.approx(expected.relevances, abs=1e-6)
    main([*arguments, "--write-first", "2", "--json", str(record)])
    assert len(Explanation.from_json(record).tokens) == 5 + 3


# Captum's way -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
def test_a_batch_with_padding_on_both_sides_is_its_rows(t5, method):
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(2, 90, (2, 6), generator=generator)
    written = torch.randint(2, 90, (2, 4), generator=generator)
    source_mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    written_mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    forward = DecoderLogits(t5)
    found = method(forward).attribute(
        (source, written), target=[3, 5], additional_forward_args=(source_mask, written_mask)
    )
    for row, target in enumerate([3, 5]):
        kept = source_mask[row] == 1, written_mask[row] == 1
        alone = method(forward).attribute(
            (source[row : row + 1, kept[0]], written[row : row + 1, kept[1]]), target=target
        )
        for each, one, real in zip(found, alone, kept, strict=True):
            torch.testing.assert_close(each[row, real], one[0], rtol=0, atol=1e-6)
            assert not each[row, ~real].any()


def test_a_row_of_nothing_but_padding_is_refused(t5):
    source, written = torch.tensor([[5, 6], [7, 8]]), torch.tensor([[0, 8], [0, 9]])
    arguments = (None, torch.tensor([[1, 1], [0, 0]]))
    with pytest.raises(ValueError, match="no real token"):
        LRPx(DecoderLogits(t5)).attribute(
            (source, written), target=4, additional_forward_args=arguments
        )


def test_one_input_of_several_is_the_same_as_both(t5):
    source, written = torch.tensor([[5, 6, 7]]), torch.tensor([[0, 8]])
    forward = DecoderLogits(t5)
    both = LRPx(forward).attribute((source, written), target=4)
    alone = LRPx(lambda ids: forward(ids, written), t5).attribute(source, target=4)
    torch.testing.assert_close(alone, both[0], rtol=0, atol=1e-6)
    book = ledger(LRPx(forward), (source, written), 4)
    assert book.closes(1e-5)


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_source_and_written_may_be_the_same_text(kind, tokenizer):
    model = sequence(kind, tokenizer)
    ids = torch.tensor([[5, 9, 14, 7]])
    forward = DecoderLogits(model)
    method = LRPx(forward)

    def embedded(source, written):
        return model(inputs_embeds=source, decoder_inputs_embeds=written).logits[:, -1]

    table = model.get_input_embeddings()
    scaled = [table(ids).detach(), table(ids).detach()]
    expected = LRPx(embedded, model).attribute(tuple(scaled), 3)
    for second in (ids, ids.clone()):
        found = method.attribute((ids, second), 3)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other.sum(-1))
    assert ALTILogit(forward).attribute((ids, ids), 3)[0].shape == ids.shape


def test_equal_inputs_that_are_embedded_as_copies_cannot_be_told_apart(t5):
    ids = torch.tensor([[5, 9, 14, 7]])

    def forward(source, written):
        return t5(input_ids=source + 0, decoder_input_ids=written + 0).logits[:, -1]

    with pytest.raises(ValueError, match="Inputs 1 and 2 hold the same token ids"):
        LRPx(forward, t5).attribute((ids, ids.clone()), 3)


def test_alti_logit_has_contributions_of_source_and_written(t5):
    source, written = torch.tensor([[5, 6, 7]]), torch.tensor([[0, 8]])
    masks = (torch.tensor([[1, 1, 1]]),)
    found = ALTILogit(DecoderLogits(t5)).attribute((source, written), 4, masks)

    def named(source, written):
        return t5(input_ids=source, decoder_input_ids=written).logits[:, -1]

    expected = ALTILogit(named, t5).attribute((source, written), target=4)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert ledger(ALTILogit(DecoderLogits(t5)), (source, written), 4).closes(1e-5)


def test_ways_that_end_at_an_encoder_decoder_name_the_one_that_does_not(t5, tokenizer):
    ids = torch.tensor([[5, 6, 7]])
    for attempt in (
        lambda: LLMRelevance(LRPx(t5), tokenizer),
        lambda: TokenLogits(t5)(ids),
        lambda: ask_batch(t5, tokenizer, [SOURCE], "are"),
    ):
        with pytest.raises(ValueError, match=r"is an encoder-decoder.*written=.*DecoderLogits"):
            attempt()
    with pytest.raises(ValueError, match=r"passed by position.*DecoderLogits"):
        LRPx(sequence("bart", tokenizer)).attribute((ids, ids), target=(-1, 4))


def test_errors_of_a_decoder(t5, loaded):
    forward = DecoderLogits(t5)
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(AssertionError, match="1 rows and the decoder's tokens 2"):
        LRPx(forward).attribute((ids, torch.tensor([[0], [0]])), target=4)
    with pytest.raises(IndexError, match="position 3"):
        LRPx(forward).attribute((ids, ids), target=4, additional_forward_args=(None, None, 3))
    with pytest.raises(ValueError, match="no encoder-decoder"):
        DecoderLogits(loaded["sva-gpt2"][0])
