"""The graph of relevance: nodes are those of layers, edges share them out, the file is readable."""

import json

import pytest
import torch
from models import tiny, token_ids
from plain_models import PLAIN
from state import snapshot
from torch import nn

from captum_lrpx import LRP, LayerAttnLRPx, LayerLRPx, RelevanceFlow, zoo

TARGET = (-1, 7)
SCHEMA = {
    "metadata": {
        "slug": str,
        "scan": str,
        "transcoder_list": list,
        "prompt_tokens": list,
        "prompt": str,
        "node_threshold": (float, type(None)),
        "schema_version": int,
    },
    "qParams": {
        "pinnedIds": list,
        "supernodes": list,
        "linkType": str,
        "clickedId": str,
        "sg_pos": str,
    },
    "nodes": {
        "node_id": str,
        "feature": int,
        "layer": str,
        "ctx_idx": int,
        "feature_type": str,
        "token_prob": float,
        "is_target_logit": bool,
        "run_idx": int,
        "reverse_ctx_idx": int,
        "jsNodeId": str,
        "clerp": str,
        "influence": (float, type(None)),
        "activation": (float, type(None)),
    },
    "links": {"source": str, "target": str, "weight": float},
}
"""Fields of circuit-tracer's graph_models.py (schema version 1), which Neuronpedia reads."""


def layers_of(model):
    return [model.get_input_embeddings(), *model.base_model.h]


@pytest.mark.parametrize("recipe", [None, LRP], ids=["attnlrp", "lrp"])
def test_nodes_have_the_relevance_of_layers(recipe):
    model, ids = tiny("gpt2"), token_ids(1)
    graph = RelevanceFlow(model, layers_of(model), recipe=recipe).attribute(ids, TARGET)
    method = LayerLRPx if recipe else LayerAttnLRPx
    for node, relevance in zip(
        graph.nodes, method(model, layers_of(model)).attribute(ids, TARGET), strict=True
    ):
        torch.testing.assert_close(node, relevance.sum(-1)[0], rtol=0, atol=1e-12)
    assert graph.value == pytest.approx(model(ids).logits[0, -1, 7].item())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_comes_to_a_position_is_its_relevance(family):
    """Columns sum to the nodes of the layer before whatever the rules, as no way goes past it."""
    model, ids = tiny(family, layers=3), token_ids(1)
    base = model.base_model
    blocks = list(getattr(base, "h", None) or base.layers)
    graph = RelevanceFlow(model, blocks).attribute(ids, TARGET)
    close = {"rtol": 0, "atol": 1e-12 if family == "gpt2" else 1e-6}
    torch.testing.assert_close(graph.edges.sum(1), graph.nodes[:-1], **close)
    assert graph.edges.triu(1).eq(0).all(), "nothing flows from later positions"


def test_where_rules_conserve_a_position_hands_on_what_it_has():
    model, ids = tiny("gpt2", biases="zero", layers=3), token_ids(1)
    graph = RelevanceFlow(model, list(model.base_model.h), recipe=LRP).attribute(ids, TARGET)
    torch.testing.assert_close(graph.edges.sum(2), graph.nodes[1:], rtol=0, atol=1e-12)


def test_any_module_has_a_graph():
    plain = PLAIN["nano-gpt-gelu_erf"]
    module = plain.module()
    before = snapshot(module)
    graph = RelevanceFlow(module, list(module.blocks)).attribute(plain.batch()[:1], TARGET)
    assert graph.nodes.shape == (2, 5)
    assert snapshot(module) == before


@pytest.fixture(scope="module")
def drawn():
    model, tokenizer = zoo.load("sva-llama")
    ids = tokenizer("the keys to the cabinet", return_tensors="pt").input_ids
    are = tokenizer.convert_tokens_to_ids("▁are")
    layers = [model.get_input_embeddings(), *model.model.layers]
    graph = RelevanceFlow(model, layers).attribute(ids, (-1, are))
    return graph, ids[0], tokenizer.convert_ids_to_tokens(ids[0]), are


def test_the_file_has_the_fields_of_the_public_schema(drawn, tmp_path):
    graph, ids, tokens, are = drawn
    path = tmp_path / "graph.json"
    graph.to_json(path, ids, tokens, are, target_text="are", probability=0.5)
    found = json.loads(path.read_text())
    assert found.keys() == SCHEMA.keys()
    for name, fields in SCHEMA.items():
        for each in found[name] if isinstance(found[name], list) else [found[name]]:
            assert each.keys() == fields.keys()
            for field, kind in fields.items():
                assert isinstance(each[field], kind), (name, field, each[field])
                assert type(each[field]) is not bool or kind is bool
    names = [node["node_id"] for node in found["nodes"]]
    assert len(set(names)) == len(names) == 4 * 6 + 1
    assert {node["feature_type"] for node in found["nodes"]} == {
        "embedding",
        "cross layer transcoder",
        "logit",
    }
    assert {end for link in found["links"] for end in (link["source"], link["target"])} <= {*names}
    (goal,) = [node for node in found["nodes"] if node["is_target_logit"]]
    into = [link["weight"] for link in found["links"] if link["target"] == goal["node_id"]]
    assert sum(into) == pytest.approx(float(graph.nodes[-1].sum()), rel=1e-5)


def test_small_edges_can_be_left_out(drawn):
    graph, ids, tokens, are = drawn
    every, some = (
        len(graph.to_dict(ids, tokens, are, least=least)["links"]) for least in (0.0, 0.1)
    )
    assert 0 < some < every


def test_a_picture(drawn, tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    graph, _, tokens, _ = drawn
    figure = graph.plot(tokens)
    figure.savefig(tmp_path / "graph.png")
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == list(tokens)
    with pytest.raises(ValueError, match="do not name"):
        graph.plot(tokens[1:])


def test_layers_in_another_order_are_refused():
    model = tiny("gpt2")
    layers = [model.get_input_embeddings(), *model.transformer.h]
    order = r"order transformer\.wte, transformer\.h\.0, transformer\.h\.1: give them"
    for wrong in (layers[::-1], [*layers, layers[-1]], [layers[1], layers[0], layers[2]]):
        with pytest.raises(ValueError, match=order):
            RelevanceFlow(model, wrong).attribute(token_ids(1), target=TARGET)


def test_what_has_no_graph_is_refused(drawn):
    model = tiny("gpt2")
    with pytest.raises(ValueError, match="of one text"):
        RelevanceFlow(model, layers_of(model)).attribute(token_ids(), TARGET)
    with pytest.raises(ValueError, match="did not run"):
        RelevanceFlow(model, [nn.Linear(2, 2)]).attribute(token_ids(1), TARGET)
    chain = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with pytest.raises(ValueError, match="no positions in common"):
        RelevanceFlow(chain, list(chain)).attribute(torch.ones(1, 3), 0)
    graph, ids, tokens, are = drawn
    with pytest.raises(ValueError, match="for 6 positions"):
        graph.to_dict(ids[1:], tokens, are)


def test_a_value_that_is_not_finite_is_refused():
    model = tiny("gpt2")
    model.transformer.h[1].mlp.register_forward_hook(lambda *call: call[-1] * float("nan"))
    with pytest.raises(ValueError, match=r"row 0 is nan.*transformer\.h\.1\.mlp"):
        RelevanceFlow(model, layers_of(model)).attribute(token_ids(1), TARGET)
