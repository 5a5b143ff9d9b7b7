"""Edits of the reference that leave its outputs and change its gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from twinvit.port.record.graph import Graph, Node

Function = Callable[..., Any]

NORM_GRAD = (
    "the derivative of this norm at zero is NaN in the port, as the square root's is infinite "
    "there; the reference's is 0"
)
UNUSED_NAN = (
    "the port computes what follows this also where it is not used: the derivative there is not "
    "finite and the gradient NaN; the reference puts another number in first"
)


class Candidate(NamedTuple):
    """An edit at one operation.

    Attributes:
        broken: it makes gradients that are not finite.
    """

    node: Node
    cause: str
    text: str
    function: Function
    broken: bool = False


def candidates(graph: Graph, broken: bool) -> Iterator[Candidate]:
    """Edits that leave every output and change gradients, the last operations first.

    Args:
        broken: the port has gradients that are not finite.
    """
    nodes = [node for node in reversed(graph.nodes) if _carries(graph, node)]
    if broken:
        for node in nodes:
            yield from _making_nan(node)
    for node in nodes:
        yield from _passing(node)


def _carries(graph: Graph, node: Node) -> bool:
    """True for an operation that a gradient may pass."""
    out = next((o for o in node.outs if o is not None), None)
    consumed = out is not None and bool(graph.consumers.get(out))
    return consumed and graph.values[out or 0].dtype == torch.float64


def _passing(node: Node) -> Iterator[Candidate]:
    """Edits that cut the gradient at an operation, or let it flow."""
    op = node.op

    def cut(*args: Any, **kwargs: Any) -> Any:
        made = op(*args, **kwargs)
        if isinstance(made, torch.Tensor):
            return made.detach()
        return tuple(m.detach() if isinstance(m, torch.Tensor) else m for m in made)

    yield Candidate(
        node,
        "grad_detached",
        "no gradient flows through this in the port (stop_gradient); the reference does not "
        "detach it",
        cut,
    )
    if node.name == "detach":
        yield Candidate(
            node,
            "grad_detached",
            "the reference detaches this; in the port a gradient flows through it",
            lambda x: x,
        )


def _making_nan(node: Node) -> Iterator[Candidate]:
    """Edits whose derivative is not finite where the operation's is."""
    op = node.op

    def norm(
        x: torch.Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, **kw: Any
    ) -> Any:
        dims = tuple(range(x.ndim)) if dim is None else dim
        plain = (x * x).sum(dims, keepdim=keepdim).sqrt()
        return plain + (op(x, ord, dim, keepdim, **kw) - plain).detach()

    def distances(x: torch.Tensor, y: torch.Tensor, *rest: Any, **kw: Any) -> Any:
        plain = (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1).sqrt()
        return plain + (op(x, y, *rest, **kw) - plain).detach()

    if node.name in ("linalg_vector_norm", "norm") and (node.args[1:2] or (2,))[0] == 2:
        yield Candidate(node, "norm_grad", NORM_GRAD, norm, True)
    if node.name in ("_cdist_forward", "_euclidean_dist"):
        yield Candidate(node, "norm_grad", NORM_GRAD, distances, True)
    for k in {"where": (1, 2), "masked_fill": (0,)}.get(node.name, ()):

        def unguarded(*args: Any, k: int = k, **kwargs: Any) -> Any:
            made = op(*args, **kwargs)
            return args[k].expand(made.shape) if isinstance(args[k], torch.Tensor) else made

        yield Candidate(node, "unused_nan", UNUSED_NAN, unguarded, True)
