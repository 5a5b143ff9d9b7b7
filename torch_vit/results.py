"""Results copied from the device, summed over processes.

They are read without waiting for later work.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist


class ResultFuture:
    """`get()` is `finish` of the floats: `summed` scalars, added up over all processes, then `own`
    scalars."""

    def __init__(self, summed: list[torch.Tensor], own: list[torch.Tensor], finish: Callable):
        self.finish = finish
        sums = torch.stack(summed)
        self.own = [x.detach() for x in own]
        on_gpu = sums.is_cuda
        self.work = None
        if dist.is_initialized():
            # On a GPU the call only queues; on a CPU it would wait for the slowest process, so it
            # goes on by itself.
            self.work = dist.all_reduce(sums, async_op=not on_gpu)
        self.values = (
            torch.cat([sums, *(x.reshape(1).to(sums.dtype) for x in self.own)]) if on_gpu else sums
        )
        self.event = None
        if on_gpu:
            host = torch.empty(self.values.shape, dtype=self.values.dtype, pin_memory=True)
            host.copy_(self.values, non_blocking=True)
            self.values, self.own = host, []
            self.event = torch.cuda.Event()
            self.event.record()

    def get(self):
        if self.work is not None:
            self.work.wait()
        if self.event is not None:
            self.event.synchronize()
        return self.finish(self.values.tolist() + [x.item() for x in self.own])
