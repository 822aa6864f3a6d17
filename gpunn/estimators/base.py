"""The base class of the estimators: it checks the data and sets up training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
from sklearn.base import _fit_context
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, validate_data

from gpunn._typing import Shape
from gpunn.arrays.backend import Backend, backend_of, scope_of
from gpunn.arrays.exchange import to_numpy
from gpunn.arrays.facts import dtype_name
from gpunn.arrays.streams import finish, follow_default_stream
from gpunn.data.loader import Loader
from gpunn.estimators.changes import check_place, check_unchanged
from gpunn.estimators.epochs import Epochs, Order
from gpunn.estimators.fitted import ROWS
from gpunn.estimators.full_batch import FullBatchTraining, Penalty, equal_parts
from gpunn.estimators.hooks import DECORATORS, Hooks, with_callbacks
from gpunn.estimators.labels import readable
from gpunn.estimators.origin import Origin
from gpunn.estimators.progress import Progress
from gpunn.estimators.resuming import Saved
from gpunn.estimators.samples import Samples, check_unmasked, given_validation, split
from gpunn.estimators.settings import as_metrics, check_settings, place_of
from gpunn.estimators.solvers import is_full_batch, make_optimizer, up_to_date
from gpunn.losses.base import Loss
from gpunn.nn.layer import Layer
from gpunn.program import Program
from gpunn.training.stopping import BestWeights
from gpunn.training.trainer import Trainer


class Sizes(NamedTuple):
    """The shape of a sample, and the number of outputs of the network."""

    inputs: Shape
    outputs: int


class NetworkEstimator(FullBatchTraining):
    """An estimator around a network.

    A subclass stores scikit-learn's settings as attributes, and defines the targets, the loss,
    the score and the network.
    """

    #: The solvers that the setting `learning_rate` applies to; scikit-learn's networks exempt Adam.
    _SCHEDULED: ClassVar[tuple[str, ...]] = ("sgd",)

    #: The batch size for "auto"; smaller if there are fewer samples.
    _AUTO: ClassVar[int] = 200

    def _learn_targets(self, y: Any, classes: Any, *, fresh: bool, incremental: bool) -> int:
        """Return the number of outputs; learn the labels if `fresh`, else check them."""
        raise NotImplementedError

    def _targets(self, y: Any, dtype: str) -> Any:
        """Return y as the loss expects it, with floats of that dtype."""
        raise NotImplementedError

    def _class_weights(self, y: Any, weight: Any) -> Any:  # noqa: ARG002
        """Return the class weight of each sample (N,), or None if all are equal."""
        return None

    def _structure(self) -> Iterator[tuple[str, Any]]:
        """Yield the settings that an existing network cannot change, by name."""
        raise NotImplementedError

    def _make_loss(self) -> Loss:
        """Return the loss for the settings and the targets."""
        raise NotImplementedError

    def _make_network(
        self, sizes: Sizes, rng: np.random.RandomState, dtype: str, place: Backend
    ) -> Layer:
        """Return a network for samples and outputs of these sizes."""
        raise NotImplementedError

    def _decay(self, total: float) -> Callable[[float], float]:  # noqa: ARG002
        """Return a function from a batch's weight sum to its decay; `total` is the whole sum.

        As in scikit-learn, every batch divides the penalty by its own size.
        """
        alpha = float(self.alpha)
        return lambda mass: alpha / mass if mass > 0 else 0.0

    def _penalty(self, total: float) -> Penalty:
        """Return the penalty added to the mean loss of data whose weights sum to `total`."""
        return Penalty(0.0, self._decay(total)(total))

    def _validate_params(self) -> None:
        """Check the settings; scikit-learn calls this before `fit`."""
        settings = self.get_params(deep=False)
        check_settings(type(self).__name__, self._parameter_constraints, settings)

    # Training

    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> Any:
        """Train on all of the data.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
            NumPy, lists, pandas or sparse SciPy formats (batches are made dense); with
            ``sklearn.set_config(array_api_dispatch=True)`` also CuPy and other arrays. float32
            stays float32.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Labels, or zeros and ones where a sample may have several labels; for regression,
            numbers.
        sample_weight : array-like of shape (n_samples,), optional
            Non-negative weights.
        X_val, y_val, sample_weight_val : array-like, optional
            Validation data. With `early_stopping`, they are used instead of a held-out share of the
            training data.

        Returns
        -------
        self : estimator
        """
        validation = given_validation(type(self).__name__, X_val, y_val, sample_weight_val)
        return self._fit(X, y, sample_weight, validation=validation)

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
        """Train. A call that fails leaves the estimator unchanged."""
        follow_default_stream(backend_of(X))
        fresh = not self.__sklearn_is_fitted__() or not (self.warm_start or incremental)
        before = dict(vars(self))
        weights = None if fresh else BestWeights(self._network)
        undo = None if fresh else self._progress.mark()
        begun = False
        try:
            saved = Saved(self, resume=fresh and self.warm_start, wanted=not incremental)
            given = Samples(X, y, sample_weight)
            epochs, held_out = self._prepare(
                given, validation, classes, saved, fresh=fresh, incremental=incremental
            )
            hooks = Hooks(
                self,
                1 if incremental else self.max_iter,
                {"X": X, "y": y, "metadata": _metadata(sample_weight)},
                self._fitted_attributes,
            )
            begun = True
            if is_full_batch(self.solver):
                self._minimize(epochs, held_out, hooks)
            else:
                self._train(epochs, held_out, hooks, saved, incremental=incremental)
        except BaseException:  # including an interrupt before training
            for name in vars(self).keys() - before.keys():
                if "callback" not in name:  # callbacks are still to be notified
                    delattr(self, name)
            self.__dict__.update(before)
            if undo is not None:
                undo()
            if begun and weights is not None:
                weights.restore()
                self._optimizer.reset()  # its state may not be finite
                finish(self._network.backend)
            raise
        return self

    def _prepare(
        self,
        given: Samples,
        validation: Samples | None,
        classes: Any,
        saved: Saved,
        *,
        fresh: bool,
        incremental: bool,
    ) -> tuple[Epochs, Loader | None]:
        """Return the epochs to run, and the validation data, if any."""
        name = type(self).__name__
        if incremental and self.early_stopping:
            raise ValueError("partial_fit does not support early_stopping=True")
        if not fresh:
            check_unchanged(name, self._network_settings, self._structure())
            home = self._network.backend
            assert home is not None  # noqa: S101
            check_place(name, self._network_settings, self.backend, self.device, home)
        train = self._validate_samples(given, reset=fresh)
        self._origin = Origin.of(train.x)
        n_outputs = self._learn_targets(train.y, classes, fresh=fresh, incremental=incremental)
        rng = check_random_state(self.random_state)
        if fresh:
            place = place_of(name, self.backend, self.device, self._origin.backend)
            dtype = dtype_name(train.x)
            self._begin(Sizes(tuple(train.x.shape[1:]), n_outputs), rng, dtype, place)
        else:
            self._progress.begin(early_stopping=self._holds_out)
            if incremental:
                held = self._optimizer
                self._optimizer = up_to_date(self, held, self._network_settings["solver"])
            else:
                self._optimizer = make_optimizer(self)
            self._network_settings = self._network_settings | {"solver": self.solver}
        rng = self._random_state = saved.generator(rng)
        train = self._encode_samples(train)
        total = float(train.x.shape[0] if train.weight is None else train.weight.sum())
        held_out = None
        if validation is not None:
            held_out = self._encode_samples(self._validate_samples(validation, reset=False))
        elif self._holds_out:
            binary = getattr(getattr(self, "_labels", None), "kind", None) == "binary"
            train, held_out = split(train, float(self.validation_fraction), rng, stratify=binary)
        return self._epochs(train, rng, total), self._loader(held_out)

    def _begin(self, sizes: Sizes, rng: np.random.RandomState, dtype: str, place: Backend) -> None:
        """Create a network, its loss and its optimizer."""
        self._network_settings = {
            **dict(self._structure()),
            "backend": self.backend,
            "device": self.device,
            "solver": self.solver,
        }
        self._n_outputs = sizes.outputs
        self._loss = self._make_loss()
        self._network = self._make_network(sizes, rng, dtype, place)
        self._dropout_rng = generator(rng) if self._is_random() else None
        self._program = Program()
        self._progress = Progress(self._holds_out)
        self._optimizer = make_optimizer(self)

    def _validate_samples(self, given: Samples, *, reset: bool) -> Samples:
        """Return the data as arrays, checked by scikit-learn."""
        X, y, sample_weight = given
        check_unmasked(type(self).__name__, X=X, y=y, sample_weight=sample_weight)
        y, weight = readable(y), None
        with scope_of(X):  # scikit-learn moves CuPy arrays to the current device
            X, y = validate_data(self, X, y, reset=reset, **self._x_checks(X), **self._checks())
            if sample_weight is not None:
                weight = to_numpy(_check_sample_weight(sample_weight, X, ensure_non_negative=True))
        if not reset:
            self._check_sample_shape(tuple(X.shape[1:]))
        return Samples(X, y, weight)

    def _encode_samples(self, samples: Samples) -> Samples:
        """Return y as the loss expects it, and sample weights multiplied by class weights."""
        y, weight = self._targets(samples.y, self._dtype), samples.weight
        by_class = self._class_weights(samples.y, weight)
        if by_class is not None:
            weight = by_class if weight is None else weight * by_class
        if weight is not None and not weight.sum() > 0:
            raise ValueError(
                f"{type(self).__name__}: the sample weights sum to zero; some must be positive"
            )
        return Samples(samples.x, y, weight)

    def _checks(self) -> dict[str, Any]:
        """Return the arguments of scikit-learn's check of X and y."""
        return {"multi_output": True}

    def _epochs(self, train: Samples, rng: np.random.RandomState, total: float) -> Epochs:
        """Return the epochs over the training data."""
        n_samples = train.x.shape[0]
        batch_size, shuffle = self._batching(n_samples)
        order = Order(n_samples, batch_size, rng if shuffle else None, train.weight)
        loader = self._loader(train, batch_size, shuffle=order if shuffle else False)
        assert loader is not None  # noqa: S101
        given = as_metrics(type(self).__name__, self.metrics)
        metrics = [self._metric(metric) for metric in given]
        parts = self._network, self._loss, self._optimizer
        trainer = Trainer(*parts, metrics=metrics, rng=self._dropout_rng)
        trainer.check(loader)
        return Epochs(
            trainer,
            loader,
            order,
            decay=self._decay(total),
            scale=self._loss_scale(),
            rng=self._dropout_rng,
            program=self._program,
        )

    def _batching(self, n_samples: int) -> tuple[int, bool]:
        """Return the batch size, and whether to shuffle the samples."""
        if is_full_batch(self.solver):
            return equal_parts(n_samples), False
        if self.batch_size == "auto":
            return min(self._AUTO, n_samples), self.shuffle
        if self.batch_size <= n_samples:
            return int(self.batch_size), self.shuffle
        warnings.warn(
            f"Got `batch_size` {self.batch_size}, more than the number of samples; it is clipped "
            f"to {n_samples}",
            stacklevel=6 + DECORATORS,
        )
        return n_samples, self.shuffle

    @property
    def _holds_out(self) -> bool:
        """Whether `fit` stops early by a score on held-out data; full-batch solvers never do."""
        return bool(self.early_stopping) and not is_full_batch(self.solver)

    def _loader(
        self, samples: Samples | None, batch_size: int = ROWS, *, shuffle: Any = False
    ) -> Loader | None:
        """Return a loader of samples on the network's device."""
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

    def _metric(self, metric: Any) -> Any:
        return metric

    def _loss_scale(self) -> float:
        """Return the factor from the loss to the reported loss."""
        return 1.0

    def _is_random(self) -> bool:
        """Return whether the network draws random numbers, as dropout does."""
        return False


def _metadata(sample_weight: Any) -> dict[str, Any]:
    return {} if sample_weight is None else {"sample_weight": sample_weight}


def generator(rng: np.random.RandomState) -> np.random.Generator:
    """Return a generator seeded with a number drawn from `rng`."""
    return np.random.default_rng(rng.randint(2**31 - 1))
