r"""What a loss is: a number for each sample, their mean, and its gradient.

A loss :math:`L(\hat y, y)` is of one sample; the cost is the mean over the samples,
:math:`J(\theta) = \frac1N \sum_i L_i`, or with weights :math:`\sum_i w_i L_i / \sum_i w_i`.
Where a sample has several outputs, L is the sum over them.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from gpunn._typing import Array, Shape
from gpunn.arrays.backend import backend_of, scope_of
from gpunn.arrays.checks import one_of
from gpunn.arrays.settings import checked
from gpunn.errors import DeviceError, DTypeError, ShapeError
from gpunn.kernels import kernels
from gpunn.kernels.declared import Declaration, declare
from gpunn.kernels.host import has_nan, is_on_host
from gpunn.nn.tape import Tape

Reduction = Literal["mean", "sum", "none"]


class Loss:
    r"""The base of the losses: weights, reduction, checks and the tape.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}, default "mean"
        J is :math:`\sum w_i L_i / \sum w_i`, :math:`\sum w_i L_i`, or the N values
        :math:`w_i L_i`. The mean of no samples, or of samples whose weights are all zero, is 0.

    Notes
    -----
    *Saves*: dJ/d prediction, computed in the same pass as the loss.
    """

    has_parameters: ClassVar[bool] = False
    #: The fused kernel that serves the formula; a subclass says so in its own body, or has none.
    kernel: ClassVar[str | None] = None
    #: Whether a step through it can be recorded: it does all its work in kernels. Likewise.
    records: ClassVar[bool] = False
    _declared: ClassVar[Declaration]
    #: Whether `forward` applies the last activation itself.
    from_logits: bool = False
    reduction: Reduction = checked(one_of, ("mean", "sum", "none"))
    #: The class's `per_sample` when it was made.
    _formula: ClassVar[Any] = None

    def __init_subclass__(cls, **settings: Any) -> None:
        """Let `cost` count only where it was written for the class's own `per_sample`.

        A class that brings another formula, and inherits a cost, would be trained by the formula
        of the class that the cost is from.
        """
        super().__init_subclass__(**settings)
        cls._formula = cls.per_sample
        if _owner(cls, "cost")._formula is not cls._formula:
            cls.cost = Loss.cost  # type: ignore[method-assign]
        cls._declared = declare(cls, ("per_sample", "cost", "compute"))

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        self.reduction = reduction

    def per_sample(self, prediction: Array, target: Array, scale: Any) -> tuple[Array, Array]:
        """Return scale * L (N,), and the gradient of its sum, of the shape of `prediction`.

        What a subclass defines. `scale` is a number or an array (N,).
        """
        raise NotImplementedError(f"{type(self).__name__} must define per_sample")

    def cost(self, prediction: Array, target: Array, scale: Any) -> tuple[Array, Array]:
        """Return J, the sum of scale * L, 0-d; and its gradient, of the shape of `prediction`.

        For a subclass that has both at less than the price of `per_sample` and a sum. It counts
        for the `per_sample` of its own class: a subclass that brings another one starts from here.
        """
        losses, grad = self.per_sample(prediction, target, scale)
        return kernels(losses).total(losses), grad

    def compute(
        self, prediction: Array, target: Array, scale: Any, *, summed: bool
    ) -> tuple[Array, Array]:
        """Return scale * L (N,) or J, by the formula as it is written, and the gradient."""
        if not summed:
            return self.per_sample(prediction, target, scale)
        kind = type(self)
        if kind.per_sample is not kind._formula or "per_sample" in self.__dict__:
            # The class was given another formula since it was made, or the object alone.
            return Loss.cost(self, prediction, target, scale)
        return self.cost(prediction, target, scale)

    def match(self, prediction: Array, target: Array) -> Array:
        """Return the target in the shape and dtype that `per_sample` takes; no value is read.

        Raises
        ------
        ShapeError, DTypeError
            If that cannot be.
        """
        if target.shape != prediction.shape:
            if prediction.shape != (*target.shape, 1):
                raise ShapeError(
                    f"{self!r}: expected a target of shape {tuple(prediction.shape)}, as the "
                    f"prediction has, got {tuple(target.shape)}"
                )
            target = kernels(prediction).reshape(target, prediction.shape)
        if target.dtype == prediction.dtype:
            return target
        return kernels(prediction).convert(target, prediction.dtype)

    def mass(self, target: Array, like: Array) -> Array | None:  # noqa: ARG002
        """Return what each sample counts for in the mean (N,), or None if all count for 1."""
        return None

    def forward(
        self,
        prediction: Array,
        target: Array,
        tape: Tape | None = None,
        sample_weight: Array | None = None,
    ) -> Array:
        """Return J, 0-d and still on the device; or (N,) values for reduction "none".

        The target's values are not checked, since that would wait for a device: a class label out
        of range makes J and the gradient NaN, and targets of `BinaryCrossEntropy` outside of
        [0, 1], or negative soft targets, make them numbers that mean nothing. Calling the loss
        checks first, and so does `check_target`, for a whole data set.
        """
        if type(prediction) is not type(target):
            _same_library(self, prediction, target)
        if prediction.ndim != 2:
            self._check_outputs(tuple(prediction.shape[1:]))
        target = self.match(prediction, target)
        if sample_weight is not None:
            self._check_weight(prediction, sample_weight)
        scale = self._scale(prediction, target, sample_weight)
        summed = self.reduction != "none"
        cost, grad = kernels(prediction).loss(self, prediction, target, scale, summed=summed)
        if tape is not None:
            tape.push(self, grad)
        return cost

    def backward(self, tape: Tape, grad: Array | None = None) -> Array:
        """Return dJ/d prediction.

        Parameters
        ----------
        tape : Tape
            The one that `forward` wrote on.
        grad : array, optional
            The gradient of something further with respect to J: 0-d, or (N,) for reduction
            "none". One by default.
        """
        (saved,) = tape.pop(self)
        if grad is None:
            return saved
        return saved * (grad[:, None] if grad.ndim else grad)

    def __call__(
        self,
        prediction: Array,
        target: Array,
        tape: Tape | None = None,
        sample_weight: Array | None = None,
    ) -> Array:
        """Check the target's values, then run `forward` on the device of `prediction`.

        On a device the check waits for the values; `forward`, which training runs, does not check.
        """
        given = {"prediction": prediction, "target": target}
        if sample_weight is not None:
            given["sample_weight"] = sample_weight
        for name, x in given.items():
            _same_library(self, prediction, x, name)
        with scope_of(prediction):
            self.check_target(target, tuple(prediction.shape[1:]))
            return self.forward(prediction, target, tape, sample_weight)

    def check_target(self, target: Any, output_shape: Shape) -> None:
        """Check a whole data set's targets: kind, shape and values; wherever they are.

        Parameters
        ----------
        target : array
            (N, ...), before it goes to a device.
        output_shape : tuple of int
            The shape of the model's output for one sample.

        Raises
        ------
        ShapeError, DTypeError, LabelError
            If this loss is not defined for such targets.
        """
        self._check_outputs(output_shape)
        shape = tuple(target.shape[1:])
        if shape != output_shape and (shape, output_shape) != ((), (1,)):
            wanted = "(N,) or (N, 1)" if output_shape == (1,) else f"(N, {output_shape[0]})"
            raise ShapeError(
                f"{self!r}: expected a target of shape {wanted}, as the model puts it out, "
                f"got {tuple(target.shape)}"
            )

    def check_batch(self, prediction: Array, target: Array, cost: Array) -> None:
        """Check the targets of a batch that `forward` has taken, where that takes no waiting.

        That is for NumPy's arrays. Elsewhere nothing is checked.

        Parameters
        ----------
        prediction, target : array
            What `forward` has taken.
        cost : array
            What it has returned; if that is NaN, it is worth a closer look.

        Raises
        ------
        LabelError
            If this loss is not defined for such targets.
        """
        if is_on_host(cost) and self.suspects(target, cost):
            self.check_target(target, tuple(prediction.shape[1:]))

    def suspects(self, target: Array, cost: Array) -> bool:  # noqa: ARG002
        """Return whether the targets of a batch, on the host, may be wrong: the cost is NaN.

        Asked at every step of a loop written by hand; a subclass that can tell more says so here.
        """
        return has_nan(cost)

    def probabilities(self, prediction: Array) -> Array:
        """Return what the prediction means: here, itself."""
        return prediction

    def _scale(self, prediction: Array, target: Array, weight: Array | None) -> Any:
        """Return what multiplies each L: a number, a 0-d array or an array (N,)."""
        if self.reduction != "mean":
            return 1.0 if weight is None else weight
        mass = self.mass(target, prediction)
        if weight is None and mass is None:
            return 1.0 / (prediction.shape[0] or 1)
        return kernels(prediction).mean_scale(weight, mass)

    def total_weight(self, prediction: Array, target: Array, weight: Array | None) -> Array | None:
        """Return what the mean divides by, 0-d and on the device; None is the number of samples."""
        mass = self.mass(target, prediction)
        if weight is None and mass is None:
            return None
        return kernels(prediction).total_mass(weight, mass)

    def _check_outputs(self, output_shape: Shape) -> None:
        if len(output_shape) != 1:
            shape = str(("N", *output_shape)).replace("'", "")
            raise ShapeError(
                f"{self!r}: expected a prediction of shape (N, outputs), got {shape}; "
                "flatten it first, or add an axis"
            )

    def _check_weight(self, prediction: Array, weight: Array) -> None:
        if type(weight) is not type(prediction):
            _same_library(self, prediction, weight, "sample_weight")
        if tuple(weight.shape) != (prediction.shape[0],):
            raise ShapeError(
                f"{self!r}: expected sample_weight of shape ({prediction.shape[0]},), "
                f"got {tuple(weight.shape)}"
            )
        if weight.dtype != prediction.dtype:
            raise DTypeError(
                f"{self!r}: sample_weight is {weight.dtype} and the prediction {prediction.dtype}; "
                "they must be alike (a Loader converts both)"
            )

    def __repr__(self) -> str:
        """Return the loss as it would be written."""
        shown = "" if self.reduction == "mean" else f"reduction={self.reduction!r}"
        return f"{type(self).__name__}({shown})"


def _owner(kind: type, name: str) -> Any:
    """Return the class that an attribute of a class is from."""
    return next(base for base in kind.__mro__ if name in vars(base))


def _same_library(loss: Loss, prediction: Array, other: Array, name: str = "target") -> None:
    here, there = backend_of(prediction), backend_of(other)
    if there is None:
        raise DTypeError(f"{loss!r}: expected an array as {name}, got {type(other).__name__}")
    if here != there:
        raise DeviceError(
            f"{loss!r}: the prediction is on {here} and the {name} on {there}; "
            f"move one of them: gn.get_backend({str(here)!r}).asarray({name})"
        )
