r"""The base class of losses.

A loss :math:`L(\hat y, y)` belongs to one sample. The cost J is the mean over the samples,
:math:`J(\theta) = \frac1N \sum_i L_i`, or with weights :math:`\sum_i w_i L_i / \sum_i w_i`.
Where a sample has several outputs, L is the sum over them.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from gpunn._typing import Array, Shape
from gpunn.arrays.backend import backend_of, scope_of
from gpunn.arrays.checks import one_of
from gpunn.arrays.exchange import check_ordinary
from gpunn.arrays.facts import is_kind
from gpunn.arrays.settings import checked
from gpunn.errors import DeviceError, DTypeError, ShapeError
from gpunn.kernels import kernels
from gpunn.kernels.declared import Declaration, declare
from gpunn.kernels.formulas import per_row
from gpunn.kernels.host import has_nan, is_on_host
from gpunn.nn.tape import Tape

Reduction = Literal["mean", "sum", "none"]


class Loss:
    r"""The base class of losses: weights, reduction, checks and the tape.

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
    #: The fused kernel for the formula. Not inherited: each class body names its own.
    kernel: ClassVar[str | None] = None
    #: Whether the loss does all its work in kernels, so that steps can be recorded. Not inherited.
    records: ClassVar[bool] = False
    _declared: ClassVar[Declaration]
    #: The number of axes of a sample's prediction: 1 for outputs, 2 for positions and outputs.
    sample_ndim: ClassVar[int] = 1
    #: Settings other than the reduction, with their defaults, which `repr` omits.
    defaults: ClassVar[dict[str, Any]] = {}
    #: What the model's outputs are called, if they do not predict the targets themselves.
    outputs: ClassVar[str] = "predictions"
    #: Whether `forward` applies the last activation itself.
    from_logits: bool = False
    reduction: Reduction = checked(one_of, ("mean", "sum", "none"))
    #: The class's `per_sample` when the class was created.
    _formula: ClassVar[Any] = None

    def __init_subclass__(cls, **settings: Any) -> None:
        """Keep an inherited `cost` only if `per_sample` is inherited from the same class.

        Otherwise a class with its own formula would be trained by its base's.
        """
        super().__init_subclass__(**settings)
        cls._formula = cls.per_sample
        if _owner(cls, "cost")._formula is not cls._formula:
            cls.cost = Loss.cost  # type: ignore[method-assign]
        cls._declared = declare(cls, ("per_sample", "cost", "compute"))

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        self.reduction = reduction

    def per_sample(self, prediction: Array, target: Array, scale: Any) -> tuple[Array, Array]:
        """Return scale * L (N,), and the gradient of its sum, with the shape of `prediction`.

        Every subclass defines this. `scale` is a number or an array (N,).
        """
        raise NotImplementedError(f"{type(self).__name__} must define per_sample")

    def cost(self, prediction: Array, target: Array, scale: Any) -> tuple[Array, Array]:
        """Return J, the sum of scale * L, 0-d; and its gradient, with the shape of `prediction`.

        A subclass may override this with something faster than `per_sample` and a sum. The override
        belongs to the `per_sample` of its class; subclasses with another formula do not inherit it.
        """
        losses, grad = self.per_sample(prediction, target, scale)
        return kernels(losses).total(losses), grad

    def compute(
        self, prediction: Array, target: Array, scale: Any, *, summed: bool
    ) -> tuple[Array, Array]:
        """Return scale * L (N,), or J if `summed`, by the formula as written; and the gradient."""
        if not summed:
            return self.per_sample(prediction, target, scale)
        kind = type(self)
        if kind.per_sample is not kind._formula or "per_sample" in self.__dict__:
            # The formula of the class, or of this object, has been replaced.
            return Loss.cost(self, prediction, target, scale)
        return self.cost(prediction, target, scale)

    def match(self, prediction: Array, target: Array) -> Array:
        """Return the target in the shape and dtype that `per_sample` takes; no values are read.

        Raises
        ------
        ShapeError, DTypeError
            If its shape or dtype does not fit.
        """
        if target.shape != prediction.shape:
            if prediction.shape != (*target.shape, 1):
                raise ShapeError(
                    f"{self!r}: expected a target of shape {tuple(prediction.shape)}, like the "
                    f"prediction, got {tuple(target.shape)}"
                )
            target = kernels(prediction).reshape(target, prediction.shape)
        if target.dtype == prediction.dtype:
            return target
        return kernels(prediction).convert(target, prediction.dtype)

    def mass(self, target: Array, like: Array) -> Array | None:  # noqa: ARG002
        """Return each sample's contribution to the mean's divisor (N,); None for ones.

        For example, the weight of its class, or the number of its positions.
        """
        return None

    def forward(
        self,
        prediction: Array,
        target: Array,
        tape: Tape | None = None,
        sample_weight: Array | None = None,
    ) -> Array:
        """Return J, 0-d and still on the device; or (N,) values for reduction "none".

        The target's values are not checked, since that would wait for a device. A class label out
        of range makes J and the gradient NaN. Targets of `BinaryCrossEntropy` outside [0, 1], and
        negative soft targets, give meaningless numbers. Calling the loss object checks them first,
        and `check_target` checks a whole data set.
        """
        if type(prediction) is not type(target):
            _same_library(self, prediction, target)
        if prediction.ndim != 1 + self.sample_ndim:
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
            The tape that `forward` wrote to.
        grad : array, optional
            The gradient of a later quantity with respect to J: 0-d, or (N,) for reduction
            "none". Defaults to 1.
        """
        (saved,) = tape.pop(self)
        if grad is None:
            return saved
        return saved * per_row(grad, saved.ndim)

    def __call__(
        self,
        prediction: Array,
        target: Array,
        tape: Tape | None = None,
        sample_weight: Array | None = None,
    ) -> Array:
        """Check the target's values, then run `forward` on the device of `prediction`.

        On a device the check waits for the values. Training runs `forward`, which does not check.
        """
        given = {"prediction": prediction, "target": target}
        if sample_weight is not None:
            given["sample_weight"] = sample_weight
        for name, x in given.items():
            _same_library(self, prediction, x, name)
            _check_numbers(self, name, x)
        with scope_of(prediction):
            self.check_target(target, tuple(prediction.shape[1:]))
            return self.forward(prediction, target, tape, sample_weight)

    def check_target(self, target: Any, output_shape: Shape) -> None:
        """Check the targets of a whole data set, on any device: their kind, shape and values.

        Parameters
        ----------
        target : array
            (N, ...), before being moved to a device.
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
                f"{self!r}: expected a target of shape {wanted}, like the model's output, "
                f"got {tuple(target.shape)}"
            )

    def check_batch(self, prediction: Array, target: Array, cost: Array) -> None:
        """Check the targets of a batch after `forward`, for NumPy arrays.

        On a device the check would wait for the values, so nothing is checked there.

        Parameters
        ----------
        prediction, target : array
            The arguments of `forward`.
        cost : array
            The value that `forward` returned. If it is NaN, the targets are checked.

        Raises
        ------
        LabelError
            If this loss is not defined for such targets.
        """
        if is_on_host(cost) and self.suspects(target, cost):
            self.check_target(target, tuple(prediction.shape[1:]))

    def suspects(self, target: Array, cost: Array) -> bool:  # noqa: ARG002
        """Return whether the targets of a batch on the host may be wrong: if the cost is NaN.

        A loop of your own calls this at every step. A subclass may look at more than the cost.
        """
        return has_nan(cost)

    def probabilities(self, prediction: Array) -> Array:
        """Return the probabilities that a prediction stands for: by default, itself."""
        return prediction

    def _scale(self, prediction: Array, target: Array, weight: Array | None) -> Any:
        """Return the factor of each L: a number, a 0-d array or an array (N,)."""
        if self.reduction != "mean":
            return 1.0 if weight is None else weight
        mass = self.mass(target, prediction)
        if weight is None and mass is None:
            return 1.0 / (prediction.shape[0] or 1)
        return kernels(prediction).mean_scale(weight, mass)

    def total_weight(self, prediction: Array, target: Array, weight: Array | None) -> Array | None:
        """Return the divisor of the mean, 0-d on the device; None for the number of samples."""
        mass = self.mass(target, prediction)
        if weight is None and mass is None:
            return None
        return kernels(prediction).total_mass(weight, mass)

    def _check_outputs(self, output_shape: Shape) -> None:
        if len(output_shape) != self.sample_ndim:
            shape = str(("N", *output_shape)).replace("'", "")
            wanted = "(N, outputs)" if self.sample_ndim == 1 else "(N, positions, classes)"
            advice = "; flatten it first, or add an axis" if self.sample_ndim == 1 else ""
            raise ShapeError(
                f"{self!r}: expected a prediction of shape {wanted}, got {shape}{advice}"
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
                "they must be the same (a Loader converts both)"
            )

    def __repr__(self) -> str:
        """Return the expression that creates this loss."""
        settings = {name: getattr(self, name) for name in (*self.defaults, "reduction")}
        usual = {**self.defaults, "reduction": "mean"}
        given = [f"{name}={x!r}" for name, x in settings.items() if x != usual[name]]
        return f"{type(self).__name__}({', '.join(given)})"


def _owner(kind: type, name: str) -> Any:
    """Return the class that defines an attribute of `kind`."""
    return next(base for base in kind.__mro__ if name in vars(base))


def _check_numbers(loss: Loss, name: str, x: Array) -> None:
    """Check that an argument holds real numbers, and is an ordinary array."""
    check_ordinary(repr(loss), name, x)
    place = backend_of(x)
    if place is not None and is_kind(place.xp, x.dtype, "complex floating"):
        raise DTypeError(f"{loss!r}: {name} must hold real numbers, got {x.dtype}")


def _same_library(loss: Loss, prediction: Array, other: Array, name: str = "target") -> None:
    here, there = backend_of(prediction), backend_of(other)
    if there is None:
        raise DTypeError(f"{loss!r}: expected an array as {name}, got {type(other).__name__}")
    if here != there:
        raise DeviceError(
            f"{loss!r}: the prediction is on {here} and the {name} on {there}; "
            f"move one of them: gn.get_backend({str(here)!r}).asarray({name})"
        )
