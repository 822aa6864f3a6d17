"""PyTorch, eager, with the data in memory and no DataLoader."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import numpy as np
import torch
from torch import nn
from workloads import Workload, data, weights


def prepare(work: Workload, steps: int) -> tuple[Callable[[], object], Callable[[], list[float]]]:
    """Return what runs a measurement, and what returns losses or outputs to compare."""
    if work.predict:
        return _prediction(work)
    model = _model(work)
    optimizer = _optimizer(work, model)
    loss_function = _loss(work)
    x, y = _tensors(work, *data(work))

    def run() -> None:
        for _ in range(work.repeats):
            order = torch.randperm(len(x))
            costs = [
                step(model, optimizer, loss_function, x[batch], y[batch])
                for batch in order.split(work.batch_size)
            ]
            torch.stack(costs).mean().item()

    def losses() -> list[float]:
        fresh = _model(work)
        own = _optimizer(work, fresh)
        batch = _tensors(work, *data(work, work.batch_size))
        return [step(fresh, own, loss_function, *batch).item() for _ in range(steps)]

    return run, losses


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_function: Callable[..., torch.Tensor],
    x: torch.Tensor,
    y: torch.Tensor,
) -> torch.Tensor:
    """Train on a batch and return its cost."""
    optimizer.zero_grad()
    cost = loss_function(model(x), y)
    cost.backward()
    optimizer.step()
    return cost.detach()


def _prediction(work: Workload) -> tuple[Callable[[], object], Callable[[], list[float]]]:
    model = _model(work).eval()
    x = torch.from_numpy(data(work)[0])

    def run() -> None:
        with torch.inference_mode():
            for _ in range(work.repeats):
                model(x)

    def outputs() -> list[float]:
        with torch.inference_mode():
            return model(x)[:10].ravel().tolist()

    return run, outputs


def _model(work: Workload) -> nn.Module:
    activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[work.activation]
    layers = []
    for weight in weights(work):
        layer = nn.Linear(*weight.shape)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight.T))
            layer.bias.zero_()
        layers.append((layer, activation()))
    return nn.Sequential(*list(chain(*layers))[:-1])


def _optimizer(work: Workload, model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=work.learning_rate, momentum=work.momentum)


def _loss(work: Workload) -> Callable[..., torch.Tensor]:
    if work.task == "classes":
        return nn.CrossEntropyLoss()
    if work.task == "binary":
        return nn.BCEWithLogitsLoss()
    return lambda prediction, target: 0.5 * nn.functional.mse_loss(prediction, target)


def _tensors(work: Workload, x: np.ndarray, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    targets = torch.from_numpy(y)
    if work.task != "classes":
        targets = targets.float()[:, None]
    return torch.from_numpy(np.asarray(x)), targets


def version() -> str:
    """Return the versions that matter."""
    return f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads"
