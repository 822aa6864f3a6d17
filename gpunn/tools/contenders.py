"""The same perceptron in several libraries, written as their users would, for comparison.

Each function prepares a network and its data, and returns a function that trains it for some epochs
and returns the mean loss of the last one, waiting for the device.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

from gpunn.arrays.backend import Backend
from gpunn.data.loader import Loader
from gpunn.losses.binary_cross_entropy import BinaryCrossEntropy
from gpunn.losses.cross_entropy import SoftmaxCrossEntropy
from gpunn.nn.containers import Sequential
from gpunn.nn.dense import Dense
from gpunn.optim.sgd import SGD
from gpunn.training.trainer import Trainer

RATE = 0.01


class Network(NamedTuple):
    """A perceptron with ReLU, the size of its data, and the settings of its training.

    One output stands for two classes.
    """

    sizes: tuple[int, ...]
    batch_size: int
    n_steps: int
    momentum: float = 0.0

    def __str__(self) -> str:
        momentum = ", momentum" if self.momentum else ""
        return f"{'-'.join(map(str, self.sizes))}, batch {self.batch_size}{momentum}"

    def data(self) -> tuple[Any, Any]:
        """Return features in single precision, and a label for each sample."""
        numpy = importlib.import_module("numpy")
        rng = numpy.random.default_rng(0)
        n = self.batch_size * self.n_steps
        x = rng.standard_normal((n, self.sizes[0]), dtype=numpy.float32)
        # All classes occur, if there are enough samples.
        return x, rng.permutation(numpy.arange(n) % max(2, self.sizes[-1]))


#: A function that trains for a number of epochs, and returns the loss of the last one.
Run = Callable[[int], float]


def with_gpunn(network: Network, place: Backend) -> Run:
    """Return a function that trains with a `Trainer`."""
    layers = [
        Dense(a, b, None if i == len(network.sizes) - 2 else "relu", rng=i, backend=place)
        for i, (a, b) in enumerate(pairwise(network.sizes))
    ]
    model = Sequential(*layers)
    loss = BinaryCrossEntropy() if network.sizes[-1] == 1 else SoftmaxCrossEntropy()
    trainer = Trainer(model, loss, SGD(model.parameters(), RATE, momentum=network.momentum))
    loader = Loader(*network.data(), batch_size=network.batch_size, backend=place, rng=0)
    return lambda epochs: float(trainer.fit(loader, epochs, progress=False)["loss"][-1])


def with_sklearn(network: Network) -> Run:
    """Return a function that trains scikit-learn's `MLPClassifier` with its own `fit`."""
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415 (optional)
    from sklearn.neural_network import MLPClassifier  # noqa: PLC0415 (optional)

    x, y = network.data()
    model = MLPClassifier(
        network.sizes[1:-1],
        solver="sgd",
        learning_rate_init=RATE,
        momentum=network.momentum,
        nesterovs_momentum=False,
        alpha=0.0,
        batch_size=network.batch_size,
        n_iter_no_change=10**9,
        warm_start=True,
        random_state=0,
    )

    def run(epochs: int) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return float(model.set_params(max_iter=epochs).fit(x, y).loss_)

    return run


def with_torch(network: Network, device: str) -> Run:
    """Return a function that trains in PyTorch's eager mode, with the data on the device."""
    torch = importlib.import_module("torch")
    layers: list[Any] = []
    for sizes in pairwise(network.sizes):
        layers += [torch.nn.Linear(*sizes), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1]).to(device)
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=network.momentum)
    x, y = (torch.from_numpy(part).to(device) for part in network.data())
    loss = torch.nn.CrossEntropyLoss()
    if network.sizes[-1] == 1:
        loss, y = torch.nn.BCEWithLogitsLoss(), y.float()[:, None]

    def run(epochs: int) -> float:
        for _ in range(epochs):
            costs = []
            for rows in torch.randperm(len(x), device=device).split(network.batch_size):
                optimizer.zero_grad()
                cost = loss(model(x[rows]), y[rows])
                cost.backward()
                optimizer.step()
                costs.append(cost.detach())
        return float(torch.stack(costs).mean().item())

    return run


def with_jax(network: Network) -> Run:
    """Return a function that calls a compiled step per batch, with the data on JAX's device."""
    jax, jnp = importlib.import_module("jax"), importlib.import_module("jax.numpy")
    numpy = importlib.import_module("numpy")
    rng, shapes = numpy.random.default_rng(0), list(pairwise(network.sizes))
    drawn = [rng.standard_normal(s) * (2 / sum(s)) ** 0.5 for s in shapes]
    weights = [(jnp.asarray(w, jnp.float32), jnp.zeros(w.shape[1])) for w in drawn]
    velocities = jax.tree.map(jnp.zeros_like, weights)
    x, y = map(jnp.asarray, network.data())

    def cost(weights: Any, x: Any, y: Any) -> Any:
        for w, b in weights[:-1]:
            x = jax.nn.relu(x @ w + b)
        z = x @ weights[-1][0] + weights[-1][1]
        if network.sizes[-1] == 1:
            return (jax.nn.softplus(z[:, 0]) - y * z[:, 0]).mean()
        return -jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], axis=1).mean()

    def step(carry: Any, order: Any, x: Any, y: Any) -> Any:
        (weights, velocities), total, at = carry
        rows = jax.lax.dynamic_slice_in_dim(order, at * network.batch_size, network.batch_size)
        loss, grads = jax.value_and_grad(cost)(weights, x[rows], y[rows])
        velocities = jax.tree.map(lambda v, g: network.momentum * v - RATE * g, velocities, grads)
        state = jax.tree.map(jnp.add, weights, velocities), velocities
        return state, total + loss / network.n_steps, at + 1

    held, compiled = [(weights, velocities)], jax.jit(step, donate_argnums=0)

    def run(epochs: int) -> float:
        for _ in range(epochs):
            order = jnp.asarray(rng.permutation(len(x)))
            carry = held[0], jnp.zeros(()), jnp.zeros((), int)
            for _ in range(network.n_steps):
                carry = compiled(carry, order, x, y)
            held[0] = carry[0]
        return float(carry[1])

    return run
