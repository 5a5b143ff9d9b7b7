"""Train mode: dropout, batch norm's running statistics."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch

from twinvit.port.call import Call
from twinvit.port.causes import Variant, cause
from twinvit.port.ops import BATCH_NORMS
from twinvit.port.record.draws import given_to, scaled_from, scaled_to


@cause(
    "dropout_on",
    on=(
        "softmax",
        "addmm",
        "gelu",
        "relu",
        "silu",
        "view",
        "add",
        "mm",
        "bmm",
        "convolution",
        "native_layer_norm",
        "tanh",
        "embedding",
        "native_batch_norm",
        "cat",
        "mul",
        "div",
    ),
)
def dropout_on(call: Call) -> Iterator[Variant]:
    """The port's dropout is on where the reference's is off."""
    if call.index is None or not call.out.is_floating_point() or call.out.numel() < 32:
        return
    x = call.out.detach()
    for entry_id in call.index.ids(x.numel()):
        entry = call.index.entries[entry_id]
        if (
            entry.name not in ("select_n", "mul", "where")
            or entry_id in call.claimed
            or entry.value is None
        ):
            continue
        value = torch.from_numpy(entry.value.copy())
        zeros = float((value == 0).double().mean())
        if not 0.005 < zeros < 0.95:
            continue
        for order in itertools.permutations(range(value.ndim)) if value.ndim <= 4 else ():
            moved = value.permute(order)
            if moved.shape != x.shape:
                continue
            kept = (moved != 0) & (x != 0)
            if not bool(kept.any()):
                continue
            ratio = (moved / x)[kept]
            if (
                float((ratio - ratio[0]).abs().max()) <= 1e-9 * abs(float(ratio[0]))
                and float(ratio[0]) > 1 + 1e-6  # what is not scaled is a mask, and no dropout
            ):
                mask = torch.where(moved != 0, ratio[0], 0.0)
                rate = 1 - 1 / float(ratio[0])
                yield Variant(
                    f"the port's dropout is on here, rate {rate:.3g}, and the reference has none"
                    if call.train
                    else f"the port's dropout is on here, rate {rate:.3g}; "
                    "set deterministic, eval or inference mode",
                    lambda *args, m=mask, **kw: _times(call.run(*args, **kw), m),
                )
                break


@cause("layer_order", on=())
def layer_order(_: Call) -> Iterator[Variant]:
    """The port holds the layers of a stack in another order, or one of them for all (known
    from the weights)."""
    return iter(())


@cause("dropout_missing", on=("mul", "where", "masked_fill", "native_dropout"), what="train")
def dropout_missing(call: Call) -> Iterator[Variant]:
    """The port has no dropout (or stochastic depth) where the reference has it in train mode."""
    graph, node = call.graph, call.node
    given = given_to(graph, node)
    if given is None or node.outs[0] is None:
        return
    text = "the port has no dropout here; the reference has it in train mode"
    for out in scaled_to(graph, node.outs[0]):
        for source in scaled_from(graph, given):
            yield Variant(text, lambda x: x, refs=(source,), node=graph.producer[out])


def _times(out: Any, mask: torch.Tensor) -> Any:
    return out * mask if isinstance(out, torch.Tensor) else (out[0] * mask, *out[1:])


@cause("bn_frozen", on=BATCH_NORMS, what="train")
def bn_frozen(call: Call) -> Iterator[Variant]:
    """The port never updates its running statistics."""
    if len(call.outs) != 5 or not call.args[5]:
        return

    for which, frozen in (
        ("statistics stay", (3, 4)),
        ("mean stays", (3,)),
        ("variance stays", (4,)),
    ):

        def fn(*args: Any, frozen: tuple[int, ...] = frozen, **kw: Any) -> Any:
            out = call.run(*args, **kw)
            return tuple(args[i].clone() if i in frozen else x for i, x in enumerate(out))

        yield Variant(
            f"the port's running {which} as before in train mode; the reference's move by "
            f"{call.args[6]:g} (keep the new state that the call returns)",
            fn,
        )


@cause("bn_momentum", on=BATCH_NORMS, what="train")
def bn_momentum(call: Call) -> Iterator[Variant]:
    """The port's running statistics move by 1 - m for m, or by another momentum."""
    if len(call.outs) < 5:
        return
    own = call.args[6]
    for m in dict.fromkeys((1 - own, 0.1, 0.01, 0.9, 0.99, 0.03, 0.001, 0.999)):
        if abs(m - own) > 1e-12:
            yield Variant(
                f"the port's running statistics move by {m:g}; the "
                f"reference's by {own:g} (Flax's momentum is 1 minus PyTorch's)",
                call.with_args(a6=m),
            )


@cause("bn_variance", on=BATCH_NORMS, what="train")
def bn_variance(call: Call) -> Iterator[Variant]:
    """The port's running variance takes the biased variance of the batch; the reference the
    unbiased one."""
    if len(call.outs) < 5:
        return

    def fn(*args: Any, **kw: Any) -> Any:
        out = call.run(*args, **kw)
        n = args[0].numel() / args[0].shape[1]
        old = args[4]
        batch = args[0].transpose(0, 1).flatten(1).var(1, correction=1)
        m = (
            (out[4] - old) / (batch - old)
        ).median()  # the present momentum, which an edit may have changed
        return (*out[:4], (1 - m) * old + m * batch * (n - 1) / n)

    yield Variant(
        "the port's running variance takes the batch's variance over n; the reference over n - 1",
        fn,
    )
