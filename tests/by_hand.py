"""Updates by hand, by the formulas in the docstrings of the optimizers, and by PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.testing import assert_allclose

import gpunn as gn
from tests.conftest import Place, get_place

SHAPES = [(3, 4), (4,), (2, 2, 2)]
STEPS = 5


def gradients(step: int) -> list[Any]:
    """Return a gradient an array, some entries of which are large."""
    rng = np.random.default_rng(step)
    return [rng.standard_normal(shape) * 3 for shape in SHAPES]


def parameters(place: Place, dtype: str = "float64") -> list[gn.Parameter]:
    """Return a weight, a bias, which does not decay, and another weight."""
    rng = np.random.default_rng(99)
    values = [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]
    return [
        gn.Parameter(place.backend.asarray(value), decay=i != 1) for i, value in enumerate(values)
    ]


def give(place: Place, optimizer: gn.Optimizer, grads: list[Any], in_buffers: bool = False) -> None:
    """Add gradients in new arrays, or where the optimizer wants them."""
    for parameter, grad in zip(optimizer.parameters, grads, strict=True):
        if grad is not None:
            dtype = gn.to_numpy(parameter.value).dtype
            new = place.backend.asarray(np.array(grad, dtype=dtype))
            if in_buffers:
                with place.backend.scope():
                    parameter.grad_buffer[...] = new
                new = parameter.grad_buffer
            parameter.add_grad(new)


def update(
    place: Place, optimizer: gn.Optimizer, grads: list[Any], in_buffers: bool = False
) -> None:
    """Do a step with these gradients."""
    give(place, optimizer, grads, in_buffers)
    optimizer.step()


def values(held: list[gn.Parameter]) -> list[Any]:
    return [np.array(gn.to_numpy(parameter.value)) for parameter in held]


def regularised(
    step: int,
    theta: list[Any],
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    clip_value: float | None = None,
) -> list[Any]:
    """Return g of that step, by the docstring of `Optimizer`."""
    g = gradients(step)
    if clip_value is not None:
        g = [np.minimum(np.maximum(x, -clip_value), clip_value) for x in g]
    if clip_norm is not None:
        norm = np.linalg.norm(np.concatenate([x.ravel() for x in g]))
        g = [x * min(1.0, clip_norm / norm) for x in g]
    return [x + (0.0 if i == 1 else weight_decay) * theta[i] for i, x in enumerate(g)]


def rate(step: int) -> float:
    return 0.1 / (1 + step)


def sgd_by_hand(
    theta: list[Any], decays: list[float], momentum: float, nesterov: bool, **limits: Any
) -> list[Any]:
    """Return the parameters after an update for each decay, by the docstring of `SGD`."""
    velocity = [np.zeros_like(t) for t in theta]
    for step, decay in enumerate(decays):
        alpha, g = rate(step), regularised(step, theta, decay, **limits)
        velocity = [momentum * v - alpha * x for v, x in zip(velocity, g, strict=True)]
        moves = velocity
        if nesterov:
            moves = [momentum * v - alpha * x for v, x in zip(velocity, g, strict=True)]
        theta = [t + move for t, move in zip(theta, moves, strict=True)]
    return theta


def adam_by_hand(
    theta: list[Any], decays: list[float], beta_1: float, beta_2: float, eps: float, **limits: Any
) -> list[Any]:
    """Return the same by the docstring of `Adam`, with bias-corrected moments."""
    m, v = ([np.zeros_like(x) for x in theta] for _ in range(2))
    for step, decay in enumerate(decays):
        for i, g in enumerate(regularised(step, theta, decay, **limits)):
            m[i] = beta_1 * m[i] + (1 - beta_1) * g
            v[i] = beta_2 * v[i] + (1 - beta_2) * g**2
            mean = m[i] / (1 - beta_1 ** (step + 1))
            unbiased = 1 - beta_2 ** (step + 1)
            scale = np.sqrt(v[i] / unbiased) + eps / np.sqrt(unbiased)
            theta[i] = theta[i] - rate(step) * mean / scale
    return theta


def assert_near(held: list[gn.Parameter], wanted: list[Any]) -> None:
    for got, want in zip(values(held), wanted, strict=True):
        assert_allclose(got, want, rtol=1e-12, atol=1e-14)


def as_in_torch(
    torch: Any,
    make: type[gn.Optimizer],
    name: str,
    shared: tuple[str, ...],
    alpha: float,
    settings: Any,
) -> None:
    """Assert that PyTorch's optimizer does the same; it sets and clips the gradient elsewhere."""
    held = parameters(get_place("numpy"))
    theirs = [torch.nn.Parameter(torch.tensor(p.value)) for p in held]
    groups = [
        {"params": [p], "weight_decay": 0.0 if i == 1 else settings["weight_decay"]}
        for i, p in enumerate(theirs)
    ]
    taken = {k: v for k, v in settings.items() if k in shared}
    optimizer = getattr(torch.optim, name)(groups, lr=alpha, **taken)
    ours = make(held, alpha, **settings)
    for step in range(STEPS):
        update(get_place("numpy"), ours, gradients(step))
        for parameter, grad in zip(theirs, gradients(step), strict=True):
            parameter.grad = torch.tensor(grad)
        if settings["clip_value"]:
            torch.nn.utils.clip_grad_value_(theirs, settings["clip_value"])
        if settings["clip_norm"]:
            torch.nn.utils.clip_grad_norm_(theirs, settings["clip_norm"])
        optimizer.step()
    for got, want in zip(held, theirs, strict=True):
        # torch adds 1e-6 to the norm, and Adam's epsilon elsewhere
        assert_allclose(got.value, want.detach().numpy(), rtol=1e-5, atol=1e-7)
