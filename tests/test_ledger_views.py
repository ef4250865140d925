"""What a ledger shows: tables, words, a data frame, a plot; what it refuses."""

import sys
from dataclasses import replace

import pytest
import torch
from captum.attr import InputXGradient
from explanations import Page, assert_harmless
from models import tiny, token_ids

from captum_lrpx import ALTILogit, AttnLRPx, LayerLRPx, LRPx
from captum_lrpx.conservation import Entry, Ledger, ledger

pytestmark = pytest.mark.usefixtures("of_the_graph")


def book_of(value, *entries):
    """A ledger of one example, from ``(kind, layer, amount)``."""
    made = tuple(
        Entry(kind, f"{kind}.{layer}", layer, torch.tensor([float(amount)], dtype=torch.float64))
        for kind, layer, amount in entries
    )
    return Ledger(
        "LRPx", torch.tensor([float(value)], dtype=torch.float64), made, torch.zeros(1, 1)
    )


@pytest.fixture(scope="module")
def book():
    return ledger(AttnLRPx(tiny("gpt2", layers=3)), token_ids(2), [(3, 5), (1, 2)])


def test_sums(book):
    torch.testing.assert_close(sum(book.by_kind().values()), book.total)
    torch.testing.assert_close(book.residual, book.value - book.total)
    for kind, amount in book.by_kind().items():
        torch.testing.assert_close(sum(book.by_layer(kind).values()), amount)
    assert list(book.by_layer("softmax")) == [0, 1, 2]
    torch.testing.assert_close(book.delta, book.value - book.attributions.sum(1))


def test_what_closing_is_relative_to():
    book = book_of(1, ("tokens", None, 100), ("bias", 0, -99.01))
    assert book.relative_residual("value").item() == pytest.approx(0.01, rel=1e-4)
    assert book.relative_residual("largest").item() == pytest.approx(1e-4, rel=1e-3)
    assert book.closes(2e-4)
    assert not book.closes(2e-4, to="value")
    assert not book.closes(1e-5)
    assert book_of(0, ("tokens", None, 0)).closes(0.0, to="value")
    assert not book_of(float("nan"), ("tokens", None, 1)).closes(1.0)
    assert not book_of(0, ("tokens", None, 1)).closes(1.0, to="value")
    with pytest.raises(ValueError, match="'value' or 'largest'"):
        book.relative_residual("mass")


@pytest.mark.parametrize("several", [False, True])
def test_relevances_that_cancel_are_numbers_of_the_account(several):
    """A logit near zero is the rest of relevances of both signs, and as exact as they are."""
    book = book_of(1e-6, ("tokens", None, 2e-6))
    assert not book.closes()
    relevances = torch.tensor([[1.75, -1.749998]])
    attributions = (torch.zeros(1, 3, 2), relevances) if several else relevances
    book = replace(book, attributions=attributions)
    assert book.largest.item() == 1.75
    assert book.closes(1e-6)
    assert not book.closes(to="value")
    patches = (torch.tensor([[0.0], [-2.0], [1.0]]), relevances, torch.zeros(1, 0))
    assert replace(book, attributions=patches).largest.item() == 2, "rows need not be examples"


@pytest.mark.parametrize("by", ["kind", "layer", "entry"])
def test_tables(book, by):
    table = book.table(1, by)
    extra = 3  # sum, value, residual
    assert table.row_count == len(book.rows(by)) + extra
    frame = book.to_pandas(by)
    assert len(frame) == 2 * len(book.rows(by))
    sums = frame.groupby("example").amount.sum()
    assert sums.tolist() == pytest.approx(book.total.tolist())
    shares = frame.groupby("example").share.sum()
    assert shares.tolist() == pytest.approx([1.0, 1.0])


def test_a_table_as_text(book):
    text = str(book)
    for kind, amount in book.by_kind().items():
        assert kind in text
        assert f"{amount[0]:+.6f}" in text
    assert f"{book.value[0]:+.6f}" in text


def test_a_notebook_shows_the_table(book):
    page = Page(book._repr_html_())
    assert_harmless(book._repr_html_())
    assert sum(tag == "tr" for tag, _ in page.tags) == 1 + len(book.by_kind()) + 3
    for kind, amount in book.by_kind().items():
        assert kind in page.text
        assert f"{amount[0]:+.6f}" in page.text
    hostile = Ledger("<script>", book.value, book.entries, book.attributions)
    assert "<script" not in hostile._repr_html_()


def test_paths_are_text_and_not_markup():
    book = book_of(1, ("tokens", None, 1))
    entry = replace(book.entries[0], path="[red]layer[/red]")
    shown = Ledger("LRPx", book.value, (entry,), book.attributions)
    from rich.console import Console

    console = Console(record=True, width=120)
    console.print(shown.table(by="entry"))
    assert "[red]layer[/red]" in console.export_text()


def test_a_plot_has_a_bar_for_each_kind_and_layer(book):
    import matplotlib as mpl

    mpl.use("Agg")
    axes = book.plot(1)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(book.by_kind())
    for container, kind in zip(axes.containers, book.by_kind(), strict=True):
        heights = sum(bar.get_height() for bar in container)
        assert heights == pytest.approx(book.by_kind()[kind][1].item())
    assert book.plot(0, ax=axes) is axes


@pytest.mark.parametrize(("package", "call"), [("pandas", "to_pandas"), ("matplotlib", "plot")])
def test_what_an_optional_package_is_for(book, monkeypatch, package, call):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"package '{package}'.*captum-lrpx\["):
        getattr(book, call)()


def test_refusals(book):
    with pytest.raises(IndexError, match="out of range for a batch of 2"):
        book.table(2)
    assert book.explanation(-1) == book.explanation(1)
    with pytest.raises(ValueError, match="'kind', 'layer' or 'entry'"):
        book.rows("module")
    model, ids = tiny("gpt2"), token_ids(2)
    for other in (InputXGradient(model), LayerLRPx(model, model.transformer.h[0]), LRPx):
        with pytest.raises(TypeError, match="a ledger of LRPx, AttnLRPx and ALTILogit"):
            ledger(other, ids, (3, 5))
    with pytest.raises(AssertionError, match="Target not provided"):
        ledger(LRPx(model), ids)

    def summed(x):
        return model(x).logits[:, 3, 5].sum().view(1)

    with pytest.raises(ValueError, match="1 explained values for 2 examples"):
        ledger(LRPx(summed, model), ids)

    def detached(x):
        return model(x).logits[:, 3, 5].detach()

    with pytest.raises(ValueError, match="does not depend on the model by a gradient"):
        ledger(LRPx(detached, model), ids)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        ledger(LRPx(model), ids, (3, 5))
    with torch.no_grad():
        assert ledger(LRPx(model), ids, (3, 5)).closes(1e-10)


def test_ids_that_the_forward_function_changes_are_refused():
    model = tiny("gpt2")
    forward = lambda ids: model(ids[:, :3]).logits  # noqa: E731
    with pytest.raises(ValueError, match="embeds no token ids that it was given"):
        ledger(LRPx(forward, model), token_ids(2), (1, 5))


# In words -----------------------------------------------------------------------------------------


def test_biases_of_some_layers_are_named():
    book = book_of(
        10,
        ("tokens", None, 5),
        ("positions", None, 1),
        *(("bias", layer, 0.1) for layer in range(9)),
        ("bias", 9, 1.0),
        ("bias", 10, 1.0),
        ("bias", 11, 1.1),
    )
    words = book.explanation()
    assert "sum to 5: 5 are missing." in words
    assert "62 % of what is missing went into the biases of layers 9-11" in words
    assert "20 % into the position embeddings" in words
    assert "18 % into the biases of all layers but 9-11" in words
    assert "does not close" not in words


def test_what_has_the_opposite_sign_is_named():
    book = book_of(10, ("tokens", None, 6), ("bias", 0, 6), ("softmax", 0, -2))
    words = book.explanation()
    assert "150 % of what is missing went into the biases of layer 0." in words
    assert "This is offset, 50 % by the softmax of layer 0." in words


def test_an_excess():
    words = book_of(10, ("tokens", None, 14), ("bias", None, -4)).explanation()
    assert "4 are too much." in words
    assert "100 % of the excess came from the biases." in words


def test_nothing_is_missing():
    assert book_of(3, ("tokens", None, 3)).explanation().endswith("nothing is missing.")
    assert "nothing is missing" in ledger(LRPx(tiny("mistral")), token_ids(1), (3, 5)).explanation()


def test_an_open_account_says_so():
    words = book_of(10, ("tokens", None, 5), ("bias", 0, 2)).explanation()
    assert "60 % of what is missing is in no line: the account does not close" in words


def test_words_of_alti_logit():
    words = ledger(ALTILogit(tiny("gpt2")), token_ids(1), (3, 5)).explanation()
    assert "the MLPs" in words
    assert "does not close" not in words
