"""PyTorch at its fastest on a GPU: a whole step, with the optimizer, is one CUDA graph.

The graph takes its batch from the data on the device, by an order and a number of the step that
are on the device as well, so that between two steps the host does nothing but launch it again. On
a CPU the same step runs without a graph, so that what it computes can be checked there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from workloads import Workload, data

from libraries.with_torch import cost_function, make_model, make_optimizer, tensors

WARM_UP = 3


def prepare_graph(
    work: Workload, steps: int, device: torch.device
) -> tuple[Callable[[], object], Callable[[], list[float]]]:
    """Return what runs a measurement, and what returns the losses to compare."""
    x, y = tensors(work, *data(work), device)
    trained = _Captured(work, x, y)

    def run() -> None:
        for _ in range(work.repeats):
            trained.epoch(torch.randperm(len(x), device=device)).mean().item()

    def losses() -> list[float]:
        own = _Captured(work, *tensors(work, *data(work, work.batch_size), device))
        order = torch.arange(work.batch_size, device=device)
        return [own.epoch(order).item() for _ in range(steps)]

    return run, losses


def captured(step: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Return a function that replays a step, after a few runs that let libraries allocate."""
    if device.type == "cpu":
        step()
        return step
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


class _Captured:
    """A fresh model, and a graph of its step on the next batch of an epoch."""

    def __init__(self, work: Workload, x: torch.Tensor, y: torch.Tensor) -> None:
        device, size = x.device, work.batch_size
        model = make_model(work).to(device)
        optimizer = make_optimizer(work, model, fused=device.type == "cuda")
        cost_of = cost_function(work, model, device)
        self._n = len(x) // size
        self._order = torch.arange(len(x), device=device).reshape(self._n, size)
        self._at = torch.zeros(1, dtype=torch.int64, device=device)
        self._costs = torch.zeros(self._n, device=device)

        def step() -> None:
            rows = self._order.index_select(0, self._at)[0]
            optimizer.zero_grad()
            cost = cost_of(x[rows], y[rows])
            cost.backward()
            optimizer.step()
            self._costs.index_copy_(0, self._at, cost.detach().reshape(1))
            self._at.add_(1).remainder_(self._n)

        given = [p.detach().clone() for p in model.parameters()]
        self._replay = captured(step, device)
        with torch.no_grad():  # the runs before have trained it
            for parameter, value in zip(model.parameters(), given, strict=True):
                parameter.copy_(value)
            for state in optimizer.state.values():
                for value in filter(torch.is_tensor, state.values()):
                    value.zero_()

    def epoch(self, order: torch.Tensor) -> torch.Tensor:
        """Train on all batches in this order, and return their costs."""
        self._order.copy_(order.reshape(self._order.shape))
        self._at.zero_()
        for _ in range(self._n):
            self._replay()
        return self._costs
