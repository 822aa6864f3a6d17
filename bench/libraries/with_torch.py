"""PyTorch with the data in memory and no DataLoader: eager, or a stronger form of it.

Variants: "fused" has an optimizer that updates all parameters in one kernel; "compiled" besides
compiles the forward and backward passes, or a prediction, for each size of a batch. Both leave
small networks to one thread, as who knows PyTorch well would: a second one costs more than it
gains.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, pairwise

import numpy as np
import torch
from torch import nn
from workloads import Workload, data, weights

#: Steps whose largest product has at most so many multiplications are small.
SMALL = 1 << 21
ALL_THREADS = torch.get_num_threads()


class Residual(nn.Module):
    """A layer and a way past it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x + f(x)."""
        return x + self.layer(x)


def serves(work: Workload, variant: str) -> bool:
    """Return whether this variant can run the workload: predictions have no optimizer."""
    return not (work.predict and variant == "fused")


def prepare(
    work: Workload, steps: int, variant: str = ""
) -> tuple[Callable[[], object], Callable[[], list[float]]]:
    """Return what runs a measurement, and what returns losses or outputs to compare."""
    largest = max(a * b for a, b in pairwise(work.sizes)) * work.batch_size
    torch.set_num_threads(1 if variant and largest <= SMALL else ALL_THREADS)
    if work.predict:
        return _prediction(work, variant)
    step = _step(work, variant)
    x, y = _tensors(work, *data(work))

    def run() -> None:
        for _ in range(work.repeats):
            order = torch.randperm(len(x))
            costs = [step(x[batch], y[batch]) for batch in order.split(work.batch_size)]
            torch.stack(costs).mean().item()

    def losses() -> list[float]:
        own = _step(work._replace(dropout=0.0), variant)
        batch = _tensors(work, *data(work, work.batch_size))
        return [own(*batch).item() for _ in range(steps)]

    return run, losses


def _step(work: Workload, variant: str) -> Callable[..., torch.Tensor]:
    """Return a function that trains a fresh model on a batch and returns its cost."""
    model = _model(work)
    optimizer = _optimizer(work, model, fused=bool(variant))
    parameters = list(model.parameters())
    loss = _loss(work)

    def cost_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return loss(model(x), y)

    if variant == "compiled":
        torch.compiler.reset()  # each workload has its own limit of recompilations
        cost_of = torch.compile(cost_of, dynamic=False)

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        cost = cost_of(x, y)
        cost.backward()
        if work.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, work.clip_norm)
        optimizer.step()
        return cost.detach()

    return step


def _prediction(
    work: Workload, variant: str
) -> tuple[Callable[[], object], Callable[[], list[float]]]:
    model = _model(work).eval()
    x = torch.from_numpy(data(work)[0])
    predict = torch.compile(model, dynamic=False) if variant == "compiled" else model

    def run() -> None:
        with torch.inference_mode():
            for _ in range(work.repeats):
                predict(x)

    def outputs() -> list[float]:
        with torch.inference_mode():
            return predict(x)[:10].ravel().tolist()

    return run, outputs


def _model(work: Workload) -> nn.Module:
    activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[work.activation]
    first, *inner = layers = [_linear(weight) for weight in weights(work)]
    if work.blocks:
        *inner, last = inner
        pairs = zip(inner[::2], inner[1::2], strict=True)
        blocks = [Residual(nn.Sequential(a, activation(), b)) for a, b in pairs]
        return nn.Sequential(first, activation(), *blocks, last)
    after = [activation(), nn.Dropout(work.dropout)] if work.dropout else [activation()]
    return nn.Sequential(*chain(*([layer, *after] for layer in layers[:-1])), layers[-1])


def _linear(weight: np.ndarray) -> nn.Linear:
    layer = nn.Linear(*weight.shape)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight.T))
        layer.bias.zero_()
    return layer


def _optimizer(work: Workload, model: nn.Module, *, fused: bool) -> torch.optim.Optimizer:
    settings = {"lr": work.learning_rate, "fused": fused or None}
    if work.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), **settings)
    return torch.optim.SGD(model.parameters(), momentum=work.momentum, **settings)


def _loss(work: Workload) -> Callable[..., torch.Tensor]:
    if work.task == "classes":
        weight = None if work.class_weight is None else torch.tensor(work.class_weight)
        return nn.CrossEntropyLoss(weight)
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
    return f"PyTorch {torch.__version__}, {ALL_THREADS} threads"
