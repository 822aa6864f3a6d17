"""PyTorch with the data in memory and no DataLoader: eager, or a stronger form of it.

Variants: "fused" has an optimizer that updates all parameters in one kernel; "compiled" besides
compiles the forward and backward passes, or a prediction, for each size of a batch; "channels-last"
keeps images so, which is quicker than PyTorch's own order; "graph", for a GPU, captures the whole
step with the optimizer in a CUDA graph (see `torch_graph.py`). On a CPU, all but eager leave small
networks to one thread, as who knows PyTorch well would: a second one costs more than it gains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import chain, pairwise

import numpy as np
import torch
from torch import nn
from workloads import Workload, data, filters, weights

#: Steps whose largest product has at most so many multiplications are small.
SMALL = 1 << 21
ALL_THREADS = torch.get_num_threads()
DEVICES = {"cpu": "cpu", "gpu": "cuda"}


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
    if variant == "graph":
        full = work.n_samples % work.batch_size == 0 and work.source == "resident"
        return work.predict or (full and work.optimizer == "sgd")
    if variant == "channels-last":
        return bool(work.image)
    return not (work.predict and variant == "fused")


def prepare(
    work: Workload, steps: int, variant: str = "", device: str = "cpu"
) -> tuple[Callable[[], object], Callable[[], list[float]]]:
    """Return what runs a measurement, and what returns losses or outputs to compare."""
    products = [a * b for a, b in pairwise(work.sizes)]
    products += [math.prod(work.image[:2]) * kernel.size for kernel in filters(work)]
    largest = max(products) * work.batch_size
    torch.set_num_threads(1 if variant and largest <= SMALL and device == "cpu" else ALL_THREADS)
    # TF32 in products only where the workload asks for it.
    torch.set_float32_matmul_precision("high" if work.products == "tf32" else "highest")
    place = torch.device(DEVICES[device])
    if work.predict:
        return _prediction(work, variant, place)
    if variant == "graph":
        from libraries.torch_graph import prepare_graph  # noqa: PLC0415 (it imports this)

        return prepare_graph(work, steps, place)
    step = make_step(work, variant, place)
    layout = torch.channels_last if variant == "channels-last" else torch.contiguous_format
    on_device = work.source == "resident" or device == "cpu"
    x, y = tensors(work, *data(work), place if on_device else torch.device("cpu"))
    x = x.contiguous(memory_format=layout)
    batches = _resident if on_device else _streamed

    def run() -> None:
        for _ in range(work.repeats):
            costs = [step(*batch) for batch in batches(x, y, work.batch_size, place)]
            torch.stack(costs).mean().item()

    def losses() -> list[float]:
        own = make_step(work._replace(dropout=0.0), variant, place)
        batch = tensors(work, *data(work, work.batch_size), place)
        return [own(*batch).item() for _ in range(steps)]

    return run, losses


def _resident(
    x: torch.Tensor, y: torch.Tensor, size: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for rows in torch.randperm(len(x), device=device).split(size):
        yield x[rows], y[rows]


def _streamed(
    x: torch.Tensor, y: torch.Tensor, size: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches through two pinned buffers: one is filled while the other is sent."""
    pairs = [
        [torch.empty((size, *of.shape[1:]), dtype=of.dtype, pin_memory=True) for of in (x, y)]
        for _ in range(2)
    ]
    sent = [torch.cuda.Event() for _ in pairs]
    for i, rows in enumerate(torch.randperm(len(x)).split(size)):
        event = sent[i % 2]
        event.synchronize()
        batch = [buffer[: len(rows)] for buffer in pairs[i % 2]]
        for source, buffer in zip((x, y), batch, strict=True):
            torch.index_select(source, 0, rows, out=buffer)
        on_device = [buffer.to(device, non_blocking=True) for buffer in batch]
        event.record()
        yield on_device[0], on_device[1]


def make_step(
    work: Workload, variant: str, device: torch.device
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return a function that trains a fresh model on a batch and returns its cost."""
    model = make_model(work).to(device)
    if variant == "channels-last":
        model = model.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(work, model, fused=bool(variant))
    parameters = list(model.parameters())
    cost_of = cost_function(work, model, device)
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


def cost_function(
    work: Workload, model: nn.Module, device: torch.device
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the cost of a batch as a function of x and y, with products as the workload says."""
    loss = _loss(work, device)
    if work.products != "bfloat16":
        return lambda x, y: loss(model(x), y)

    def cost_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            out = model(x)
        return loss(out.float(), y)

    return cost_of


def _prediction(
    work: Workload, variant: str, device: torch.device
) -> tuple[Callable[[], object], Callable[[], list[float]]]:
    model = make_model(work).to(device).eval()
    x = torch.from_numpy(data(work)[0]).to(device)
    predict = torch.compile(model, dynamic=False) if variant == "compiled" else model
    if variant == "graph":
        from libraries.torch_graph import captured  # noqa: PLC0415 (it imports this)

        with torch.inference_mode():
            held: list[torch.Tensor] = []
            replay = captured(lambda: held.__setitem__(slice(None), [model(x)]), device)

        def predict(x: torch.Tensor) -> torch.Tensor:
            replay()
            return held[0]

    def run() -> None:
        with torch.inference_mode():
            for _ in range(work.repeats):
                predict(x)
        if device.type == "cuda":
            torch.cuda.synchronize()

    def outputs() -> list[float]:
        with torch.inference_mode():
            return predict(x)[:10].ravel().tolist()

    return run, outputs


def make_model(work: Workload) -> nn.Module:
    """Return the network with its initial weights."""
    if work.block:
        return _transformer(work)
    activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[work.activation]
    if work.image:
        return _image_model(work)
    first, *inner = layers = [_linear(weight) for weight in weights(work)]
    if work.blocks:
        *inner, last = inner
        pairs = zip(inner[::2], inner[1::2], strict=True)
        blocks = [Residual(nn.Sequential(a, activation(), b)) for a, b in pairs]
        return nn.Sequential(first, activation(), *blocks, last)
    after = [activation(), nn.Dropout(work.dropout)] if work.dropout else [activation()]
    return nn.Sequential(*chain(*([layer, *after] for layer in layers[:-1])), layers[-1])


def _transformer(work: Workload) -> nn.Module:
    """Return PyTorch's block, with norms before each half of it, and a product with the rest."""
    assert work.block is not None
    width, inner, _ = work.sizes
    projection, output, *dense = weights(work)
    settings = {"dropout": 0.0, "batch_first": True, "norm_first": True}
    block = nn.TransformerEncoderLayer(width, work.block[1], inner, **settings)
    block.linear1, block.linear2, head = map(_linear, dense)
    block.self_attn.out_proj.load_state_dict(_linear(output).state_dict())
    with torch.no_grad():
        block.self_attn.in_proj_weight.copy_(torch.from_numpy(projection.T))
    return nn.Sequential(block, nn.Flatten(), head)


def _image_model(work: Workload) -> nn.Module:
    """Return convolutions and a layer; where that takes pixels, they are in PyTorch's order."""
    layers: list[nn.Module] = []
    for given in filters(work):
        layer = nn.Conv2d(*given.shape[2:], 3, padding=1)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(given.transpose(3, 2, 0, 1)))
            layer.bias.zero_()
        norm = [nn.BatchNorm2d(given.shape[-1])] if work.batch_norm else []
        layers += [layer, *norm, nn.ReLU(), nn.MaxPool2d(2)]
    (weight,) = weights(work)
    height, width = (side >> len(work.convolutions) for side in work.image[:2])
    pixels = weight.reshape(height, width, -1, weight.shape[1])
    turned = pixels.transpose(2, 0, 1, 3).reshape(weight.shape)
    return nn.Sequential(*layers, nn.Flatten(), _linear(turned))


def _linear(weight: np.ndarray) -> nn.Linear:
    layer = nn.Linear(*weight.shape)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight.T))
        layer.bias.zero_()
    return layer


def make_optimizer(work: Workload, model: nn.Module, *, fused: bool) -> torch.optim.Optimizer:
    """Return the optimizer of all parameters."""
    settings = {"lr": work.learning_rate, "fused": fused or None}
    if work.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), **settings)
    return torch.optim.SGD(model.parameters(), momentum=work.momentum, **settings)


def _loss(work: Workload, device: torch.device) -> Callable[..., torch.Tensor]:
    if work.task == "classes":
        weight = work.class_weight
        return nn.CrossEntropyLoss(weight and torch.tensor(weight, device=device))
    if work.task == "binary":
        return nn.BCEWithLogitsLoss()
    return lambda prediction, target: 0.5 * nn.functional.mse_loss(prediction, target)


def tensors(
    work: Workload, x: np.ndarray, y: np.ndarray, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x and y as the loss wants them."""
    if work.image:
        x = np.ascontiguousarray(np.moveaxis(x, -1, 1))
    targets = torch.from_numpy(y)
    if work.task != "classes":
        targets = targets.float()[:, None]
    return torch.from_numpy(np.asarray(x)).to(device), targets.to(device)


def version(device: str = "cpu") -> str:
    """Return the versions that matter."""
    if device == "gpu" and not torch.cuda.is_available():
        raise RuntimeError(f"PyTorch {torch.__version__} finds no CUDA here")
    return f"PyTorch {torch.__version__}, {ALL_THREADS} threads"
