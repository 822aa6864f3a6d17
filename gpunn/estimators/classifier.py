"""The multi-layer perceptron for classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from sklearn.base import _fit_context
from sklearn.utils.validation import check_is_fitted

from gpunn.arrays.backend import Backend
from gpunn.estimators.classifying import Classifying
from gpunn.estimators.hooks import with_callbacks
from gpunn.estimators.perceptron import Perceptron, Solver
from gpunn.estimators.samples import given_validation
from gpunn.estimators.settings import (
    CLASSES,
    NETWORK,
    TRAINING,
    loss_or,
)
from gpunn.losses.base import Loss
from gpunn.losses.binary_cross_entropy import BinaryCrossEntropy
from gpunn.losses.cross_entropy import CrossEntropy
from gpunn.nn.activation import Activation
from gpunn.training.metrics import Metric


class MLPClassifier(Classifying, Perceptron):
    r"""A multi-layer perceptron that classifies, with scikit-learn's settings.

    The network is :math:`h_{l+1} = f(W_l^T h_l + b_l)`. Trained is the mean of the log-loss over
    the samples of a batch, with scikit-learn's penalty:

    .. math:: J = \frac{1}{N} \Bigl(\sum_i w_i L_i + \frac{\alpha}{2} \sum_l \|W_l\|^2\Bigr),

    N the sum of the batch's weights. One `random_state` gives scikit-learn's estimator and this
    one the same initial weights, order and split, and so the same curves. (Where outputs saturate,
    as they do on features that are not scaled, the curves differ: scikit-learn clips the log-loss
    at 36 a sample in double precision, and this one is exact.) Not here are "lbfgs" with its
    `max_fun`, and sparse answers for sparse multilabel targets.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int, default (100,)
        The number of neurons of each hidden layer.
    activation : str, Activation or list, default "relu"
        Of the hidden layers: ``"identity"``, ``"logistic"``, ``"tanh"``, ``"relu"`` or any other
        of `gpunn.ACTIVATIONS`, or an object. A list has one for each hidden layer.
    solver : {"adam", "sgd"} or function, default "adam"
        The optimizer. A function takes parameters and returns an optimizer of gpunn's, such as
        ``functools.partial(gpunn.SGD, learning_rate=0.1, clip_norm=1.0)``; it then has its own
        learning rate. There is no "lbfgs".
    alpha : float, default 0.0001
        The penalty, at least 0.
    batch_size : int or "auto", default "auto"
        Samples a step; "auto" is the smaller of 200 and the number of samples.
    learning_rate : {"constant", "invscaling", "adaptive"}, default "constant"
        For solver "sgd". "invscaling" divides by :math:`(t + 1)^{power\_t}` with t the number of
        samples seen, at the end of an epoch. "adaptive" divides by 5 where `fit` would stop; a
        call of `partial_fit` is no epoch of `fit` and has `learning_rate_init`, where scikit-learn
        counts it as one and divides.
    learning_rate_init : float, default 0.001
        The first learning rate, above 0.
    power_t : float, default 0.5
        The exponent of "invscaling", at least 0.
    max_iter : int, default 200
        At most so many epochs, at least 1.
    shuffle : bool, default True
        Whether each epoch has a new order.
    random_state : int, RandomState or None, default None
        Of the weights, the split, the order and the dropout.
    tol : float, default 1e-4
        What counts as an improvement of the loss, or of the score with `early_stopping`.
    verbose : bool, default False
        Whether to print each epoch's loss.
    warm_start : bool, default False
        Whether `fit` goes on from where the last one ended. Settings that the network was made
        with (`hidden_layer_sizes`, `activation`, `dropout`, `loss`, and where it is) must be as
        they were, in `partial_fit`, too; what else has changed takes effect.
    momentum : float, default 0.9
        For solver "sgd", in [0, 1).
    nesterovs_momentum : bool, default True
        For solver "sgd" with momentum.
    early_stopping : bool, default False
        Whether to hold data out, stop when their score no longer rises, and go back to the
        weights of the best epoch; also where training diverges, which is then a warning.
    validation_fraction : float, default 0.1
        The share to hold out, in (0, 1).
    beta_1, beta_2, epsilon : float, default 0.9, 0.999, 1e-8
        For solver "adam"; see `gpunn.Adam`.
    n_iter_no_change : int, default 10
        Training stops after more than so many epochs in a row without an improvement.
    loss : "log_loss" or Loss, default "log_loss"
        An object of gpunn's trains on that, such as
        ``gpunn.SoftmaxCrossEntropy(label_smoothing=0.1)``. A cross-entropy has an output for each
        class; other losses are given zeros and ones. Of a loss that knows
        no probabilities, such as the squared error, they are the outputs, clipped and shared out.
    class_weight : dict, "balanced", list or None, default None
        What multiplies the weights of each class's samples, as in scikit-learn. Of several labels
        a sample, a list with one of them for each.
    dropout : float or list of float, default 0.0
        The rate after each hidden layer, in [0, 1).
    metrics : str, Metric or sequence of them, default ()
        What `history_` follows, too, such as ``["accuracy"]``.
    backend : {None, "auto", "numpy", "cupy", "cupy:1", ...}, default None
        Where to compute. None is where X is, if that is a GPU; else what `gpunn.use` has set,
        else NumPy.
    device : int or None, default None
        The index of the GPU, for backend "cupy" or "auto".

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels.
    coefs_, intercepts_ : list of array
        The weights (inputs, outputs) and biases of each layer, in the library of X. Assigning one,
        ``model.coefs_[0] = W``, changes the network; so does writing to one in place, where it is
        in the library and on the device that the network is. NumPy's copies of what is elsewhere
        are read-only.
    n_iter_, t_ : int
        Epochs of the last call of fit, and samples seen, each as often as it was seen.
    loss_, best_loss_, loss_curve_ : float, float or None, list of float
        The training loss with the penalty: the last, the lowest, and all.
    validation_scores_, best_validation_score_ : list of float or None, float or None
        With `early_stopping`: the accuracy of the data held out.
    validation_loss_curve_ : list of float or None
        The loss of the data held out, or given to `fit`, without the penalty.
    history_ : History
        All numbers of all epochs.
    n_features_in_, feature_names_in_, n_layers_, n_outputs_, out_activation_
        As in scikit-learn.

    References
    ----------
    Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015; Glorot and Bengio,
    "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010.

    Examples
    --------
    >>> from gpunn.estimators import MLPClassifier
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> X, y = load_wine(return_X_y=True)
    >>> model = make_pipeline(StandardScaler(), MLPClassifier(max_iter=400, random_state=0))
    >>> model.fit(X, y).score(X, y)
    1.0
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **TRAINING,
        **NETWORK,
        **CLASSES,
        "loss": loss_or("log_loss"),
    }

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str | Activation | Sequence[str | Activation] = "relu",
        *,
        solver: Solver = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: int = 10,
        loss: str | Loss = "log_loss",
        class_weight: Any = None,
        dropout: float | Sequence[float] = 0.0,
        metrics: Sequence[str | Metric] = (),
        backend: str | Backend | None = None,
        device: int | None = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.loss = loss
        self.class_weight = class_weight
        self.dropout = dropout
        self.metrics = metrics
        self.backend = backend
        self.device = device

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
    ) -> MLPClassifier:
        """Train on all of the data.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
            NumPy, lists, pandas, SciPy's sparse formats (of which each batch is made dense); with
            ``sklearn.set_config(array_api_dispatch=True)`` CuPy and other arrays, too. float32
            stays float32.
        y : array-like of shape (n_samples,), or (n_samples, n_labels) of zeros and ones
            The labels.
        sample_weight : array-like of shape (n_samples,), optional
            Not negative.
        X_val, y_val, sample_weight_val : array-like, optional
            Data to follow the loss on, and to stop by with `early_stopping`, in the place of a
            share of the training data.

        Returns
        -------
        self : MLPClassifier
        """
        validation = given_validation(type(self).__name__, X_val, y_val, sample_weight_val)
        return self._fit(X, y, sample_weight, validation=validation)

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None
    ) -> MLPClassifier:
        """Go over some data once, and keep what was learned before.

        A call is no epoch of `fit`: it lowers no learning rate but "invscaling"'s, and uses up no
        patience. It costs the same however many there were.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        classes : array-like of shape (n_classes,), optional
            All labels that may ever come; needed in the first call, unless y has several columns,
            whose indices they are then.

        Returns
        -------
        self : MLPClassifier
        """
        return self._partial_fit(X, y, sample_weight, classes)

    def _given_loss(self) -> Loss | None:
        return self.loss if isinstance(self.loss, Loss) else None

    @property
    def out_activation_(self) -> str:
        """What makes probabilities of outputs: "logistic", "softmax", or "identity" for neither."""
        check_is_fitted(self)
        if isinstance(self._loss, CrossEntropy):
            return "softmax"
        return "logistic" if isinstance(self._loss, BinaryCrossEntropy) else "identity"

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn may ask of this estimator."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
