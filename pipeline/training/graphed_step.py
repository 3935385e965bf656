"""CUDA graphs of the training step: the host asks once a shape of batch, then only replays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace

import torch
from torch import Tensor

from interkd.kernels.sparse import SparsePosteriors
from interkd.pipeline.training.data import Batch

Step = Callable[[Batch], Tensor]
Shape = tuple[int, ...]

_ROOM = 1.25  # for the teacher's frames and entries, whose number varies within a shape
_MOST_GRAPHS = 200  # a store read part by part makes ever new shapes of what is left over


class GraphStream:
    """Where graphs are captured and replayed, one at a time, in one pool of memory.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Work within comes after all that was asked for before, and before all after it."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            yield
        current.wait_stream(self.stream)

    def capture(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """The function as a graph; nothing runs yet."""
        graph = torch.cuda.CUDAGraph()
        # Threads that prepare batches pin memory meanwhile, which a global mode would forbid.
        with torch.cuda.graph(
            graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
        ):
            result = function()

        def replay() -> Tensor:
            graph.replay()
            return result.clone()  # the next replay writes there

        return replay


class GraphedCall:
    """Runs a function as it is the first time, then as a graph.

    Args:
        function: Waits for nothing; what it reads and writes must stay where it is.
        stream: Where to run it.
    """

    def __init__(self, function: Callable[[], Tensor], stream: GraphStream) -> None:
        self.function = function
        self.stream = stream
        self.calls = 0
        self.replay: Callable[[], Tensor] | None = None

    def __call__(self) -> Tensor:
        """The function's result, a tensor of its own."""
        with self.stream.entered():
            self.calls += 1
            if self.calls == 1:
                return self.function()
            if self.replay is None:
                self.replay = self.stream.capture(self.function)
            return self.replay()


class GraphedStep:
    """Runs a step as it is the first time that it meets a shape of batch, then as a graph.

    A step of a small student is thousands of short kernels: asking for them takes the host longer
    than the GPU needs to run them. A graph is asked for whole. The first, ordinary step of a shape
    compiles, allocates and makes the optimiser's state, none of which may happen in a capture.

    Args:
        step: Work on a batch on the device, without waiting for it; returns the figures to log.
            What it reads and writes besides the batch must stay where it is.
        stream: Where to run it.
    """

    def __init__(self, step: Step, stream: GraphStream) -> None:
        self.step = step
        self.stream = stream
        self.met: set[Shape] = set()
        self.graphs: dict[Shape, _Graph] = {}

    def __call__(self, batch: Batch) -> Tensor:
        """One step on a batch in pinned host memory; the figures, on the device."""
        with self.stream.entered():
            return self._run(batch)

    def _run(self, batch: Batch) -> Tensor:
        shape = batch_shape(batch)
        if shape not in self.met:
            self.met.add(shape)
            return self.step(with_room(batch).to(self.stream.device))
        graph = self.graphs.get(shape)
        if graph is None and len(self.graphs) == _MOST_GRAPHS:
            return self.step(with_room(batch).to(self.stream.device))
        if graph is None or not graph.holds(batch):
            graph = _Graph(self.step, batch, self.stream)
            self.graphs[shape] = graph  # only now may another one go: the pool is never without
        return graph.replay(batch)


def batch_shape(batch: Batch) -> Shape:
    """What a graph is made for: utterances, samples, targets."""
    return (len(batch.sample_lengths), batch.longest, *batch.targets.shape)


class _Graph:
    """One captured step and the batch that it reads."""

    def __init__(self, step: Step, batch: Batch, stream: GraphStream) -> None:
        self.batch = held = with_room(batch).to(stream.device)
        self.run = stream.capture(lambda: step(held))

    def holds(self, batch: Batch) -> bool:
        """Whether a batch's posteriors fit."""
        mine, other = self.batch.teacher, batch.teacher
        return (
            mine is None
            or other is None
            or (
                len(other.tokens) <= len(mine.tokens)
                and len(other.entry_offsets) < len(mine.entry_offsets)
            )
        )

    def replay(self, batch: Batch) -> Tensor:
        """Runs the step on another batch of the shape."""
        for field in fields(batch):
            mine, other = getattr(self.batch, field.name), getattr(batch, field.name)
            if isinstance(mine, Tensor):
                mine.copy_(other, non_blocking=True)
        if self.batch.teacher is not None and batch.teacher is not None:
            refill(self.batch.teacher, batch.teacher)
        return self.run()


def with_room(batch: Batch) -> Batch:
    """The batch with posteriors that others of its shape fit into as well.

    At least one frame is room. Sizes are multiples of 16: Triton compiles a kernel anew for sizes
    that are and sizes that are not, and may not do so in a capture.
    """
    teacher = batch.teacher
    if teacher is None:
        return batch
    entries = len(teacher.tokens)
    frames_held = _rounded(_ROOM * len(teacher.entry_offsets))
    entries_held = _rounded(_ROOM * entries)
    roomy = SparsePosteriors(
        frame_offsets=teacher.frame_offsets,
        entry_offsets=_longer(teacher.entry_offsets, frames_held + 1, entries),
        tokens=_longer(teacher.tokens, entries_held, 0),
        log_probs=_longer(teacher.log_probs, entries_held, 0),
        vocab_size=teacher.vocab_size,
        blank_index=teacher.blank_index,
    )
    return replace(batch, teacher=roomy)


def _rounded(size: float) -> int:
    return 16 * math.ceil(max(1.0, size) / 16)


def _longer(column: Tensor, length: int, value: int) -> Tensor:
    return torch.nn.functional.pad(column, (0, length - len(column)), value=value)


def refill(mine: SparsePosteriors, other: SparsePosteriors) -> None:
    """Puts other posteriors into columns with room; frames past the last have no entries."""
    mine.frame_offsets.copy_(other.frame_offsets, non_blocking=True)
    frames, entries = len(other.entry_offsets), len(other.tokens)
    mine.entry_offsets[:frames].copy_(other.entry_offsets, non_blocking=True)
    mine.entry_offsets[frames:].fill_(entries)
    mine.tokens[:entries].copy_(other.tokens, non_blocking=True)
    mine.log_probs[:entries].copy_(other.log_probs, non_blocking=True)
