"""Methods explain a batch as they explain each text of it by itself."""

import pytest
import torch
from models import tiny, token_ids

from captum_lrpx.methods import METHODS, attribute
from captum_lrpx.targets import LogitDifference, Query

pytestmark = pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")

LENGTHS = (7, 3, 5)
TOLERANCE = {"llama": 1e-5}  # transformers computes its norm and rotary embedding in float32
FAMILIES = ["bert", "gpt2", "llama", "opt"]


def model_of(family):
    return tiny(family, activation="relu", dtype=torch.float64)


def batch(model, lengths=LENGTHS):
    """Texts of several lengths, each with a question of its own."""
    ids = token_ids(batch=len(LENGTHS), length=max(LENGTHS))[: len(lengths), : max(lengths)]
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).long()
    ids = ids.masked_fill(mask == 0, 0)
    good, bad = torch.tensor([5, 6, 8])[: len(lengths)], torch.tensor([9, 4, 7])[: len(lengths)]
    arguments = (mask, good, bad, torch.tensor(lengths) - 1)
    return Query(LogitDifference(model), ids, arguments, mask=mask)


def alone(query, index):
    """One text as ``explain`` asks it: no padding and no mask."""
    length = LENGTHS[index]
    _, good, bad, position = query.additional_forward_args
    here = slice(index, index + 1)
    arguments = (None, good[here], bad[here], position[here])
    return Query(query.forward, query.ids[here, :length], arguments)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_a_text_in_a_batch_is_explained_as_by_itself(method, family):
    query = batch(model_of(family))
    found = attribute(method, query, None, {})

    assert found.relevances.shape == query.ids.shape
    assert found.relevances[query.mask == 0].eq(0).all()
    for index, length in enumerate(LENGTHS):
        expected = attribute(method, alone(query, index), None, {})
        tolerance = TOLERANCE.get(family, 1e-10) * expected.relevances.abs().max().item()
        close = {"rtol": 0, "atol": max(tolerance, 1e-12)}
        torch.testing.assert_close(
            found.relevances[index, :length], expected.relevances[0], **close
        )
        torch.testing.assert_close(found.values[index], expected.values[0], rtol=1e-6, atol=1e-9)
        if expected.deltas is not None:
            scale = expected.values.abs().item() + expected.relevances.abs().sum().item()
            atol = TOLERANCE.get(family, 1e-10) * scale
            torch.testing.assert_close(found.deltas[index], expected.deltas[0], rtol=0, atol=atol)
        else:
            assert found.deltas is None


def test_a_row_is_the_text_by_itself():
    query = batch(model_of("gpt2"))
    row = query.row(1)
    mask, good, _, position = row.additional_forward_args
    assert row.ids.tolist() == query.ids[1:2, :3].tolist()
    assert mask is row.mask
    assert mask.tolist() == [[1, 1, 1]]
    assert (good.tolist(), position.tolist()) == ([6], [2])
    assert alone(query, 1).row(0).ids.tolist() == row.ids.tolist()


def test_random_numbers_do_not_depend_on_the_batch():
    query = batch(model_of("gpt2"))
    found = attribute("random", query, None, {"seed": 3}).relevances
    fewer = attribute("random", batch(query.model, LENGTHS[:2]), None, {"seed": 3}).relevances
    assert torch.equal(found[:2], fewer)
    assert not torch.equal(found, attribute("random", query, None, {"seed": 4}).relevances)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.tensor([[0, 1, 1]]), "padded on the right"),
        (torch.tensor([[1, 0, 1]]), "padded on the right"),
        (torch.tensor([[1, 1]]), r"shape \(1, 2\)"),
    ],
)
def test_padding_elsewhere_is_refused(mask, message):
    model = model_of("gpt2")
    ids = token_ids(batch=1, length=3)
    with pytest.raises(ValueError, match=message):
        Query(LogitDifference(model), ids, (mask, 5, 6), mask=mask)


def test_a_mask_that_the_model_does_not_get_is_refused():
    model = model_of("gpt2")
    ids = token_ids(batch=1, length=3)
    with pytest.raises(ValueError, match="not among the arguments"):
        Query(LogitDifference(model), ids, (None, 5, 6), mask=torch.ones_like(ids))
