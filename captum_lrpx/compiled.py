"""Blocks that are compiled together with their rules: fewer and larger operations.

Between the matrix products of a block, forward and backward, stand many small operations: norms,
activations, rotations, and the slopes of the rules. The compiler of PyTorch makes few of them. It
sees a copy of the model's modules with the rules attached (the parameters are shared), so that the
model itself is never traced. Blocks that do the same operations on other weights, as the blocks of
a transformer do, share one compiled graph.
"""

from __future__ import annotations

import operator
import threading
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree

from captum_lrpx.module_tree import modules_of
from captum_lrpx.onlookers import HOOKS, all_modules_are_hooked, is_hooked, is_wrapped
from captum_lrpx.rules.patches import Attachment
from captum_lrpx.rules.sparse import is_linear_class, is_transformed

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from contextlib import AbstractContextManager

    from captum_lrpx.plans import Plan
    from captum_lrpx.sites import Sites

__all__ = ["BACKEND", "Graph", "compiled_blocks"]

BACKEND: Final = "inductor"
"""The backend of ``torch.compile`` that is used."""

_CONSTANTS: Final = (bool, int, float, str, NoneType)

_lock = threading.RLock()


def compiled_blocks(
    model: nn.Module,
    sites: Sites,
    plan: Plan,
    attach: Callable[[nn.Module], AbstractContextManager[object]],
) -> list[Attachment]:
    """Patches that compile each block but the last, which may compute some positions only.

    Args:
        model: A transformers model.
        sites: Of the model.
        plan: What the rules patch; it keeps what is compiled.
        attach: Attaches the same rules to a copy of the model.

    Raises:
        ValueError: If a block has a layer of a class of its own, or a module a rule of its own.
    """
    _require_compilable(sites, plan.modules)
    compiler = _Compiler(model, plan.graphs, attach)
    blocks = sites.blocks[:-1]
    return [
        Attachment(each.module, _CompiledBlock(each.path, each.module, compiler)) for each in blocks
    ]


def _require_compilable(sites: Sites, modules: Sequence[nn.Module]) -> None:
    for block in sites.blocks[:-1]:
        for site in sites.linear:
            if site.path.startswith(f"{block.path}.") and not is_linear_class(site.module):
                raise ValueError(
                    f"compile=True takes plain linear layers only, but {site.path!r} is a "
                    f"{type(site.module).__name__}: merge adapters and explain quantized models "
                    "without compile=True."
                )
    if any("rule" in vars(module) for module in modules):
        raise ValueError(
            "compile=True takes rules from the recipe only, but a module has a `rule` attribute of "
            "its own: put its rule into the recipe as an override."
        )


class _Compiler:
    """Compiles the blocks of a model for the time of one propagation.

    Args:
        model: A transformers model.
        graphs: What has been compiled for this model under these rules, which is added to.
        attach: Attaches the same rules to a copy of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        graphs: dict[Hashable, Graph],
        attach: Callable[[nn.Module], AbstractContextManager[object]],
    ) -> None:
        self.model = model
        self.graphs = graphs
        self.attach = attach
        self.settings = repr(vars(model.config))
        self._twin: nn.Module | None = None

    def graph_for(self, path: str, state: Hashable, call: _Call) -> Graph:
        """The compiled graph of a block for calls of one kind, compiled the first time."""
        key = (path, self.settings, BACKEND, state, call.kind)
        found = self.graphs.get(key)
        if found is None:
            with _lock:
                found = self.graphs.get(key)
                if found is None:
                    found = self.graphs[key] = self._compile(path, state, call)
        return found

    def _compile(self, path: str, state: Hashable, call: _Call) -> Graph:
        block = self._copy_of(path, state)
        # What is saved here is none of the graph that somebody may be watching (checkpointing).
        with self.attach(self._twin_of_now()), saved_tensors_hooks(_itself, _itself):
            block(*call.args, **call.kwargs)  # some rules look at the values of their first call
        with self.attach(self._twin_of_now()), saved_tensors_hooks(_itself, _itself):
            program = _Program(block, call)
            try:
                key = (program.operations(call), program.outputs.kind, BACKEND, call.kind)
                if key not in self.graphs:
                    self.graphs[key] = program.compiled(call)
            except Exception as error:
                raise RuntimeError(
                    f"The block {path!r} cannot be compiled together with its rules (the cause is "
                    "above; the backend for CPUs needs a C++ compiler). Without compile=True it "
                    "can be explained."
                ) from error
        return self.graphs[key]

    def _copy_of(self, path: str, state: Hashable) -> nn.Module:
        block = self._twin_of_now().get_submodule(path)
        if _state(block) != state:  # something was set since the copy was made
            self._twin = None
            block = self._twin_of_now().get_submodule(path)
        return block

    def _twin_of_now(self) -> nn.Module:
        if self._twin is None:
            self._twin = _twin(self.model, {})
        return self._twin


class _CompiledBlock:
    """A patch of a block, as in :mod:`captum_lrpx.rules.patches`: the outermost of the rules.

    Args:
        path: Of the block in the model.
        block: The block.
        compiler: Gives its compiled graphs.
    """

    def __init__(self, path: str, block: nn.Module, compiler: _Compiler) -> None:
        self.path = path
        self.block = block
        self.compiler = compiler

    def __call__(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the compiled block; a pass without a gradient runs as always.

        Raises:
            RuntimeError: If the block has hooks inside, or gets something that is neither a tensor
                nor a constant; or if it cannot be compiled.
        """
        call = _Call(self.block, args, kwargs)
        if not torch.is_grad_enabled() or not call.needs_gradient:
            return forward(*args, **kwargs)
        obstacle = call.obstacle() or _obstacle(self.block)
        if obstacle:
            raise RuntimeError(f"With compile=True {obstacle} (block {self.path!r}).")
        return self.compiler.graph_for(self.path, _state(self.block), call)(call.tensors)


class _Place(NamedTuple):
    """Where in a list of tensors the one is that stood here."""

    number: int


class _Layout(NamedTuple):
    """Nested arguments or outputs, without their tensors.

    Attributes:
        leaves: Constants, and places of tensors.
        structure: How they are nested.
    """

    leaves: tuple[Any, ...]
    structure: pytree.TreeSpec

    @classmethod
    def of(cls, nested: Any) -> tuple[_Layout, list[Tensor]]:
        """The layout, and the different tensors in order."""
        leaves, structure = pytree.tree_flatten(nested)
        tensors = {id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor)}
        places = {each: _Place(number) for number, each in enumerate(tensors)}
        places_and_constants = tuple(places.get(id(leaf), leaf) for leaf in leaves)
        return cls(places_and_constants, structure), list(tensors.values())

    @property
    def kind(self) -> Hashable:
        """Equal for equal layouts."""
        return self.leaves, repr(self.structure)

    def unknown(self) -> str | None:
        """The class of something that is neither a tensor nor a constant."""
        known = (*_CONSTANTS, _Place, torch.dtype, torch.device)
        return next(
            (type(leaf).__name__ for leaf in self.leaves if not isinstance(leaf, known)), None
        )

    def filled(self, tensors: Sequence[Tensor]) -> Any:
        """The nested arguments or outputs, with these tensors."""
        leaves = [
            tensors[leaf.number] if isinstance(leaf, _Place) else leaf for leaf in self.leaves
        ]
        return pytree.tree_unflatten(leaves, self.structure)


class _Call:
    """One call of a block: its tensors apart from everything else.

    Attributes:
        args: Positional arguments.
        kwargs: Named arguments.
        layout: Of both.
        names: Names of the block's parameters and buffers.
        tensors: These, then the different tensors among the arguments.
    """

    def __init__(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs
        own = {**dict(block.named_parameters()), **dict(block.named_buffers())}
        self.names = tuple(own)
        self.layout, self._given = _Layout.of((args, kwargs))
        self.tensors = [*own.values(), *self._given]

    @property
    def needs_gradient(self) -> bool:
        """Whether there is a gradient to compute for an argument."""
        return any(tensor.requires_grad for tensor in self._given)

    @property
    def kind(self) -> Hashable:
        """Equal for calls for which one compiled graph is good."""
        return self.layout.kind, tuple(map(_kind, self.tensors))

    def obstacle(self) -> str | None:
        """What stands against compiling this call, as a part of a sentence."""
        unknown = self.layout.unknown()
        if unknown:
            return (
                f"a block takes tensors and constants only, but got a {unknown}: call the model "
                "with use_cache=False, and with no other objects"
            )
        if any(map(is_transformed, self._given)):
            return "a block cannot run inside of a transform of torch.func"
        if torch.is_autocast_enabled(self._given[0].device.type):
            return "a block cannot run under autocast: convert the model instead"
        return None


class Graph:
    """A compiled block.

    Args:
        run: Takes parameters, buffers and arguments, gives the tensors among the outputs.
        layout: Of the outputs.
    """

    def __init__(self, run: Callable[..., Sequence[Tensor]], layout: _Layout) -> None:
        self.run = run
        self.layout = layout

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        """The outputs of the block."""
        return self.layout.filled(self.run(*tensors))


class _Program:
    """A block with its rules as a function of tensors; it holds none of a call.

    Attributes:
        outputs: Layout of the outputs, once it has run.
    """

    outputs: _Layout

    def __init__(self, block: nn.Module, call: _Call) -> None:
        self.block = block
        self.names = call.names
        self.arguments = call.layout

    def run(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors among the outputs."""
        own = dict(zip(self.names, tensors, strict=False))
        args, kwargs = self.arguments.filled(tensors[len(own) :])
        output = torch.func.functional_call(self.block, own, args, kwargs)
        self.outputs, found = _Layout.of(output)
        unknown = self.outputs.unknown()
        if unknown:
            raise TypeError(f"The block returns a {unknown}.")
        return tuple(found)

    def operations(self, call: _Call) -> Hashable:
        """All operations of the forward and of the backward pass, in order."""
        from torch.fx.experimental.proxy_tensor import make_fx  # noqa: PLC0415 - slow to import

        wanted = [tensor.requires_grad for tensor in call.tensors]

        def joint(*tensors: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
            pairs = zip(tensors, wanted, strict=True)
            leaves = [tensor.detach().requires_grad_(needed) for tensor, needed in pairs]
            outputs = self.run(*leaves)
            ends = [output for output in outputs if output.requires_grad]
            seeds = list(map(torch.ones_like, ends))
            starts = [leaf for leaf in leaves if leaf.requires_grad]
            return outputs, torch.autograd.grad(ends, starts, seeds, allow_unused=True)

        traced = make_fx(joint, tracing_mode="fake")(*call.tensors)
        if any(node.op == "get_attr" for node in traced.graph.nodes):
            return object()  # it holds tensors of its own: equal to no other
        return traced.code

    def compiled(self, call: _Call) -> Graph:
        """The same, compiled; :meth:`operations` has to come before."""
        from torch._dynamo import lookup_backend  # noqa: PLC0415 - takes seconds to import
        from torch._functorch import config  # noqa: PLC0415

        graph = torch.fx.Graph()
        inputs = [graph.placeholder(f"tensor_{index}") for index in range(len(call.tensors))]
        outputs = graph.call_function(self.run, tuple(inputs))
        places = sorted({leaf for leaf in self.outputs.leaves if isinstance(leaf, _Place)})
        graph.output(
            tuple(graph.call_function(operator.getitem, (outputs, each.number)) for each in places)
        )
        module = torch.fx.GraphModule(nn.Module(), graph)
        with config.patch(donated_buffer=False):  # several backward passes may be made
            run = lookup_backend(BACKEND)(module, call.tensors)
        return Graph(run, self.outputs)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _kind(tensor: Tensor) -> Hashable:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad


def _state(block: nn.Module) -> Hashable:
    """What the forward of a block may look at beside tensors and the config."""
    return tuple(
        (type(module), *(pair for pair in vars(module).items() if isinstance(pair[1], _CONSTANTS)))
        for module in modules_of(block)
    )


def _obstacle(block: nn.Module) -> str | None:
    """What stands against compiling a block as it is, as a part of a sentence."""
    if all_modules_are_hooked():
        return "there can be no hooks on all modules, which would not run"
    for module in modules_of(block):
        kind = type(module).__name__
        if module is not block and is_hooked(module):
            return f"no module inside of a block can have hooks, which would not run: {kind} has"
        if is_wrapped(module):
            return f"nothing can be wrapped around a module of a block, but around {kind} is"
        if module.training:
            return f"a model must be in evaluation mode, but {kind} is not"
    return None


def _twin(module: nn.Module, known: dict[nn.Module, nn.Module]) -> nn.Module:
    """A copy of a module tree with the same parameters and buffers, without rules and hooks."""
    if module not in known:
        twin = known[module] = type(module).__new__(type(module))
        own = vars(twin)
        own.update(vars(module))
        own.pop("forward", None)
        for name in ("_parameters", "_buffers"):
            own[name] = dict(own[name])
        own |= {name: {} for name in HOOKS}
        own["_modules"] = {
            name: None if child is None else _twin(child, known)
            for name, child in module._modules.items()  # noqa: SLF001 - none are left out
        }
    return known[module]
