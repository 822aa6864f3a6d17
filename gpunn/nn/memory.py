"""The memory that training needs, and the error when there is too little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gpunn._typing import Array, Shape
from gpunn.arrays.backend import backend_of, scope_of
from gpunn.arrays.capacity import state_of
from gpunn.arrays.checks import sample_shape, shown, whole_number
from gpunn.arrays.facts import size_of
from gpunn.errors import DeviceMemoryError, SettingError, ShapeError
from gpunn.nn.tape import Tape
from gpunn.nn.tree import first_features
from gpunn.nn.trial import entry_sizes, trial_batch, trial_copies


class HasState(Protocol):
    """An object with states for the parameters: an optimizer."""

    def state_bytes(self) -> int:
        """Return the size of the states in bytes."""


@dataclass(frozen=True)
class MemoryReport:
    """The bytes that a training step holds, by purpose.

    Attributes
    ----------
    batch_size : int
        The number of samples.
    parameters, gradients, optimizer, buffers : int
        Bytes; they do not depend on the batch.
    tape : dict of str to int
        Bytes that the forward pass saves for the backward pass, by layer, and those of the
        network's input. An array that several layers save counts for the first.
    passing : int
        Bytes of the gradients between layers, at the widest layer of the backward pass: the
        gradients of its output, of its activation's input, and of its own input.
    workspace : int
        Bytes that the kernels of one layer need while they run, at the layer that needs most: on a
        GPU, convolutions unroll as many images at a time as fit into 64 MiB.
    """

    batch_size: int
    parameters: int
    gradients: int
    optimizer: int
    buffers: int
    tape: dict[str, int] = field(default_factory=dict)
    passing: int = 0
    workspace: int = 0

    @property
    def total(self) -> int:
        """The sum of all bytes."""
        fixed = self.parameters + self.gradients + self.optimizer + self.buffers
        return fixed + self.batch_bytes + self.workspace

    @property
    def batch_bytes(self) -> int:
        """The bytes that grow with the batch."""
        return sum(self.tape.values()) + self.passing

    def __str__(self) -> str:
        """Return a table."""
        rows = [
            ("parameters", self.parameters),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("buffers", self.buffers),
            *((f"tape: {name}", size) for name, size in self.tape.items()),
            ("gradients between layers", self.passing),
            *([("workspace", self.workspace)] if self.workspace else []),
            (f"total for a batch of {self.batch_size}", self.total),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {size:>15,} bytes" for name, size in rows)


def account(
    model: Any,
    batch_size: int,
    input_shape: Shape | int | None = None,
    optimizer: HasState | None = None,
) -> MemoryReport:
    """Return the memory that a training step needs; see `Layer.memory`."""
    batch_size = whole_number("memory", "batch_size", batch_size)
    if optimizer is not None and not _has_state(optimizer):
        raise SettingError(
            f"memory: optimizer must be None or an Optimizer, got {shown(optimizer)}"
        )
    shape = _sample_shape(model, input_shape)
    passes = [_trial_pass(model, shape, n) for n in (2, 3)]  # BatchNorm refuses one sample
    two, three = (_tape_bytes(*results) for results in passes)
    # A layer saves a + b n bytes for n samples; two small passes give a and b.
    tape = {name: two[name] + (three[name] - two[name]) * (batch_size - 2) for name in two}
    parameters = sum(size_of(p.value) for p in model.parameters())
    return MemoryReport(
        batch_size=batch_size,
        parameters=parameters,
        gradients=parameters,
        optimizer=0 if optimizer is None else optimizer.state_bytes(),
        buffers=sum(size_of(b.value) for b in model.buffers()),
        tape=tape,
        passing=3 * max(tape.values(), default=0),
        workspace=max(
            (
                owner.workspace_bytes(saved, batch_size)
                for owner, saved in passes[0][1].entries()
                if hasattr(owner, "workspace_bytes")
            ),
            default=0,
        ),
    )


def explain(
    error: BaseException, model: Any, batch: Sequence[Array | None], *, updating: bool
) -> DeviceMemoryError:
    """Return the error for a step on a batch (x, y, sample_weight) that ran out of memory.

    Call it once the step's own arrays are freed.

    Parameters
    ----------
    error : Exception
        The error that the library raised.
    model : Layer
        The model in training.
    batch : sequence of array or None
        x, y and the weights.
    updating : bool
        Whether the update of the parameters had begun.
    """
    x = batch[0]
    place = backend_of(x)
    assert x is not None and place is not None  # noqa: S101, PT018 (a step has run on it)
    known, size = state_of(place, error), int(x.shape[0])
    free = place.free_bytes(released=True)
    fits = 0 if free is None else _largest_batch(free, model, batch)
    # Layers may need more memory than estimated; then only a much smaller batch is good advice.
    fits = fits if fits < size else size // 2
    advice = (
        f"judging by the tape, a batch of at most {fits} fits"
        if fits
        else "not even one sample fits; use a smaller model, or free other memory on the device"
    )
    outcome = (
        "The update had begun: parameters and states may be half updated, so restore them"
        if updating
        else "The weights have not changed"
    )
    return DeviceMemoryError(
        f"{place} is out of memory in a step on {size} samples: {known} "
        f"without the step's own arrays; {advice}. {outcome}"
    )


#: The share of the free memory that an advised batch uses: fragments between blocks are lost.
_USABLE_SHARE = 15 / 16


def _largest_batch(free: int, model: Any, batch: Sequence[Array | None]) -> int:
    """Return the size of the largest batch whose step needs at most `free` bytes."""
    x = batch[0]
    assert x is not None  # noqa: S101
    shape = tuple(x.shape[1:])
    one, two = (account(model, n, shape).batch_bytes for n in (1, 2))
    free -= account(model, max(1, x.shape[0]), shape).workspace
    # The loss also needs each sample's targets and weights, as given and converted. Its gradient is
    # counted among those between layers.
    targets = sum(size_of(part) for part in batch[1:] if part is not None) / max(1, x.shape[0])
    per_sample = max(1.0, two - one + 2 * targets + _BYTES_OF_A_LOSS)
    parameters = [p for p in model.parameters() if p.grad is None and p.grad_buffer is None]
    missing = sum(size_of(p.value) for p in parameters)
    return max(0, int((_USABLE_SHARE * free - missing - one) // per_sample) + 1)


#: Bytes of a sample's loss, its scale, and its label as an int64.
_BYTES_OF_A_LOSS = 24


def _has_state(optimizer: Any) -> bool:
    return hasattr(optimizer, "state_bytes") and not isinstance(optimizer, type)


def _trial_pass(model: Any, shape: Shape, n: int) -> tuple[Array, Tape]:
    """Return n samples and the tape of a pass over them.

    The pass runs on a copy of the layers, or on the model itself if it cannot be copied.
    """
    tape, x = Tape(rng=0), trial_batch(model, shape, n)
    copies = trial_copies(model)
    with scope_of(x):
        (model if copies is None else copies[id(model)]).forward(x, tape)
    return x, tape


def _tape_bytes(x: Array, tape: Tape) -> dict[str, int]:
    """Return the bytes of x, and those that each layer saved on the tape."""
    sizes = {"input": size_of(x)}
    for i, (owner, size) in enumerate(zip(tape.owners(), entry_sizes(tape, x), strict=True)):
        sizes[f"{i} {owner!r}"] = size
    return sizes


def _sample_shape(model: Any, input_shape: Shape | int | None) -> Shape:
    if input_shape is not None:
        return sample_shape("memory", input_shape)
    shape = first_features(model)
    if shape is None:
        raise ShapeError(f"memory: the input of {model!r} is not known; pass input_shape")
    return shape
