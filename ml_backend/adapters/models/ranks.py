"""Several processes that train one network together, one per GPU: data-parallel, averaged gradients."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from multiprocessing import get_context
from typing import Any

import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from ml_backend.adapters.processes.child import free_port
from ml_backend.domain.errors import NotReady

Progress = Callable[[int, int], None]


class Ranks:
    """What one of ``size`` processes says to the others; alone it says nothing.

    Every rank must call the same methods in the same order.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make every rank's gradients the mean of all ranks' (n processes see n batches a step).

        DistributedDataParallel takes as long a step, and warns in torch 2.15 whatever it is told of buffers
        and unused parameters; self-training's steps without a sure image have some.
        """
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.size
        at = 0
        for gradient in gradients:
            gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient))
            at += gradient.numel()

    def alike(self, module: nn.Module) -> None:
        """Give every rank the weights of the first."""
        if self.size > 1:
            for value in module.state_dict().values():
                distributed.broadcast(value, 0)

    def agree(self, value: float, device: torch.device) -> float:
        """The first rank's value, for decisions that all must take alike."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=device)
        distributed.broadcast(shared, 0)
        return float(shared[0])


def together(size: int, work: Callable[..., None], arguments: tuple[Any, ...], progress: Progress) -> None:
    """Run ``work(ranks, device, tell, *arguments)`` in ``size`` processes; NotReady where one dies.

    One per GPU where there are enough of them (NCCL), else on the CPU (gloo). ``tell(done, total)`` of the
    first rank reaches ``progress``. Ctrl+C stops all of them.
    """
    queue = get_context("spawn").SimpleQueue()
    cuda = torch.cuda.is_available() and torch.cuda.device_count() >= size
    port = free_port()
    context = spawn(_run, (size, port, cuda, queue, work, arguments), nprocs=size, join=False)
    assert context is not None  # noqa: S101
    ended = False
    try:
        while not ended:
            ended = context.join(0.2)
            while not queue.empty():
                progress(*queue.get())
    except (ProcessExitedException, ProcessRaisedException) as error:
        raise NotReady(
            f"One of {size} processes of the fine-tuning died: {str(error).strip().splitlines()[-1]}.",
            "Its log says why; RUSH_GPUS=1 trains in one process.",
        ) from error
    except BaseException:
        for process in context.processes:
            process.terminate()
        raise


def _run(
    rank: int,
    size: int,
    port: int,
    cuda: bool,
    queue: Any,
    work: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    device = f"cuda:{rank}" if cuda else "cpu"
    if cuda:
        torch.cuda.set_device(rank)
    distributed.init_process_group("nccl" if cuda else "gloo", rank=rank, world_size=size)
    try:
        tell = (lambda done, total: queue.put((done, total))) if rank == 0 else (lambda done, total: None)
        work(Ranks(rank, size), device, tell, *arguments)
    finally:
        distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of gloo may still release a tensor, which aborts in an interpreter that is being finalized.
    os._exit(0)
