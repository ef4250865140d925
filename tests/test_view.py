"""The interactive page, driven in a headless browser as a reader would."""

import json
import re
import shutil
from dataclasses import replace

import pytest
from explanations import explanation

from captum_lrpx import AttnLRPx, LLMRelevance, LRPx, Region, explain, view, zoo

PROMPT, ANSWER = "the keys to the cabinet", "are old ."


@pytest.fixture(scope="module")
def results():
    model, tokenizer = zoo.load("sva-llama")
    return [
        LLMRelevance(method(model), tokenizer, "logit").attribute(PROMPT, target=ANSWER)
        for method in (AttnLRPx, LRPx)
    ]


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("there is no Chromium")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page of explanations; whatever it asks of the network or complains about fails."""
    pages, faults = [], []

    def open_(explanations, **options):
        file = tmp_path / "view.html"
        view(explanations, file, **options)
        page = browser.new_page()
        page.on("request", lambda request: faults.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text))
        page.goto(file.as_uri())
        faults[:] = [fault for fault in faults if fault != file.as_uri()]
        pages.append(page)
        return page

    yield open_
    for page in pages:
        page.close()
    assert faults == []


def titles(page):
    return [
        float(each) for each in page.eval_on_selector_all(".piece", "all => all.map(e => e.title)")
    ]


def close(found, expected):
    return found == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_the_text_is_there_and_shows_the_sum(opened, results):
    page = opened(results)
    pieces = page.locator(".piece").all_inner_texts()
    assert [piece.strip() for piece in pieces[-3:]] == ["are", "old", "."]
    assert close(titles(page), results[0].context_attr.sum(0).tolist())
    assert f"{float(results[0].values.sum()):+.4g}" in page.inner_text("#value")
    assert page.locator(".target").count() == 3


def test_hovering_shows_where_a_token_comes_from_and_a_click_holds_it(opened, results):
    page = opened(results)
    targets, rows = page.locator(".target"), results[0].context_attr.tolist()
    targets.nth(1).hover()
    assert close(titles(page), rows[1])
    assert results[0].targets[1] in page.inner_text("#value")
    page.locator("#controls").hover()
    assert close(titles(page), results[0].context_attr.sum(0).tolist())
    targets.nth(2).click()
    targets.nth(0).hover()
    assert close(titles(page), rows[2]), "held"
    assert "held" in page.inner_text("#status")
    page.keyboard.press("Escape")
    page.locator("#controls").hover()
    assert close(titles(page), results[0].context_attr.sum(0).tolist())


def test_all_of_it_by_keyboard(opened, results):
    page = opened(results)
    rows = results[0].context_attr.tolist()
    page.locator(".target").first.focus()
    assert close(titles(page), rows[0])
    page.keyboard.press("ArrowRight")
    assert close(titles(page), rows[1])
    page.keyboard.press("Enter")
    assert page.locator("[role=button][aria-pressed=true]").inner_text() == "old"
    page.keyboard.press("ArrowRight")
    assert close(titles(page), rows[1]), "held"
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowLeft")
    assert close(titles(page), rows[1])
    assert page.locator(".piece[tabindex='0']").count() == 1


def test_methods_segments_and_special_tokens_are_chosen(opened, results):
    page = opened(results, by=("token", "word", "sentence"), names=("one", "other"))
    page.select_option("#method", label="other")
    assert close(titles(page), results[1].context_attr.sum(0).tolist())
    page.select_option("#level", label="sentences")
    sums = titles(page)
    assert len(set(sums)) == 2, "the special token, and the sentence"
    assert close(sums[1], float(results[1].context_attr[:, 1:].sum()))
    page.select_option("#level", label="tokens")
    page.uncheck("#special")
    assert page.locator(".left-out").count() == 1
    assert titles(page)[0] == 0


def test_negative_relevance_shows_without_color(opened):
    page = opened(explanation(("a", "b", "c"), (1.0, -1.0, 0.01), target="it"))
    marked = page.eval_on_selector_all(
        ".piece", "all => all.map(e => getComputedStyle(e).textDecorationLine)"
    )
    assert marked == ["none", "underline", "none"]
    colors = page.eval_on_selector_all(
        ".piece", "all => all.map(e => getComputedStyle(e).backgroundColor)"
    )
    assert len(set(colors)) == 3


def test_one_large_token_does_not_hide_the_others(opened):
    page = opened(explanation([f"w{i}" for i in range(100)], [50.0] + [0.1] * 99))
    strengths = page.eval_on_selector_all(
        ".piece", "all => all.map(e => +e.style.getPropertyValue('--strength'))"
    )
    assert strengths[1] == pytest.approx(0.5)
    assert "outlined" in page.inner_text("#largest")
    assert page.locator(".beyond").count() == 1


def test_the_ledger_and_the_table(opened):
    model, tokenizer = zoo.load("sva-gpt2")
    found = explain(model, tokenizer, PROMPT, "are")
    page = opened(found)
    bar = page.inner_text("#ledger")
    for kind, _ in found.certificate.ledger_delta:
        assert kind in bar
    assert page.locator("#rows tr").count() == 0, "folded"
    page.click("summary")
    page.wait_for_selector("#rows tr")
    assert page.locator("#rows tr").count() == len(found.tokens)
    first = page.inner_text("#rows tr:first-child")
    assert found.top(1)[0].label in first


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "<!--", "&lt;"]
)
def test_text_is_text(opened, text):
    harmful = explanation((text, "keys"), (1.0, -1.0), target=f"logit of {text}", model=text)
    page = opened(harmful)
    dialogs = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    assert page.locator(".piece").all_inner_texts()[0] == text
    assert text in page.inner_text("#value")
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2
    assert dialogs == []


def test_characters_and_directions_stay_whole(opened):
    page = opened(explanation(("क्षत्रिय", "👩🏽‍🚀", "שלום", "我喜欢"), (1.0, 2.0, 3.0, -4.0)))
    shown = [text.strip() for text in page.locator(".piece").all_inner_texts()]
    assert shown == ["क्षत्रिय", "👩🏽‍🚀", "שלום", "我喜欢"]


def test_an_answer_of_a_chat_is_the_target(opened):
    words = ("Is", "it", "so", "Yes")
    regions = (Region("answer", "assistant", 9, 12),)
    page = opened(explanation(words, (1.0, 2.0, 3.0, 0.0), regions=regions))
    assert page.locator(".target").all_inner_texts() == ["Yes"]


def test_the_page_loads_nothing_and_is_the_same_each_time(results):
    page = view(results)
    assert page == view(results)
    assert not re.search(r"(src|href)=|https?://|@import|url\(", page)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert len(data["methods"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"explanations": []}, "no explanations"),
        ({"by": ()}, "`by` is empty"),
        ({"by": ("sentense",)}, "did you mean 'sentence'"),
        ({"names": ("one", "two", "three")}, "3 names"),
    ],
)
def test_what_cannot_be_viewed_is_refused(results, options, message):
    with pytest.raises(ValueError, match=message):
        view(**{"explanations": results} | options)


def test_different_texts_or_rows_are_refused(results):
    model, tokenizer = zoo.load("sva-llama")
    llm = LLMRelevance(AttnLRPx(model), tokenizer, "logit")
    whole = llm.attribute(PROMPT, target=ANSWER, spans=[(0, None)])
    for other in (whole, llm.attribute(PROMPT, target="are new .")):
        with pytest.raises(ValueError, match="not of the same tokens and rows"):
            view([results[0], other])
    record = results[0].record
    assert view(replace(record, template=None))
