"""An encoder-decoder is explained as the formulas say; both of its inputs have relevance."""

import math

import pytest
import torch
import transformers
from models import randomize
from replica_ledger import Exact
from replica_relevance import add, attention, gated, linear, rms_norm
from torch.nn import functional as F  # noqa: N812

from captum_lrpx import AttnLRPx, LRPx, ledger

SOURCE, DECODED = torch.tensor([3, 9, 14, 5]), torch.tensor([0, 7, 2])
EXACT = {"rtol": 0.0, "atol": 1e-10}


@pytest.fixture(scope="module")
def t5():
    config = transformers.T5Config(
        vocab_size=17,
        d_model=8,
        d_kv=4,
        d_ff=10,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=2,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=6,
        feed_forward_proj="gated-silu",
        dropout_rate=0.0,
        attn_implementation="eager",
    )
    model = transformers.T5ForConditionalGeneration(config)
    randomize(model, seed=0)
    return model.double().eval()


def forward_of(model):
    """Logits from the ids of the source and of what has been decoded."""

    def forward(source, decoded):
        return model(input_ids=source, decoder_input_ids=decoded, use_cache=False).logits

    return forward


class Replica:
    """T5 in loops.

    Args:
        model: The model.
        attention_too: Whether queries and keys have relevance (AttnLRP).
    """

    def __init__(self, model, *, attention_too):
        self.model = model
        self.attention_too = attention_too

    def norm(self, x, module):
        return rms_norm(x, module.weight, module.variance_epsilon)

    def mixed(self, x, others, block, bias):
        """Attention from ``x [T, D]`` to ``others [S, D]``, with a bias ``[H, T, S]``."""
        (q, of_q), (k, of_k), (v, of_v) = (
            linear(rows, module.weight)
            for rows, module in ((x, block.q), (others, block.k), (others, block.v))
        )
        parts = [slice(0, 4), slice(4, 8)]
        heads = [
            attention(
                q[:, part], k[:, part], v[:, part], each, 1.0, values_only=not self.attention_too
            )
            for part, each in zip(parts, bias, strict=True)
        ]
        y, of_y = linear(torch.cat([out for out, _ in heads], -1), block.o.weight)

        def back(relevance):
            of_heads = of_y(relevance)
            found = [head(of_heads[:, part]) for part, (_, head) in zip(parts, heads, strict=True)]
            queries, keys, values = (torch.cat(each, -1) for each in zip(*found, strict=True))
            return of_q(queries), of_k(keys) + of_v(values)

        return y, back

    def mlp(self, x, block):
        gate, of_gate = linear(x, block.wi_0.weight)
        up, of_up = linear(x, block.wi_1.weight)
        product, of_product = gated(gate, up, F.silu, up_only=not self.attention_too)
        y, of_y = linear(product, block.wo.weight)

        def back(relevance):
            one, other = of_product(of_y(relevance))
            return of_gate(one) + of_up(other)

        return y, back

    def stack(self, x, stack, memory=None):
        """The blocks of an encoder, or of a decoder that looks at a memory ``[S, D]``."""
        first = stack.block[0].layer[0].SelfAttention
        bias = first.compute_bias(len(x), len(x))[0].clone()
        if memory is not None:
            bias += torch.full((len(x), len(x)), -math.inf).triu(1)
            nothing = torch.zeros(2, len(x), len(memory))
        backs = []
        for block in stack.block:
            normed = self.norm(x, block.layer[0].layer_norm)
            y, back = self.mixed(normed, normed, block.layer[0].SelfAttention, bias)
            x, of_sum = add(x, y)
            backs.append((of_sum, back, "self"))
            if memory is not None:
                normed = self.norm(x, block.layer[1].layer_norm)
                y, back = self.mixed(normed, memory, block.layer[1].EncDecAttention, nothing)
                x, of_sum = add(x, y)
                backs.append((of_sum, back, "cross"))
            normed = self.norm(x, block.layer[-1].layer_norm)
            y, back = self.mlp(normed, block.layer[-1].DenseReluDense)
            x, of_sum = add(x, y)
            backs.append((of_sum, back, "mlp"))

        def back_all(relevance):
            of_memory = None if memory is None else torch.zeros_like(memory)
            for of_sum, back, kind in reversed(backs):
                kept, branch = of_sum(relevance)
                found = back(branch)
                if kind == "cross":
                    of_memory += found[1]
                of_branch = {"self": sum, "cross": lambda two: two[0], "mlp": lambda one: one}
                relevance = kept + of_branch[kind](found)
            return relevance, of_memory

        return self.norm(x, stack.final_layer_norm), back_all

    def __call__(self, source, decoded, token):
        """The logit at the last position, and the relevances of both inputs."""
        table = self.model.shared.weight
        memory, of_encoder = self.stack(table[source], self.model.encoder)
        x, of_decoder = self.stack(table[decoded], self.model.decoder, memory)
        scale = 8**-0.5 if self.model.config.scale_decoder_outputs else 1.0
        logits, of_logits = linear(x * scale, self.model.lm_head.weight)
        relevance = torch.zeros_like(logits)
        relevance[-1, token] = logits[-1, token]
        of_decoded, of_memory = of_decoder(of_logits(relevance))
        of_source, _ = of_encoder(of_memory)
        return logits[-1, token], of_source.sum(-1), of_decoded.sum(-1)


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@torch.no_grad()
def test_cross_attention_has_the_relevances_of_the_formulas(t5, method):
    forward = forward_of(t5)
    with Exact():
        found = method(forward, t5).attribute((SOURCE[None], DECODED[None]), (-1, 6))
        value, *expected = Replica(t5, attention_too=method is AttnLRPx)(SOURCE, DECODED, 6)
        own = forward(SOURCE[None], DECODED[None])[0, -1, 6]
    torch.testing.assert_close(own, value, rtol=1e-10, atol=0)
    for each, other in zip(found, expected, strict=True):
        torch.testing.assert_close(each[0], other, rtol=0, atol=1e-10 * other.abs().max().item())
        assert (each.abs() > 1e-6).all()


@torch.no_grad()
def test_without_biases_both_inputs_sum_to_the_logit(t5):
    sources, decoded = torch.randint(2, 17, (2, 5)), torch.randint(2, 17, (2, 3))
    with Exact():
        found = LRPx(forward_of(t5), t5).attribute((sources, decoded), (-1, 6))
        value = forward_of(t5)(sources, decoded)[:, -1, 6]
    torch.testing.assert_close(sum(each.sum(1) for each in found), value, **EXACT)


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
def test_the_ledger_has_a_line_for_each_input(t5, method):
    with Exact():
        found = ledger(method(forward_of(t5), t5), (SOURCE[None], DECODED[None]), (-1, 6))
    assert found.closes(1e-10)
    assert [entry.path for entry in found.of("tokens")] == ["inputs.0", "inputs.1"]


def test_ids_and_embeddings_of_either_input_say_the_same(t5):
    def by_embeddings(source, decoded):
        return t5(inputs_embeds=source, decoder_input_ids=decoded, use_cache=False).logits

    embedded = t5.shared(SOURCE[None]).detach()
    with Exact():
        of_ids = AttnLRPx(forward_of(t5), t5).attribute((SOURCE[None], DECODED[None]), (-1, 6))
        mixed = AttnLRPx(by_embeddings, t5).attribute((embedded, DECODED[None]), (-1, 6))
    torch.testing.assert_close(mixed[0].sum(-1), of_ids[0], **EXACT)
    torch.testing.assert_close(mixed[1], of_ids[1], **EXACT)
