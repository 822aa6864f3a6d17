"""gpunn, through its public interface."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from workloads import Workload, data, weights

import gpunn as gn


def prepare(work: Workload, steps: int) -> tuple[Callable[[], object], Callable[[], list[float]]]:
    """Return what runs a measurement, and what returns losses or outputs to compare."""
    if work.predict:
        x, _ = data(work)
        trainer = _trainer(work)
        model = trainer.model
        if len(x) == 1:
            return (
                lambda: [model(x) for _ in range(work.repeats)],
                lambda: model(x).ravel().tolist(),
            )
        return (
            lambda: [trainer.predict(x) for _ in range(work.repeats)],
            lambda: trainer.predict(x)[:10].ravel().tolist(),
        )

    trainer, loader = prepare_training(work)

    def run() -> object:
        return trainer.fit(loader, epochs=work.repeats, progress=False)

    def losses() -> list[float]:
        batch = gn.Loader(*data(work, work.batch_size), batch_size=None, shuffle=False)
        return _trainer(work).fit(batch, epochs=steps, progress=False)["loss"]

    return run, losses


def prepare_training(work: Workload) -> tuple[gn.Trainer, gn.Loader]:
    """Return the trainer, and its data in minibatches."""
    loader = gn.Loader(*data(work), batch_size=work.batch_size, backend="numpy", rng=0)
    return _trainer(work), loader


def _trainer(work: Workload) -> gn.Trainer:
    given = weights(work)
    layers = [
        gn.Dense(
            *w.shape,
            activation=work.activation if i < len(given) - 1 else None,
            init=lambda *_, w=w: w,
            backend="numpy",
        )
        for i, w in enumerate(given)
    ]
    model = gn.Sequential(*layers)
    loss = {
        "binary": gn.BinaryCrossEntropy(),
        "classes": gn.SoftmaxCrossEntropy(),
        "numbers": gn.MeanSquaredError(),
    }[work.task]
    optimizer = gn.SGD(model.parameters(), learning_rate=work.learning_rate, momentum=work.momentum)
    return gn.Trainer(model, loss, optimizer)


def version() -> str:
    """Return the versions that matter."""
    return f"gpunn {gn.__version__}, NumPy {np.__version__}"
