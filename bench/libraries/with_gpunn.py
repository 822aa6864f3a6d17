"""gpunn, through its public interface."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from workloads import Workload, data, filters, weights

import gpunn as gn
from libraries import Refused

BACKENDS = {"cpu": "numpy", "gpu": "cupy"}
_prepared: list[gn.Trainer] = []


def serves(work: Workload, variant: str) -> bool:
    """Return whether this variant can run the workload."""
    return True


def prepare(
    work: Workload, steps: int, variant: str = "", device: str = "cpu"
) -> tuple[Callable[[], object], Callable[[], list[float]]]:
    """Return what runs a measurement, and what returns losses or outputs to compare."""
    if work.predict:
        return _prediction(work, device)
    trainer, loader = prepare_training(work, device)
    _prepared[:] = [trainer]

    def run() -> object:
        return trainer.fit(loader, epochs=work.repeats, progress=False)

    def losses() -> list[float]:
        batch = gn.Loader(*data(work, work.batch_size), batch_size=None, shuffle=False)
        plain = _trainer(work._replace(dropout=0.0), device)
        return plain.fit(batch, epochs=steps, progress=False)["loss"]

    return run, losses


def prepare_training(work: Workload, device: str = "cpu") -> tuple[gn.Trainer, gn.Loader]:
    """Return the trainer, and its data in minibatches."""
    trainer = _trainer(work, device)
    resident = "auto" if work.source == "resident" else False
    loader = gn.Loader(*data(work), batch_size=work.batch_size, resident=resident, rng=0)
    return trainer, loader


def _prediction(
    work: Workload, device: str
) -> tuple[Callable[[], object], Callable[[], list[float]]]:
    trainer = _trainer(work, device)
    _prepared[:] = [trainer]
    model, backend = trainer.model, gn.get_backend()
    x = backend.asarray(data(work)[0])
    settings = {} if device == "cpu" else {"batch_size": work.batch_size}

    def predict() -> Any:
        return model(x) if len(x) == 1 else trainer.predict(x, **settings)

    def run() -> None:
        for _ in range(work.repeats):
            predict()
        if device == "gpu":
            backend.device.synchronize()

    return run, lambda: predict()[:10].ravel().tolist()


def _use(work: Workload, device: str) -> None:
    """Make new layers and loaders work there, with products of that precision."""
    settings = {} if work.products == "float32" else {"products": work.products}
    try:
        gn.use(BACKENDS[device], **settings)
    except (TypeError, gn.errors.SettingError) as error:
        if not settings:
            raise
        raise Refused(f"gpunn has no {work.products} products on {BACKENDS[device]}") from error


def _trainer(work: Workload, device: str) -> gn.Trainer:
    _use(work, device)
    given = weights(work)
    if work.block:
        return _trained(work, _transformer(work))
    layers = [_dense(work, w, last=i == len(given) - 1) for i, w in enumerate(given)]
    if work.blocks:
        layers = [layers[0], *_residual_blocks(work), layers[-1]]
    if work.dropout:
        layers.insert(1, gn.Dropout(work.dropout))
    return _trained(work, gn.Sequential(*_convolutions(work), *layers))


def _trained(work: Workload, model: gn.Layer) -> gn.Trainer:
    loss = {
        "binary": gn.BinaryCrossEntropy(),
        "classes": gn.SoftmaxCrossEntropy(class_weight=work.class_weight),
        "numbers": gn.MeanSquaredError(),
    }[work.task]
    return gn.Trainer(model, loss, _optimizer(work, model), rng=0)


def _dense(work: Workload, weight: np.ndarray, *, last: bool) -> gn.Layer:
    activation = None if last else work.activation
    shape = weight.shape
    return gn.Dense(*shape, activation=activation, init=lambda *_: weight)


def _transformer(work: Workload) -> gn.Layer:
    width = work.sizes[0]
    projection, output, first, second, head = weights(work)
    drawn = {weight.shape: weight for weight in (projection, output)}
    attention = gn.MultiHeadAttention(width, work.block[1], init=lambda _, *shape: drawn[shape])
    inner = _dense(work, first, last=False), _dense(work, second, last=True)
    return gn.Sequential(
        gn.Residual(gn.Sequential(gn.LayerNorm(width), attention)),
        gn.Residual(gn.Sequential(gn.LayerNorm(width), *inner)),
        gn.Flatten(),
        _dense(work, head, last=True),
    )


def _convolutions(work: Workload) -> list[gn.Layer]:
    layers: list[gn.Layer] = []
    for given in filters(work):
        settings: Any = {"padding": "same", "init": lambda *_, given=given: given}
        if work.batch_norm:
            norm = [gn.BatchNorm(given.shape[-1]), gn.ReLU()]
            layers += [gn.Conv2d(*given.shape[2:], 3, **settings), *norm]
        else:
            layers.append(gn.Conv2d(*given.shape[2:], 3, "relu", **settings))
        layers.append(gn.MaxPool2d(2))
    return [*layers, gn.Flatten()] if layers else []


def _residual_blocks(work: Workload) -> list[gn.Layer]:
    inner = weights(work)[1:-1]
    pairs = zip(inner[::2], inner[1::2], strict=True)
    return [
        gn.Residual(gn.Sequential(_dense(work, a, last=False), _dense(work, b, last=True)))
        for a, b in pairs
    ]


def _optimizer(work: Workload, model: gn.Layer) -> gn.Optimizer:
    settings: Any = {"learning_rate": work.learning_rate, "clip_norm": work.clip_norm}
    if work.optimizer == "adam":
        return gn.Adam(model.parameters(), **settings)
    return gn.SGD(model.parameters(), momentum=work.momentum, **settings)


def note() -> str:
    """Return which way the measured workload has run."""
    return _prepared[0].explain()


def version(device: str = "cpu") -> str:
    """Return the versions that matter."""
    gn.get_backend(BACKENDS[device])  # fails, and says why, where it does not work
    compiled = "" if find_spec("numba") else " without numba"
    return f"gpunn {gn.__version__}{compiled}, NumPy {np.__version__}"
