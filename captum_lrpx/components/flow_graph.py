"""Flow of relevance through a model as a graph: positions of layers, and flows between."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from captum.attr import LayerAttribution
from torch import Tensor, nn

from captum_lrpx import _captum
from captum_lrpx.attr.engine import forward_pass
from captum_lrpx.attr.keywords import entry_point
from captum_lrpx.attr.protocol import require_gradients, tensors_of
from captum_lrpx.components.layers import LayerRules
from captum_lrpx.extras import imported
from captum_lrpx.files import write_text

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from captum_lrpx._captum import TargetType
    from captum_lrpx.recipes import Recipe


_VIEW = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
"""What a viewer of the schema shows at first: nothing pinned, grouped or clicked."""

_NODE = {
    "node_id": "",
    "feature": 0,
    "layer": "",
    "ctx_idx": 0,
    "feature_type": "",
    "token_prob": 0.0,
    "is_target_logit": False,
    "run_idx": 0,
    "reverse_ctx_idx": 0,
    "jsNodeId": "",
    "clerp": "",
    "influence": None,
    "activation": None,
}
"""The fields of a node in the schema."""


@dataclass(frozen=True)
class RelevanceGraph:
    """Relevance of each position in each layer, and how it flows from one layer to the next.

    Attributes:
        nodes: ``[L, T]``, in the order of the layers, starting at the inputs.
        edges: ``[L - 1, T, T]``: entry ``[l, t, s]`` is the relevance that position t of layer l +
            1 passes on to position s of layer l.
        value: The explained value.
    """

    nodes: Tensor
    edges: Tensor
    value: float

    def to_dict(
        self,
        ids: Tensor,
        tokens: Sequence[str],
        target: int,
        *,
        target_text: str = "",
        probability: float = 0.0,
        name: str = "relevance",
        model: str = "model",
        least: float = 0.0,
    ) -> dict[str, Any]:
        """Convert the graph to the schema of attribution graphs of circuit-tracer and Neuronpedia.

        The first layer stands for the tokens; all others are separate nodes.

        Args:
            ids: Token ids ``[T]``.
            tokens: The tokens as shown.
            target: Id of the explained token; its node is at the last position.
            target_text: The explained token as shown.
            probability: Its probability.
            name: Name of the graph (its "slug").
            model: Name of the model (its "scan").
            least: Edges below this share of the largest are left out.

        Raises:
            ValueError: If the numbers of ids, tokens and positions differ.
        """
        count = self.nodes.shape[1]
        if not len(ids) == len(tokens) == count:
            raise ValueError(
                f"There are {len(ids)} ids and {len(tokens)} tokens for {count} positions."
            )
        names = [[f"E_{int(token)}_{place}" for place, token in enumerate(ids)]]
        names += [
            [f"{layer}_0_{place}" for place in range(count)] for layer in range(len(self.edges))
        ]
        goal = f"{len(self.edges) + 1}_{target}_{count - 1}"
        output = _NODE | {
            "node_id": goal,
            "jsNodeId": goal,
            "layer": str(len(self.edges) + 1),
            "feature": target,
            "ctx_idx": count - 1,
            "feature_type": "logit",
            "clerp": f'Output "{target_text}" (p={probability:.3f})',
            "token_prob": probability,
            "is_target_logit": True,
        }
        return {
            "metadata": {
                "slug": name,
                "scan": model,
                "transcoder_list": [],
                "prompt_tokens": list(tokens),
                "prompt": "".join(tokens),
                "node_threshold": None,
                "schema_version": 1,
            },
            "qParams": dict(_VIEW),
            "nodes": [*self._nodes(names, tokens), output],
            "links": self._links(names, goal, least),
        }

    def _nodes(self, names: list[list[str]], tokens: Sequence[str]) -> list[dict[str, Any]]:
        shares = self.nodes.abs() / self.nodes.abs().sum(1, keepdim=True).clamp(min=1e-30)
        return [
            _NODE
            | {
                "node_id": names[layer][place],
                "jsNodeId": names[layer][place],
                "layer": "E" if layer == 0 else str(layer - 1),
                "feature": place if layer == 0 else (layer - 1) * layer // 2,
                "ctx_idx": place,
                "feature_type": "embedding" if layer == 0 else "cross layer transcoder",
                "clerp": token if layer == 0 else f"layer {layer}, {token}",
                "influence": float(shares[layer, place]),
                "activation": float(self.nodes[layer, place]),
            }
            for layer in range(len(names))
            for place, token in enumerate(tokens)
        ]

    def _links(self, names: list[list[str]], goal: str, least: float) -> list[dict[str, Any]]:
        links: list[dict[str, Any]] = [
            {"source": names[layer][source], "target": names[layer + 1][place], "weight": weight}
            for layer, place, source, weight in self._flows()
        ]
        links += [
            {"source": source, "target": goal, "weight": weight}
            for source, weight in zip(names[-1], self.nodes[-1].tolist(), strict=True)
        ]
        largest = max((abs(link["weight"]) for link in links), default=0.0)
        return [link for link in links if link["weight"] and abs(link["weight"]) >= least * largest]

    def _flows(self) -> Iterator[tuple[int, int, int, float]]:
        """Layer, position, position in the layer before, and weight of each edge but zeros."""
        weights = self.edges[self.edges != 0].tolist()
        for place, weight in zip(self.edges.nonzero().tolist(), weights, strict=True):
            yield *place, weight

    def to_json(self, path: str | os.PathLike[str], *args: Any, **options: Any) -> None:
        """Write the graph as JSON, see :meth:`to_dict`.

        Args:
            path: The file.
            *args: Arguments of :meth:`to_dict`.
            **options: The same.

        Raises:
            OSError: If the file cannot be written.
            ValueError: As :meth:`to_dict`.
        """
        write_text(path, json.dumps(self.to_dict(*args, **options), indent=1) + "\n")

    def plot(self, tokens: Sequence[str], *, least: float = 0.02) -> Any:
        """Draw the graph: positions from left to right, layers from bottom to top.

        Args:
            tokens: The tokens as shown.
            least: Edges below this share of the largest are left out.

        Returns:
            A figure of matplotlib.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If there is not a token for each position.
        """
        if len(tokens) != self.nodes.shape[1]:
            raise ValueError(f"{len(tokens)} tokens do not name {self.nodes.shape[1]} positions.")
        plt = imported(
            "matplotlib.pyplot",
            "A picture of a graph needs matplotlib: `pip install captum-lrpx[plot]`.",
        )
        layers, count = self.nodes.shape
        figure, axis = plt.subplots(
            figsize=(1.5 + 0.8 * count, 1 + 0.6 * layers), layout="constrained"
        )
        largest = float(self.edges.abs().max()) if self.edges.numel() else 0.0
        for layer, place, source, weight in self._flows():
            if abs(weight) >= least * largest:
                strength = abs(weight) / largest
                axis.plot(
                    [source, place],
                    [layer, layer + 1],
                    color="red" if weight > 0 else "blue",
                    alpha=0.15 + 0.85 * strength,
                    linewidth=0.3 + 4 * strength,
                    zorder=1,
                )
        limit = float(self.nodes.abs().max()) or 1.0
        places = [(place, layer) for layer in range(layers) for place in range(count)]
        axis.scatter(
            *zip(*places, strict=True),
            c=self.nodes.flatten().tolist(),
            cmap="bwr",
            vmin=-limit,
            vmax=limit,
            edgecolors="gray",
            zorder=2,
        )
        axis.set_xticks(range(count), tokens, rotation=45, ha="right")
        axis.set_yticks(range(layers))
        axis.set_ylabel("layer")
        return figure


class RelevanceFlow(LayerRules, LayerAttribution):
    r"""Flow of relevance from layer to layer, position by position.

    The relevance of a position in a layer is computed as by :class:`~captum_lrpx.LayerLRPx`. Each
    position passes it on to the positions of the layer before, by the same rules: one backward pass
    between two layers for each position. If all paths lead through the layers (the residual stream
    after each block), and the rules conserve, a position passes on all of its relevance.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layers: Sequence[nn.Module],
        *,
        model: nn.Module | None = None,
        recipe: Recipe | None = None,
        strict: bool = True,
    ) -> None:
        r"""Find the model.

        Args:
            forward_func (Callable): The forward function of the model or any modification of it,
                as for :class:`LRPx`.
            layers (list of torch.nn.Module): Layers in the order in which they run, the token
                embedding first: ``[embedding, *blocks]``.
            model (torch.nn.Module, optional): The model that ``forward_func`` runs.
                Default: found in ``forward_func``.
            recipe (Recipe, optional): The rules. Default: AttnLRP's
            strict (bool, optional): Whether ``attribute`` refuses a non-linear operation without a
                rule. Default: True

        Raises:
            ValueError: If no model is found.
            TypeError: If a layer is no module.
        """
        LayerAttribution.__init__(self, forward_func, list(layers))
        self.set_layers(forward_func, list(layers), model, recipe, strict=strict)

    @entry_point
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object | None = None,
    ) -> RelevanceGraph:
        r"""Compute the graph of one text.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): Inputs of ``forward_func``, of one row.
            target (int, tuple, Tensor, or list, optional): Target within the output.
                Default: None
            additional_forward_args (Any, optional): Arguments of ``forward_func`` after the inputs.
                Default: None

        Returns:
            *RelevanceGraph*: Nodes and edges.

        Raises:
            AssertionError: Captum's errors for inputs and targets that do not fit.
            ValueError: If there are several rows, a layer does not run, or layers have no
                positions in common or run in another order.
            RuntimeError: Under ``torch.inference_mode``.

        Examples::

            >>> layers = [model.get_input_embeddings(), *model.model.layers]
            >>> graph = RelevanceFlow(model, layers).attribute(ids, target=(-1, are))
            >>> graph.nodes[-1], graph.edges[0]  # [T], [T, T]
        """
        require_gradients()
        tensors = tensors_of(inputs)
        if len(tensors[0]) != 1:
            raise ValueError(
                f"A graph is of one text, but the inputs have {len(tensors[0])} rows: call it for "
                "each."
            )
        with forward_pass(
            self,
            tensors,
            additional_forward_args,
            targets=[target],
            layers=self.modules,
            at_inputs=False,
        ) as passed:
            _check_positions(self.rows_of(passed.layers, 1))
            _check_order(self.model, self.modules, list(passed.layers))
            finite = self.finite(tensors, additional_forward_args)
            explained = passed.explain(
                lambda run: finite.require(_captum.select_targets(run.output, target)),
                self.tensors_of,
            ).reshape(())
            sources = self.tensors_of(passed)
            values = self.rows_of(passed.layers, 1)
            slopes = torch.autograd.grad(
                explained, sources, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            edges = [
                _flow(low, high, slope)
                for low, high, slope in zip(sources, sources[1:], slopes[1:], strict=False)
            ]
            nodes = [
                (value * slope).flatten(2).sum(-1)[0]
                for value, slope in zip(values, slopes, strict=True)
            ]
        count = values[0].shape[1]
        return RelevanceGraph(
            torch.stack(nodes).detach(),
            torch.stack(edges) if edges else torch.zeros(0, count, count),
            float(explained.detach()),
        )


def _check_positions(values: Sequence[Tensor]) -> None:
    if len({tuple(value.shape[:2]) for value in values}) > 1 or values[0].ndim < 3:
        raise ValueError(
            "The layers have no positions in common, but "
            f"{', '.join(str(list(value.shape)) for value in values)}: give layers of "
            "hidden states [1, T, D]."
        )


def _check_order(model: nn.Module, given: Sequence[nn.Module], ran: Sequence[nn.Module]) -> None:
    if list(given) != list(ran):
        paths = {module: path for path, module in model.named_modules()}
        order = ", ".join(paths.get(layer, type(layer).__name__) for layer in ran)
        raise ValueError(
            f"Relevance flows from a layer to the one before, but these run in the order {order}: "
            "give them in this order, each once."
        )


def _flow(low: Tensor, high: Tensor, slope: Tensor) -> Tensor:
    """Relevance that each position of a layer passes on to each position before, ``[T, T]``."""
    rows = []
    for place in range(high.shape[1]):
        seed = torch.zeros_like(slope)
        seed[:, place] = slope[:, place]
        (found,) = torch.autograd.grad(
            high, low, seed, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        rows.append((low.detach() * found).flatten(2).sum(-1)[0])
    return torch.stack(rows)
