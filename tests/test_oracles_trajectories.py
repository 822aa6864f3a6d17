"""Two hundred steps of training, here and by PyTorch, from the same weights on the same batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.testing import assert_allclose

import gpunn as gn

BATCHES, EPOCHS, SIZE = 10, 20, 16
CLOSE = 1e-4
CLASSES = 4

#: A parameter of ours, PyTorch's, and how our array becomes theirs.
Tie = tuple[gn.Parameter, Any, Callable[[Any], Any]]


class Twins(NamedTuple):
    """A network here, PyTorch's, and data that ours is fed with."""

    model: gn.Layer
    module: Any
    ties: list[Tie]
    x: Any


def _same(x: Any) -> Any:
    return x


def _transposed(x: Any) -> Any:
    return x.T


def _channels_first(x: Any) -> Any:
    """Turn filters (height, width, in, out) into (out, in, height, width)."""
    return x.transpose(3, 2, 0, 1)


def tie(ours: Any, theirs: Any) -> list[Tie]:
    """Return how the parameters of a layer are PyTorch's."""
    if isinstance(ours, (gn.Embedding, gn.Position)):
        return [(ours.weight, theirs.weight, _same)]
    if isinstance(ours, gn.MultiHeadAttention):
        return [
            (ours.projection.weight, theirs.in_proj_weight, _transposed),
            (ours.projection.bias, theirs.in_proj_bias, _same),
            *tie(ours.output, theirs.out_proj),
        ]
    if isinstance(ours, (gn.BatchNorm, gn.LayerNorm)):
        return [(ours.gain, theirs.weight, _same), (ours.bias, theirs.bias, _same)]
    turn = _channels_first if isinstance(ours, gn.Conv2d) else _transposed
    return [(ours.weight, theirs.weight, turn), (ours.bias, theirs.bias, _same)]


def tied(*pairs: tuple[Any, Any]) -> list[Tie]:
    return [each for ours, theirs in pairs for each in tie(ours, theirs)]


def perceptron(torch: Any, dtype: str) -> Twins:
    """Return an MLP with norms, and dropout that is off."""
    rng, nn = np.random.default_rng(0), torch.nn
    ours = [
        gn.Dense(6, 12, rng=rng, dtype=dtype),
        gn.LayerNorm(12, dtype=dtype),
        gn.Dense(12, 8, "tanh", rng=rng, dtype=dtype),
        gn.Dense(8, CLASSES, rng=rng, dtype=dtype),
    ]
    theirs = [nn.Linear(6, 12), nn.LayerNorm(12), nn.Linear(12, 8), nn.Linear(8, CLASSES)]
    first, norm, middle, last = ours
    model = gn.Sequential(first, norm, gn.ReLU(), gn.Dropout(0.0), middle, last)
    module = nn.Sequential(*theirs[:2], nn.ReLU(), nn.Dropout(0.0), theirs[2], nn.Tanh(), theirs[3])
    return Twins(model, module, tied(*zip(ours, theirs, strict=True)), _drawn(6))


def convolutional(torch: Any, dtype: str) -> Twins:
    """Return a CNN with BatchNorm and pooling, on images of 8 x 8 and two channels."""
    rng, nn = np.random.default_rng(0), torch.nn
    given: Any = {"dtype": dtype}
    ours = [
        gn.Conv2d(2, 5, 3, padding="same", rng=rng, **given),
        gn.BatchNorm(5, **given),
        gn.Conv2d(5, 6, 3, stride=2, padding=1, rng=rng, **given),
        gn.BatchNorm(6, **given),
        gn.Dense(6, CLASSES, rng=rng, **given),
    ]
    theirs = [
        nn.Conv2d(2, 5, 3, padding="same"),
        nn.BatchNorm2d(5),
        nn.Conv2d(5, 6, 3, stride=2, padding=1),
        nn.BatchNorm2d(6),
        nn.Linear(6, CLASSES),
    ]
    a, b, c, d, e = ours
    model = gn.Sequential(
        *(a, b, gn.ReLU(), gn.MaxPool2d(2)), *(c, d, gn.ReLU(), gn.GlobalAveragePool()), e
    )
    a, b, c, d, e = theirs
    module = nn.Sequential(
        *(_ChannelsFirst.of(torch), a, b, nn.ReLU(), nn.MaxPool2d(2), c, d, nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), e),
    )
    return Twins(model, module, tied(*zip(ours, theirs, strict=True)), _drawn(8, 8, 2))


def residual(torch: Any, dtype: str) -> Twins:
    """Return a residual CNN: two blocks of two convolutions with BatchNorm."""
    rng, nn = np.random.default_rng(0), torch.nn
    given: Any = {"dtype": dtype}

    def block() -> tuple[list[gn.Layer], list[Any]]:
        ours: list[gn.Layer] = []
        theirs: list[Any] = []
        for _ in range(2):
            ours += [
                gn.Conv2d(4, 4, 3, padding="same", rng=rng, **given),
                gn.BatchNorm(4, **given),
            ]
            theirs += [nn.Conv2d(4, 4, 3, padding="same"), nn.BatchNorm2d(4)]
        return ours, theirs

    first = gn.Conv2d(1, 4, 3, "relu", rng=rng, **given), nn.Conv2d(1, 4, 3)
    blocks = [block(), block()]
    last = gn.Dense(4, CLASSES, rng=rng, **given), nn.Linear(4, CLASSES)
    layers: list[gn.Layer] = [first[0]]
    modules: list[Any] = [_ChannelsFirst.of(torch), first[1], nn.ReLU()]
    for ours, theirs in blocks:
        layers += [
            gn.Residual(gn.Sequential(*ours[:2], gn.ReLU(), *ours[2:])),
            gn.ReLU(),
        ]
        inner = nn.Sequential(*theirs[:2], nn.ReLU(), *theirs[2:])
        modules += [_plus(torch, inner), nn.ReLU()]
    model = gn.Sequential(*layers, gn.GlobalAveragePool(), last[0])
    module = nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last[1])
    inside = [pair for ours, theirs in blocks for pair in zip(ours, theirs, strict=True)]
    return Twins(model, module, tied(first, *inside, last), _drawn(8, 8, 1))


def transformer(torch: Any, dtype: str) -> Twins:
    """Return a causal transformer block between an embedding and logits for each position."""
    rng, nn = np.random.default_rng(0), torch.nn
    given: Any = {"dtype": dtype}
    length, width, tokens = 6, 8, CLASSES
    ours = [
        gn.Embedding(tokens, width, rng=rng, **given),
        gn.Position(length, width, rng=rng, **given),
        gn.LayerNorm(width, **given),
        gn.MultiHeadAttention(width, 2, causal=True, rng=rng, **given),
        gn.LayerNorm(width, **given),
        gn.Dense(width, 16, "gelu", rng=rng, **given),
        gn.Dense(16, width, rng=rng, **given),
        gn.Dense(width, tokens, rng=rng, **given),
    ]
    theirs = nn.ModuleList(
        [
            nn.Embedding(tokens, width),
            nn.Embedding(length, width),
            nn.LayerNorm(width),
            nn.MultiheadAttention(width, 2, batch_first=True),
            nn.LayerNorm(width),
            nn.Linear(width, 16),
            nn.Linear(16, width),
            nn.Linear(width, tokens),
        ]
    )
    embedding, position, norm_1, attention, norm_2, up, down, last = ours
    model = gn.Sequential(
        embedding,
        position,
        gn.Residual(gn.Sequential(norm_1, attention)),
        gn.Residual(gn.Sequential(norm_2, up, down)),
        last,
    )

    class Block(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.parts = theirs

        def forward(self, x: Any) -> Any:
            embedding, position, norm_1, attention, norm_2, up, down, last = self.parts
            h = embedding(x) + position.weight
            hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
            q = norm_1(h)
            h = h + attention(q, q, q, attn_mask=hidden, need_weights=False)[0]
            h = h + down(nn.functional.gelu(up(norm_2(h))))
            return last(h)

    x = np.random.default_rng(1).integers(0, tokens, (BATCHES * SIZE, length))
    return Twins(model, Block(), tied(*zip(ours, theirs, strict=True)), x)


class _ChannelsFirst:
    """A module that brings images (N, H, W, C) into PyTorch's order."""

    @staticmethod
    def of(torch: Any) -> Any:
        class Turn(torch.nn.Module):  # type: ignore[misc, name-defined]
            def forward(self, x: Any) -> Any:
                return x.permute(0, 3, 1, 2)

        return Turn()


def _plus(torch: Any, inner: Any) -> Any:
    """Return the module x + f(x)."""

    class Plus(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Any) -> Any:
            return x + self.inner(x)

    return Plus()


def _drawn(*sample: int) -> Any:
    return np.random.default_rng(1).standard_normal((BATCHES * SIZE, *sample))


def targets(twins: Twins) -> Any:
    """Return labels that depend on the inputs: of samples, or of all positions but the first."""
    x = twins.x
    if x.dtype.kind == "i":
        y = np.where(np.arange(x.shape[1]) % 2, x, np.roll(x, 1, axis=1))
        y[:, 0] = -100
        return y
    rows = x.reshape(len(x), -1)
    return (rows @ np.random.default_rng(2).standard_normal((rows.shape[1], CLASSES))).argmax(1)


def train_ours(twins: Twins, y: Any, dtype: str) -> list[float]:
    """Train; return the mean loss of each epoch. Compiled steps where they can be compiled."""
    of_positions = y.ndim == 2
    loss = gn.SequenceCrossEntropy() if of_positions else gn.SoftmaxCrossEntropy()
    loader = gn.Loader(
        twins.x, y, batch_size=SIZE, shuffle=False, dtype=dtype, keep_integers=of_positions
    )
    optimizer = gn.SGD(twins.model.parameters(), 0.02, momentum=0.9, weight_decay=0.0)
    history = gn.Trainer(twins.model, loss, optimizer).fit(loader, EPOCHS, progress=False)
    return history["loss"]


def train_theirs(torch: Any, twins: Twins, y: Any, dtype: str) -> list[float]:
    """Train from the weights of ours, on the same batches."""
    module, labels = twins.module.to(getattr(torch, dtype)), torch.tensor(y)
    x = torch.tensor(twins.x)
    x = x if twins.x.dtype.kind == "i" else x.to(getattr(torch, dtype))
    with torch.no_grad():
        for ours, theirs, turn in twins.ties:
            theirs.copy_(torch.tensor(np.ascontiguousarray(turn(gn.to_numpy(ours.value)))))
    optimizer = torch.optim.SGD(module.parameters(), 0.02, momentum=0.9)
    cost = torch.nn.CrossEntropyLoss()
    epochs = []
    for _ in range(EPOCHS):
        losses = []
        for i in range(0, len(x), SIZE):
            optimizer.zero_grad()
            z = module(x[i : i + SIZE])
            z = z.movedim(2, 1) if z.ndim == 3 else z
            j = cost(z, labels[i : i + SIZE])
            j.backward()
            optimizer.step()
            losses.append(j.item())
        epochs.append(float(np.mean(losses)))
    return epochs


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "make", [perceptron, convolutional, residual, transformer], ids=lambda make: make.__name__
)
def test_two_hundred_steps(torch: Any, make: Callable[..., Twins], dtype: str) -> None:
    twins = make(torch, dtype)
    y = targets(twins)
    assert len(list(twins.model.parameters())) == len(twins.ties)
    wanted = train_theirs(torch, twins, y, dtype)
    found = train_ours(twins, y, dtype)
    assert wanted[-1] < 0.8 * wanted[0]  # there was something to learn
    assert_allclose(found, wanted, rtol=CLOSE)
    for ours, theirs, turn in twins.ties:
        got, want = turn(gn.to_numpy(ours.value)), theirs.detach().numpy()
        assert_allclose(got, want, rtol=0, atol=CLOSE * max(1.0, abs(want).max()))
