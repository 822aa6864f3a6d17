"""Handwritten digits on several processes: ``mpiexec -n 2 python examples/data_parallel.py``.

Each process computes the gradients of its part of every batch, and all make the same update: that
of one process with the whole batch. Without ``mpiexec`` the same program trains on one process.
"""

from __future__ import annotations

import argparse

import gpunn as gn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--checkpoint", help="a file to write to, and to go on from")
    options = parser.parse_args()

    communicator = gn.get_communicator()
    backend = gn.get_backend(options.backend)
    images, labels = gn.datasets.load_digits(flat=True)
    x, y, x_test, y_test = images[:1500], labels[:1500], images[1500:], labels[1500:]

    model = gn.Sequential(gn.Dense(64, 64, gn.ReLU(), rng=0), gn.Dense(64, 10, rng=1)).to(backend)
    optimizer = gn.Adam(model.parameters(), 0.005)
    gn.DataParallel(optimizer, communicator)  # gradients of all processes from here on
    loader = gn.Loader(
        x,
        y,
        batch_size=64 // communicator.size,  # 64 samples a step, on any number of processes
        backend=backend,
        rng=2,
        communicator=communicator,
    )
    trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), optimizer, metrics=["accuracy"])
    checkpoint = gn.Checkpoint(options.checkpoint) if options.checkpoint else None
    history = trainer.fit(
        loader,
        options.epochs,
        validation=(x_test, y_test),
        callbacks=[checkpoint] if checkpoint else [],
        resume=checkpoint,
        progress=False,
    )
    accuracy = history["validation_accuracy"][-1]
    if communicator.rank == 0:
        print(history)
        print(f"processes: {communicator.size}, validation accuracy: {accuracy:.1%}")
    assert accuracy > 0.9


if __name__ == "__main__":
    main()
