"""What holds on a CPU holds on a GPU: the same relevances, by other kernels.

pytest -o addopts="" -m "not slow" tests/test_cuda.py      # some models, every kernel
pytest -o addopts="" -n 8 tests/test_cuda.py               # every type that transformers has
"""

from __future__ import annotations

import pytest
import torch
from breadth import EQUAL, METHODS, difference
from models import tiny, token_ids
from questions import NotBuilt, asked, pairs, plain_logits, quiet
from rule_cases import attend_manually
from test_alti_breadth import PAIRS as OF_ALTI
from test_alti_breadth import REFUSED as REFUSED_BY_ALTI
from test_breadth import FEW
from test_breadth import REFUSED as REFUSED_BY_LRP
from torch.nn import attention
from torch.nn import functional as F  # noqa: N812 - the name that PyTorch users know

from captum_lrpx import ALTILogit, AttnLRPx, LRPx, explain, ledger, zoo
from captum_lrpx.metrics import agreement

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

DEVICE = "cuda"


@pytest.fixture(autouse=True)
def exact_products():
    """Products of float32 in float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def moved(question):
    """A question, moved to the GPU."""

    def there(value):
        return value.to(DEVICE) if isinstance(value, torch.Tensor) else value

    question.model.to(DEVICE)
    question.keywords = {name: there(value) for name, value in question.keywords.items()}
    question.inputs = tuple(map(there, question.inputs))
    return question


def built(mapping, kind, **options):
    try:
        return asked(kind, mapping, **options)
    except NotBuilt as reason:
        pytest.skip(f"does not run by itself: {reason}")


def in_two_places(mapping, kind):
    """A question on both devices, as precise as it runs on both.

    The values are equal as far as rounding goes, or there is nothing to compare.
    """
    reason = ""
    for dtype in (torch.float64, torch.float32):
        try:
            here, there = (asked(kind, mapping, dtype=dtype) for _ in range(2))
            there = moved(there)
            apart = difference(here.value(), there.value().cpu())
        except NotBuilt as error:
            reason = str(error)
            continue
        if apart <= EQUAL[dtype]:
            return here, there
        reason = f"computes another value on the GPU, {apart:.0e} apart"
    return pytest.skip(reason)


# Every type ---------------------------------------------------------------------------------------


def check_relevances(mapping, kind):
    here, there = in_two_places(mapping, kind)
    for method in METHODS.values():
        if (mapping, kind) in REFUSED_BY_LRP:
            with pytest.raises(ValueError, match=REFUSED_BY_LRP[mapping, kind]):
                there.relevances(method)
            continue
        before = there.state()
        expected, found = here.relevances(method), there.relevances(method)
        apart = max(difference(one, two.cpu()) for one, two in zip(expected, found, strict=True))
        assert apart <= EQUAL[here.dtype]
        assert there.state() == before


@pytest.mark.parametrize("pair", FEW, ids="-".join)
def test_relevances_of_some(pair):
    check_relevances(*pair)


@pytest.mark.slow
@pytest.mark.parametrize("pair", sorted(set(pairs()) - set(FEW)), ids="-".join)
def test_relevances_of_all_others(pair):
    check_relevances(*pair)


def check_alti(mapping, kind):
    here, there = in_two_places(mapping, kind)
    one, other = (ALTILogit(each.logits, each.model) for each in (here, there))
    with quiet():
        if (mapping, kind) in REFUSED_BY_ALTI:
            # Of two reasons another may be found first: kernels differ.
            reason = f"{REFUSED_BY_ALTI[mapping, kind]}|ALTI-Logit does not cover"
            with pytest.raises(ValueError, match=reason):
                other.decompose(there.inputs, there.target)
            return
        expected = one.decompose(here.inputs, here.target, return_alti=True)
        found = other.decompose(there.inputs, there.target, return_alti=True)
    within = max(1e-6, 100 * EQUAL[here.dtype])
    assert difference(expected.heads, found.heads.cpu()) <= within
    assert difference(expected.alti, found.alti.cpu()) <= within
    assert difference(expected.start, found.start.cpu()) <= within


ALTI_FEW = (
    ("CAUSAL_LM", "gpt2"),
    ("CAUSAL_LM", "gpt_oss"),
    ("CAUSAL_LM", "mixtral"),
    ("SEQ_TO_SEQ_CAUSAL_LM", "bart"),
)


@pytest.mark.parametrize("pair", ALTI_FEW, ids="-".join)
def test_alti_of_some(pair):
    check_alti(*pair)


@pytest.mark.slow
@pytest.mark.parametrize("pair", sorted(set(OF_ALTI) - set(ALTI_FEW)), ids="-".join)
def test_alti_of_all_others(pair):
    check_alti(*pair)


def check_half(mapping, kind):
    """In bfloat16 the forward pass is the model's own, and relevances are numbers."""
    question = moved(built(mapping, kind, dtype=torch.bfloat16))
    try:
        question.value()
    except NotBuilt as reason:
        pytest.skip(f"does not run on the GPU in bfloat16: {reason}")
    if not torch.equal(plain_logits(question), plain_logits(question)):
        pytest.skip("does not compute the same twice")
    for method in METHODS.values():
        seen = []

        def forward(*inputs, seen=seen):
            seen.append(question.logits(*inputs))
            return seen[-1]

        attribution = method(forward, question.model)
        if (mapping, kind) in REFUSED_BY_LRP:
            with pytest.raises(ValueError, match=REFUSED_BY_LRP[mapping, kind]):
                attribution.attribute(question.inputs, target=question.target)
            continue
        for _ in range(2):
            found = attribution.attribute(question.inputs, target=question.target)
            assert all(bool(each.isfinite().all()) for each in found)
        plain = plain_logits(question)
        assert all(torch.equal(each, plain) for each in seen)


@pytest.mark.parametrize("pair", FEW, ids="-".join)
def test_half_precision_of_some(pair):
    check_half(*pair)


@pytest.mark.slow
@pytest.mark.parametrize("pair", sorted(set(pairs()) - set(FEW)), ids="-".join)
def test_half_precision_of_all_others(pair):
    check_half(*pair)


# Kernels of attention -----------------------------------------------------------------------------

KERNELS = {
    "FLASH_ATTENTION": (torch.float16, torch.bfloat16),
    "CUDNN_ATTENTION": (torch.float16, torch.bfloat16),
    "EFFICIENT_ATTENTION": (torch.float32, torch.float16),
    "MATH": (torch.float64, torch.float32),
}
PRECISE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
HEADS, LENGTH, SIZE = 4, 40, 32


class Mixer(torch.nn.Module):
    """Projections and an attention, written out or by a kernel."""

    def __init__(self, kernel, groups, causal):
        super().__init__()
        torch.manual_seed(0)
        self.kernel, self.groups, self.causal = kernel, groups, causal
        self.q = torch.nn.Linear(16, HEADS * SIZE)
        self.k, self.v = (torch.nn.Linear(16, groups * SIZE) for _ in range(2))

    def forward(self, x):
        q, k, v = (
            each(x).unflatten(-1, (-1, SIZE)).transpose(1, 2) for each in (self.q, self.k, self.v)
        )
        if self.kernel is None:
            mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool, device=x.device)
            k, v = (each.repeat_interleave(HEADS // self.groups, 1) for each in (k, v))
            found = attend_manually(q, k, v, mask.tril() if self.causal else mask)
        else:
            with attention.sdpa_kernel(getattr(attention.SDPBackend, self.kernel)):
                found = F.scaled_dot_product_attention(
                    q, k, v, is_causal=self.causal, enable_gqa=self.groups < HEADS
                )
        return found.transpose(1, 2).flatten(2)[:, -1].sum(-1, keepdim=True)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "all"])
@pytest.mark.parametrize("groups", [HEADS, 2])
@pytest.mark.parametrize(
    ("kernel", "dtype"), [(kernel, dtype) for kernel in KERNELS for dtype in KERNELS[kernel]]
)
def test_kernels(kernel, dtype, groups, causal):
    judge = Mixer(None, groups, causal).double().eval().to(DEVICE)
    model = Mixer(kernel, groups, causal).to(DEVICE, dtype).eval()
    x = torch.randn(2, LENGTH, 16, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    try:
        model(x.to(dtype))
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    for method in (LRPx, AttnLRPx):
        expected = method(judge).attribute(x.double(), target=0)
        for fast in (True, False):
            found = method(model, fast=fast).attribute(x.to(dtype), target=0)
            assert difference(expected, found.double()) <= PRECISE[dtype]


# What is fast, and what saves memory --------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_fast_and_checkpointed_are_the_slow_ones(family, method, dtype):
    options = {"heads": 4, "head_dim": 16, "max_position_embeddings": 256}
    model = tiny(family, dtype=dtype, attn="sdpa", **options).to(DEVICE)
    ids = token_ids(length=200).to(DEVICE)
    plain = method(model, fast=False).attribute(ids, target=(-1, 5))
    within = 1e-4 if dtype == torch.float32 else 0.1
    for options in ({}, {"checkpointing": True}):
        for _ in range(2):
            found = method(model, **options).attribute(ids, target=(-1, 5))
            assert difference(plain.float(), found.float()) <= within


@pytest.mark.parametrize("name", ["sva-bert", "sva-gpt2", "sva-llama"])
def test_explanations(name):
    text = "the keys to the cabinet " + ("[MASK]" if name == "sva-bert" else "")
    (model, tokenizer), (other, _) = zoo.load(name), zoo.load(name)
    for method in ("AttnLRPx", "LRPx", "ALTILogit"):
        expected = explain(model, tokenizer, text, "are", method=method.lower())
        found = explain(
            other.to(DEVICE), tokenizer, text, "are", method=method.lower(), certify="full"
        )
        assert difference(torch.tensor(expected.relevances), torch.tensor(found.relevances)) <= 1e-4


def test_the_ledger_closes():
    model, ids = tiny("llama", attn="sdpa").to(DEVICE), token_ids(length=12).to(DEVICE)
    book = ledger(AttnLRPx(model), ids, target=(-1, 5))
    assert book.closes(1e-4, to="largest")


def test_an_agreement_has_its_interval():
    estimate, effect = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    expected = agreement(estimate, effect)
    found = agreement(estimate.to(DEVICE), effect.to(DEVICE))
    groups = torch.tensor([0, 0, 1, 1, 2])
    for measure in ("pearson", "spearman", "top_k"):
        here = expected.interval(measure, groups=groups)
        there = found.interval(measure, groups=groups.to(DEVICE))
        assert torch.tensor(here).allclose(torch.tensor(there), atol=1e-6)
