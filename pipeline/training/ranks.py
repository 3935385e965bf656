"""The processes that train one student together, one a GPU, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module

import torch
import torch.distributed as dist
from torch import Tensor, nn

from interkd.kernels.errors import BackendError
from interkd.pipeline.devices import resolve_device

_PATIENCE = timedelta(hours=2)  # the others wait while the first one validates


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those that train together; alone, everything here does nothing.

    Attributes:
        rank: From 0; the first one validates, logs and writes checkpoints.
        world_size: How many there are.
        local_rank: On this host: the number of its GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def join(cls) -> Ranks:
        """Meets the other processes, if `RANK`, `WORLD_SIZE` and `LOCAL_RANK` say there are any.

        Raises:
            BackendError: If they cannot be met.
        """
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if world_size == 1:
            return cls()
        if not dist.is_initialized():
            # An optimiser imports it, and what is then in the process group stays there until the
            # interpreter is gone, when gloo's threads abort it: one run in ten, seen on two cores.
            import_module("torch._dynamo")
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            try:
                dist.init_process_group(backend, timeout=_PATIENCE)
            except (RuntimeError, ValueError) as error:
                raise BackendError(
                    f"cannot meet the other {world_size - 1} processes",
                    got=error,
                    remedy="start all of them with torchrun",
                ) from error
        return cls(
            rank=dist.get_rank(),
            world_size=world_size,
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        )

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device of that name; of several processes each has its own GPU.

        Raises:
            ConfigError: As `resolve_device`.
            BackendError: Likewise.
        """
        device = resolve_device(name)
        if self.world_size > 1 and device.type == "cuda":
            device = resolve_device(f"cuda:{self.local_rank}")
        return device

    def largest(self, *values: float) -> tuple[float, ...]:
        """The largest of each value, or of a flag, over all processes; GPUs are not waited for."""
        if self.world_size == 1:
            return values
        together = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(together, dist.ReduceOp.MAX)
        return tuple(together.tolist())

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replaces tensors of one dtype by their sums over all processes."""
        if self.world_size == 1:
            return
        tensors = list(tensors)
        # As one: hundreds of small sums would wait for each other.
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def average_statistics(self, model: nn.Module) -> None:
        """Makes batch-norm statistics the mean of all processes', before anyone uses them."""
        if self.world_size == 1:
            return
        statistics = [buffer for name, buffer in model.named_buffers() if ".running_" in name]
        self.add_up(statistics)
        for buffer in statistics:
            buffer.div_(self.world_size)

    def leave(self) -> None:
        """Says goodbye, so that nobody waits for this process."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def wait(self) -> None:
        """Until all are here."""
        if self.world_size > 1:
            dist.barrier()
