"""The record of a forward pass that the backward pass reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpunn._typing import RNG
from gpunn.arrays.checks import flag, shown
from gpunn.errors import SettingError, TapeError
from gpunn.nn.init import as_generator
from gpunn.nn.parameter import Parameter
from gpunn.nn.tree import holders

#: The difference of the keys of two processes from one draw: odd, and not used in `splitmix64`.
BETWEEN_STREAMS = 0xD1342543DE82EF95


class Tape:
    """The record of one forward pass, read backwards by the backward pass.

    In a forward pass each layer pushes one entry, with what its gradient needs; `backward` pops it,
    last in first out, so memory is freed during the backward pass. The tape checks the owner of
    each entry: a wrong order is an error, never a wrong number. A forward pass without a tape
    (``tape=None``) is inference and stores nothing.

    Parameters
    ----------
    training : bool, default True
        Whether layers behave as in training (dropout drops).
    rng : None, int or numpy.random.Generator, default None
        The source of keys for random layers; created when one first needs it.
    input_grad : bool, default True
        Whether the gradient with respect to the network's input is needed. Training does not need
        it, which saves a product in the first layer.
    parameters : iterable of Parameter, optional
        The parameters whose gradients are wanted, such as ``optimizer.parameters``; all by default.
        Layers ask `wants` and skip the others. Frozen layers at the start of a network then have no
        backward pass, if `input_grad` is False.

    Attributes
    ----------
    parameters : frozenset of Parameter or None
        None stands for all.
    """

    __slots__ = (
        *("_entries", "_rng", "_staged"),
        *("input_grad", "joint", "parameters", "stream", "training"),
    )

    def __init__(
        self,
        *,
        training: bool = True,
        rng: RNG = None,
        input_grad: bool = True,
        parameters: Iterable[Parameter] | None = None,
    ) -> None:
        if parameters is not None and not isinstance(parameters, frozenset):
            parameters = _as_set(parameters)
        # A fast path for `bool`: every step creates a tape.
        self.training = training if type(training) is bool else flag("Tape", "training", training)
        self.input_grad = (
            input_grad if type(input_grad) is bool else flag("Tape", "input_grad", input_grad)
        )
        self.parameters = parameters
        #: The number of this process among several: all draw the same numbers but need different
        #: masks.
        self.stream = 0
        #: A `gpunn.distributed.joint.JointStatistics`, if norms are to use the statistics of a
        #: batch that is split over several processes.
        self.joint: Any = None
        self._rng = rng
        self._entries: list[tuple[Any, tuple[Any, ...]]] = []
        self._staged: list[tuple[Any, tuple[Any, ...]]] = []

    def push(self, owner: Any, *saved: Any) -> None:
        """Save what `owner` needs for its backward pass."""
        self._entries.append((owner, saved))

    def pop(self, owner: Any) -> tuple[Any, ...]:
        """Return the last entry of `owner`, and remove it.

        Raises
        ------
        TapeError
            If nothing was saved, or the last to save was another layer.
        """
        entries = self._entries
        if not entries:
            raise TapeError(
                f"{owner!r}: backward has nothing to read; run forward with this tape first, "
                "and backward only once for each forward"
            )
        who, saved = entries.pop()
        if who is not owner:
            entries.append((who, saved))
            raise TapeError(
                f"{owner!r}: backward ran out of order; the tape expects {who!r}, "
                "since layers go backward in the reverse order of forward"
            )
        return saved

    def stage(self, owner: Any, *values: Any) -> None:
        """Keep values by which `owner` will change its state, such as batch means, for `commit`.

        So a forward pass changes no layer: neither a check of memory or gradients nor a failed step
        changes a model's running statistics.
        """
        self._staged.append((owner, values))

    def commit(self) -> None:
        """Call each owner's `commit` with its staged values, in order, once.

        `train_step` and `Trainer` do so after the update of the parameters. In a loop of your own,
        call it after ``optimizer.step()``.
        """
        while self._staged:
            owner, values = self._staged.pop(0)
            owner.commit(*values)

    @property
    def wants_grad(self) -> bool:
        """Whether the input gradient of the layer that just popped its entry is needed.

        It is not needed if no layer below has parameters whose gradients are wanted, and the
        gradient of the network's input is not wanted either. A layer with an expensive input
        gradient asks first, and returns None if it is not needed.
        """
        return self.input_grad or self.wants_below

    @property
    def wants_below(self) -> bool:
        """Whether a layer whose backward pass is still to come has parameters to train."""
        if not self._entries:
            return False
        if self.parameters is not None:
            return self._wants_below(self.parameters)
        for owner, _ in self._entries:  # noqa: SIM110 (a generator costs more)
            if owner.has_parameters:
                return True
        return False

    def wants(self, parameter: Parameter) -> bool:
        """Return whether the gradient of a parameter is wanted.

        A layer that asks can skip the computation. A layer that does not ask may add the gradient
        anyway; `train_step` drops it.
        """
        return self.parameters is None or parameter in self.parameters

    def _wants_below(self, wanted: frozenset[Parameter]) -> bool:
        """Return whether a layer whose backward pass is still to come has a wanted parameter."""
        for owner, _ in reversed(self._entries):
            if owner.has_parameters and owner.holds_any(wanted):
                return True
        return False

    def misses(self, model: Any) -> bool:
        """Return whether a layer of the model has parameters, but pushed nothing on the tape.

        `wants_grad` does not know of such a layer, so all gradients must be computed: see
        `input_grad`.
        """
        written = {id(owner) for owner, _ in self._entries}
        return any(id(layer) not in written for layer in holders(model, Parameter))

    def entries(self) -> list[tuple[Any, tuple[Any, ...]]]:
        """Return each owner with what it saved, in the order of pushing."""
        return list(self._entries)

    def owners(self) -> list[Any]:
        """Return the owners of the entries, in the order of pushing."""
        return [owner for owner, _ in self._entries]

    def draw_key(self) -> int:
        """Draw a 64-bit key for one random mask, on the host."""
        self._rng = as_generator(self._rng, "Tape")
        key = int(self._rng.integers(2**64, dtype="uint64"))
        return (key + self.stream * BETWEEN_STREAMS) % 2**64

    def __len__(self) -> int:
        """Return the number of entries that are not yet popped."""
        return len(self._entries)

    def __repr__(self) -> str:
        """Return the owners of the entries, in the order of pushing."""
        return f"Tape({', '.join(repr(owner) for owner, _ in self._entries)})"


def _as_set(parameters: Iterable[Parameter]) -> frozenset[Parameter]:
    if hasattr(parameters, "parameters"):
        raise SettingError(
            f"Tape: got {shown(parameters)} as parameters; pass its parameters, model.parameters()"
        )
    try:
        given = iter(parameters)
    except TypeError:
        kind = type(parameters).__name__
        raise SettingError(
            f"Tape: expected parameters such as model.parameters(), got {kind}"
        ) from None
    wanted = set()
    for parameter in given:  # stop at the first fault: it may be endless
        if not isinstance(parameter, Parameter):
            raise SettingError(
                f"Tape: expected parameters such as model.parameters(), "
                f"got {type(parameter).__name__}"
            )
        wanted.add(parameter)
    return frozenset(wanted)
