"""What the estimators share in training: the data's way in, and scikit-learn's rules."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
from array_api_compat import device
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, validate_data

from gpunn._typing import Array
from gpunn.adam import Adam
from gpunn.backend import Backend, scope_of, to_numpy
from gpunn.data import Loader
from gpunn.estimators.epochs import Epochs, Order
from gpunn.estimators.fitted import ROWS, FittedNetwork, of_features
from gpunn.estimators.hooks import DECORATORS, CallbackSupportMixin, Hooks
from gpunn.estimators.origin import Origin, namespace_of
from gpunn.estimators.progress import Progress
from gpunn.estimators.settings import check_solver, place_of
from gpunn.kernels import kernels
from gpunn.layers.compose import Sequential
from gpunn.loss import Loss
from gpunn.optim import Optimizer
from gpunn.schedules import Constant, observe
from gpunn.sgd import SGD
from gpunn.stopping import BestWeights
from gpunn.training import Trainer

#: The learning rate "adaptive" is divided by this, until it is no more than that.
_DIVISOR, _LOWEST_RATE = 5.0, 1e-6


class Samples(NamedTuple):
    """Features, targets as the loss takes them, and weights on the host or None."""

    x: Any
    y: Any
    weight: Any = None


def given_validation(name: str, X: Any, y: Any, weight: Any) -> Samples | None:
    """Return the validation data that `fit` was given, if any."""
    if X is None and y is None and weight is None:
        return None
    if X is None or y is None:
        raise ValueError(f"{name}.fit: X_val and y_val go together; give both or none")
    return Samples(X, y, weight)


class NetworkEstimator(CallbackSupportMixin, FittedNetwork):
    """An estimator around a network.

    A subclass has scikit-learn's settings as attributes, and defines the methods that say what
    targets, loss and score are, which network there is, and how large the penalty.
    """

    #: The solvers that `learning_rate` is for; scikit-learn's networks leave Adam's alone.
    _SCHEDULED: ClassVar[tuple[str, ...]] = ("sgd",)

    #: The batch size that "auto" stands for, where there are so many samples.
    _AUTO: ClassVar[int] = 200

    def _learn_targets(self, y: Any, classes: Any, *, fresh: bool) -> int:
        """Return the number of outputs; learn the labels if fresh, else check them."""
        raise NotImplementedError

    def _targets(self, y: Any, dtype: str) -> Any:
        """Return y as the loss takes it, floats in that dtype."""
        raise NotImplementedError

    def _class_weights(self, y: Any) -> Any:  # noqa: ARG002
        """Return what a sample's label makes of its weight (N,), or None."""
        return None

    def _make_loss(self) -> Loss:
        """Return the loss that goes with the settings and the targets."""
        raise NotImplementedError

    def _make_network(
        self, sizes: tuple[int, int], rng: np.random.RandomState, dtype: str, place: Backend
    ) -> Sequential:
        """Return a network of that many inputs and outputs."""
        raise NotImplementedError

    def _decay(self, total: float) -> Callable[[float], float]:
        """Return what makes a batch's weight decay of its mass; all data have mass `total`."""
        raise NotImplementedError

    def _score_of(self, outputs: Array, target: Any, weight: Any) -> float:
        """Return the score of outputs, for early stopping."""
        raise NotImplementedError

    # Training

    def _fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        validation: Samples | None = None,
        classes: Any = None,
        incremental: bool = False,
    ) -> Any:
        """Train. A call that fails leaves the estimator as it was."""
        fresh = not self.__sklearn_is_fitted__() or not (self.warm_start or incremental)
        before = dict(vars(self))
        weights = None if fresh else BestWeights(self._network)
        begun = False
        try:
            given = Samples(X, y, sample_weight)
            epochs, held_out = self._prepare(given, validation, classes, fresh, incremental)
            hooks = Hooks(
                self,
                1 if incremental else self.max_iter,
                {"X": X, "y": y, "metadata": _metadata(sample_weight)},
                self._as_if_fitted,
            )
            begun = True
            self._train(epochs, held_out, hooks, incremental=incremental)
        except BaseException:  # an interrupt before training, too
            for name in vars(self).keys() - before.keys():
                if "callback" not in name:  # they are yet to be told
                    delattr(self, name)
            self.__dict__.update(before)
            if begun and weights is not None:
                weights.restore()
                self._optimizer.reset()  # it saw what was not finite
            raise
        return self

    def _prepare(
        self,
        given: Samples,
        validation: Samples | None,
        classes: Any,
        fresh: bool,  # noqa: FBT001
        incremental: bool,  # noqa: FBT001
    ) -> tuple[Epochs, Loader | None]:
        """Return what to run over the data, and the data held out, if any."""
        name = type(self).__name__
        check_solver(name, self.solver)
        if incremental and self.early_stopping:
            raise ValueError("partial_fit does not support early_stopping=True")
        train = self._validated(given, reset=fresh)
        self._origin = Origin.of(train.x)
        n_outputs = self._learn_targets(train.y, classes, fresh=fresh)
        rng = self._random_state = check_random_state(self.random_state)
        if fresh:
            place = place_of(name, self.backend, self.device, self._origin.backend)
            dtype = str(train.x.dtype).rpartition(".")[2]
            self._loss = self._make_loss()
            self._network = self._make_network((train.x.shape[1], n_outputs), rng, dtype, place)
            self._dropout_rng = _generator(rng) if self._is_random() else None
            self._progress = Progress(self.early_stopping)
        else:
            self._progress = self._progress.again(early_stopping=self.early_stopping)
        if fresh or not incremental:
            self._optimizer = self._make_optimizer()
        train = self._encoded(train)
        total = float(train.x.shape[0] if train.weight is None else train.weight.sum())
        held_out = None
        if validation is not None:
            held_out = self._encoded(self._validated(validation, reset=False))
        elif self.early_stopping:
            train, held_out = self._split(train, rng)
        return self._epochs(train, rng, total), self._loader(held_out)

    def _validated(self, given: Samples, *, reset: bool) -> Samples:
        """Return the data as arrays, checked as scikit-learn checks them."""
        X, y, sample_weight = given
        weight = None
        with scope_of(X):  # scikit-learn brings arrays of CuPy's to the current device
            X, y = validate_data(self, X, y, reset=reset, **of_features(X), **self._checks())
            if sample_weight is not None:
                weight = to_numpy(_check_sample_weight(sample_weight, X, ensure_non_negative=True))
        return Samples(X, y, weight)

    def _encoded(self, samples: Samples) -> Samples:
        """Return y as the loss takes it, and weights that those of its classes have gone into."""
        y, weight = self._targets(samples.y, self._dtype), samples.weight
        by_class = self._class_weights(samples.y)
        if by_class is not None:
            weight = by_class if weight is None else weight * by_class
        if weight is not None and not weight.sum() > 0:
            raise ValueError(
                f"{type(self).__name__}: the sample weights sum to zero; some must be above it"
            )
        return Samples(samples.x, y, weight)

    def _checks(self) -> dict[str, Any]:
        """Return what scikit-learn is to check of X and y together."""
        return {"multi_output": True}

    def _split(self, samples: Samples, rng: np.random.RandomState) -> tuple[Samples, Samples]:
        """Return the data for training, and those held out."""
        binary = getattr(getattr(self, "_labels", None), "kind", None) == "binary"
        train, held_out = train_test_split(
            np.arange(samples.x.shape[0]),
            random_state=rng,
            test_size=self.validation_fraction,
            stratify=samples.y if binary else None,
        )
        if len(held_out) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' "
                "or the size of your dataset."
            )
        kept, held = (Samples(*(_rows(x, rows) for x in samples)) for rows in (train, held_out))
        for part in (kept, held):
            if part.weight is not None and not part.weight.sum() > 0:
                raise ValueError(
                    f"{type(self).__name__}: a split for early_stopping has no sample of weight "
                    "above zero; leave out samples without weight"
                )
        return kept, held

    def _epochs(self, train: Samples, rng: np.random.RandomState, total: float) -> Epochs:
        """Return what runs the network over the training data."""
        n_samples = train.x.shape[0]
        batch_size = min(self._AUTO, n_samples) if self.batch_size == "auto" else self.batch_size
        if batch_size > n_samples:
            warnings.warn(
                f"Got `batch_size` {batch_size}, more than there are samples; it is clipped to "
                f"{n_samples}",
                stacklevel=5 + DECORATORS,
            )
            batch_size = n_samples
        order = Order(n_samples, batch_size, rng if self.shuffle else None, train.weight)
        loader = self._loader(train, batch_size, shuffle=order if self.shuffle else False)
        assert loader is not None  # noqa: S101
        given = [self.metrics] if isinstance(self.metrics, str) else self.metrics
        metrics = [self._metric(metric) for metric in given]
        trainer = Trainer(self._network, self._loss, self._optimizer, metrics=metrics)
        trainer.check(loader)
        return Epochs(
            self._network,
            self._loss,
            self._optimizer,
            loader,
            order,
            decay=self._decay(total),
            scale=self._loss_scale(),
            metrics=trainer.metrics,
            rng=self._dropout_rng,
        )

    def _loader(
        self, samples: Samples | None, batch_size: int = ROWS, *, shuffle: Any = False
    ) -> Loader | None:
        """Return batches of samples where the network is."""
        if samples is None:
            return None
        return Loader(
            samples.x,
            samples.y,
            sample_weight=samples.weight,
            batch_size=min(batch_size, samples.x.shape[0]),
            shuffle=shuffle,
            backend=self._network.backend,
            dtype=self._dtype,
        )

    def _make_optimizer(self) -> Optimizer:
        """Return the optimizer that the settings name, on the network's parameters."""
        parameters, rate = self._network.parameters(), self.learning_rate_init
        if self.solver == "adam":
            return Adam(
                parameters, rate, beta_1=self.beta_1, beta_2=self.beta_2, epsilon=self.epsilon
            )
        if self.solver == "sgd":
            nesterov = self.nesterovs_momentum and self.momentum > 0
            return SGD(parameters, rate, momentum=self.momentum, nesterov=nesterov)
        optimizer = self.solver(parameters)
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"{type(self).__name__}: solver must return an optimizer of gpunn's when given the "
                f"parameters, such as gpunn.SGD; it returned {type(optimizer).__name__}"
            )
        if optimizer.weight_decay:
            raise ValueError(
                f"{type(self).__name__}: solver returned an optimizer with weight_decay="
                f"{optimizer.weight_decay:g}; leave it out, the penalty is a setting of this "
                "estimator (alpha, or C)"
            )
        return optimizer

    def _train(
        self, epochs: Epochs, held_out: Loader | None, hooks: Hooks, *, incremental: bool
    ) -> None:
        """Run epochs until patience is at an end."""
        progress = self._progress
        best = BestWeights(self._network) if progress.early_stopping else None
        if best is not None and progress.best_score is not None:
            best.loss = -progress.best_score
        stopped = False
        try:
            while not stopped and progress.n_iter < hooks.n_epochs:
                hooks.epoch_begins()
                score = self._epoch(epochs, held_out)
                if best is not None and score is not None:
                    best.offer(progress.n_iter, -score)
                stopped = self._stops()
                stopped = hooks.epoch_ends() or stopped
        except KeyboardInterrupt:
            self._optimizer.clear()  # half of a gradient may be there
            warnings.warn("Training interrupted by user.", stacklevel=4 + DECORATORS)
            stopped = True
        if best is not None:
            best.restore()
        self._check_weights()
        hooks.fit_ends()
        if not (stopped or incremental):
            warnings.warn(self._not_converged(), ConvergenceWarning, stacklevel=4 + DECORATORS)

    def _epoch(self, epochs: Epochs, held_out: Loader | None) -> float | None:
        """Run an epoch and take down its numbers; return the score of the data held out."""
        rate = self._optimizer.learning_rate
        start = time.perf_counter()
        record = epochs.run()
        elapsed = time.perf_counter() - start
        n_samples = epochs.loader.n_samples
        if not math.isfinite(record["loss"]):
            raise ValueError(self._diverged(f"the loss is {record['loss']}"))
        score = None
        if held_out is not None:
            numbers, outputs = epochs.evaluate(held_out)
            record |= {f"validation_{name}": value for name, value in numbers.items()}
            if self.early_stopping:
                weight = held_out.stored.sample_weight
                score = self._score_of(outputs, to_numpy(held_out.targets), weight)
                record["validation_score"] = score
        record |= {
            "learning_rate": rate,
            "elapsed_s": elapsed,
            "samples_per_s": n_samples / elapsed,
        }
        progress = self._progress
        progress.note(record, n_samples, score, self.tol)
        if self.verbose:
            print(f"Iteration {progress.n_iter}, loss = {record['loss']:.8f}")  # noqa: T201
            if score is not None:
                print(f"Validation score: {score:f}")  # noqa: T201
            elif held_out is not None:
                print(f"Validation loss: {record['validation_loss']:.8f}")  # noqa: T201
        return score

    def _stops(self) -> bool:
        """Set the learning rate of the next epoch; return whether there should be none."""
        progress, optimizer = self._progress, self._optimizer
        observe(optimizer.schedule, progress.loss_curve[-1])
        if self.solver in self._SCHEDULED and self.learning_rate == "invscaling":
            rate = self.learning_rate_init / (progress.n_samples + 1) ** self.power_t
            optimizer.schedule = Constant(rate)
        message = progress.why_stop(self.n_iter_no_change, self.tol)
        if not message:
            return False
        stops = True
        if self.solver in self._SCHEDULED and self.learning_rate == "adaptive":
            stops = optimizer.learning_rate <= _LOWEST_RATE
            message += " Learning rate too small." if stops else ""
        if stops:
            message += " Stopping."
        else:
            progress.waited = 0
            optimizer.schedule = Constant(optimizer.learning_rate / _DIVISOR)
            message += f" Setting learning rate to {optimizer.learning_rate:f}"
        if self.verbose:
            print(message)  # noqa: T201
        return stops

    def _check_weights(self) -> None:
        """Check that no weight has overflowed in the last step, whose loss nobody has seen."""
        values = [parameter.value for parameter in self._network.parameters()]
        with scope_of(values[0]):
            xp = kernels(values[0]).xp
            if not all(bool(xp.all(xp.isfinite(value))) for value in values):
                raise ValueError(self._diverged("the solver has produced non-finite weights"))

    def _diverged(self, what: str) -> str:
        return (
            f"{type(self).__name__}: {what} in epoch {self._progress.n_iter + 1}: training has "
            f"diverged. Lower learning_rate_init (now {self.learning_rate_init:g}), or scale the "
            "features first, e.g. with sklearn.preprocessing.StandardScaler"
        )

    def _not_converged(self) -> str:
        curve = self._progress.loss_curve[-self._progress.n_iter :]
        advice = "Increase max_iter, or tol to be content with less"
        if curve[-1] > curve[0]:
            advice = (
                f"The loss has risen, from {curve[0]:.4g} to {curve[-1]:.4g}: lower "
                f"learning_rate_init (now {self.learning_rate_init:g}), or scale the features"
            )
        return (
            f"Maximum iterations ({self.max_iter}) reached and the optimization hasn't converged "
            f"yet. {advice}."
        )

    def _metric(self, metric: Any) -> Any:
        return metric

    def _loss_scale(self) -> float:
        """Return what the loss that is reported is multiplied by."""
        return 1.0

    def _is_random(self) -> bool:
        """Return whether the network draws masks."""
        return False


def _rows(x: Any, rows: Any) -> Any:
    """Return some rows of an array of any library, of a sparse matrix, or of None."""
    if x is None:
        return None
    if isinstance(x, np.ndarray) or hasattr(x, "toarray"):
        return x[rows]
    xp = namespace_of(x)
    with scope_of(x):
        return xp.take(x, xp.asarray(rows, device=device(x)), axis=0)


def _metadata(sample_weight: Any) -> dict[str, Any]:
    return {} if sample_weight is None else {"sample_weight": sample_weight}


def _generator(rng: np.random.RandomState) -> np.random.Generator:
    """Return a generator whose seed is drawn from `rng`."""
    return np.random.default_rng(rng.randint(2**31 - 1))
