"""The multi-layer perceptron for classification."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ClassVar

from sklearn.utils.validation import check_is_fitted

from gpunn.arrays.backend import Backend
from gpunn.estimators.classifying import Classifying
from gpunn.estimators.perceptron import Perceptron, Solver
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
from gpunn.training.checkpoint import Checkpoint
from gpunn.training.metrics import Metric


class MLPClassifier(Classifying, Perceptron):
    r"""A multi-layer perceptron for classification, with scikit-learn's settings.

    The network is :math:`h_{l+1} = f(W_l^T h_l + b_l)`. Each step lowers the mean log-loss of a
    batch, with scikit-learn's penalty:

    .. math:: J = \frac{1}{N} \Bigl(\sum_i w_i L_i + \frac{\alpha}{2} \sum_l \|W_l\|^2\Bigr),

    where N is the weight sum of the batch. The same `random_state` gives this estimator and
    scikit-learn's the same initial weights, order and split, and so the same curves. (Where outputs
    saturate, as with unscaled features, the curves differ: scikit-learn clips the log-loss of a
    sample at 36 in double precision; here it is exact.) "lbfgs" minimises J over all data, with N
    their weight sum.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int, default (100,)
        The number of neurons of each hidden layer.
    activation : str, Activation or list, default "relu"
        The activation of the hidden layers: ``"identity"``, ``"logistic"``, ``"tanh"``, ``"relu"``
        or another name in `gpunn.ACTIVATIONS`, or an object. A list has one per hidden layer.
    solver : {"adam", "sgd", "lbfgs"} or function, default "adam"
        The optimizer. "lbfgs" is SciPy's L-BFGS-B on all data, for small data sets: settings of
        batches, learning rates and early stopping do not apply, there is no `partial_fit`,
        `max_iter` counts iterations, and training stops where no entry of the gradient is above
        `tol`. It does not support dropout or checkpoints. A function takes parameters and returns a
        gpunn optimizer with its own learning rate, such as
        ``functools.partial(gpunn.SGD, learning_rate=0.1, clip_norm=1.0)``.
    alpha : float, default 0.0001
        The strength of the penalty, at least 0.
    batch_size : int or "auto", default "auto"
        Samples per step; "auto" is the smaller of 200 and the number of samples.
    learning_rate : {"constant", "invscaling", "adaptive"}, default "constant"
        For solver "sgd". "invscaling" divides by :math:`(t + 1)^{power\_t}` with t the number of
        samples seen, at the end of an epoch. "adaptive" divides by 5 where `fit` would stop. A
        call of `partial_fit` always uses `learning_rate_init`; scikit-learn counts it as an epoch
        and divides.
    learning_rate_init : float, default 0.001
        The first learning rate, above 0.
    power_t : float, default 0.5
        The exponent of "invscaling", at least 0.
    max_iter : int, default 200
        The maximum number of epochs (iterations for "lbfgs"), at least 1.
    shuffle : bool, default True
        Whether each epoch has a new order.
    random_state : int, RandomState or None, default None
        The seed of the weights, the split, the order and dropout.
    tol : float, default 1e-4
        The minimum improvement of the loss, or of the score with `early_stopping`.
    verbose : bool, default False
        Whether to print each epoch's loss.
    warm_start : bool, default False
        Whether `fit` continues where the last call ended. The settings of the network
        (`hidden_layer_sizes`, `activation`, `dropout`, `loss`, backend and device) must then not
        change, nor between calls of `partial_fit`. Changes of other settings take effect.
    momentum : float, default 0.9
        For solver "sgd", in [0, 1).
    nesterovs_momentum : bool, default True
        For solver "sgd" with momentum.
    early_stopping : bool, default False
        Whether to hold data out, stop when their score no longer rises, and restore the weights of
        the best epoch. Training that diverges then ends with a warning, not an error.
    validation_fraction : float, default 0.1
        The share to hold out, in (0, 1).
    beta_1, beta_2, epsilon : float, default 0.9, 0.999, 1e-8
        For solver "adam"; see `gpunn.Adam`.
    n_iter_no_change : int, default 10
        Training stops after more than this many epochs in a row without an improvement.
    max_fun : int, default 15000
        The maximum number of passes over the data of solver "lbfgs".
    loss : "log_loss" or Loss, default "log_loss"
        A loss object, such as ``gpunn.SoftmaxCrossEntropy(label_smoothing=0.1)``, replaces the
        log-loss. A cross-entropy has one output per class; other losses get targets of zeros and
        ones. For a loss that defines no probabilities, such as the squared error, the outputs are
        clipped and normalised to probabilities.
    class_weight : dict, "balanced", list or None, default None
        A factor of the sample weights of each class, as in scikit-learn. For several labels per
        sample, a list with one entry per label.
    dropout : float or list of float, default 0.0
        The rate after each hidden layer, in [0, 1).
    metrics : str, Metric or sequence of them, default ()
        Further columns of `history_`, such as ``["accuracy"]``.
    backend : {None, "auto", "numpy", "cupy", "cupy:1", ...}, default None
        Where to compute. None: the GPU of X, if it is on one; else the backend set by `gpunn.use`;
        else NumPy.
    device : int or None, default None
        The index of the GPU, for backend "cupy" or "auto".
    checkpoint : path, Checkpoint or None, default None
        A file that `fit` writes after each epoch, or as often as a `gpunn.Checkpoint` says. With
        `warm_start`, the first call of `fit` resumes from this file if it exists, with the same
        bits as if training had never stopped; a completed fit is returned unchanged. The data and
        the settings must be the same, except `max_iter`, `tol`, `n_iter_no_change`, `verbose` and
        the device. Ctrl-C and SIGTERM end training after an epoch, with the file written.

    Attributes
    ----------
    classes_ : array of shape (n_classes,)
        The labels, in the library of y (of `classes`, in the first call of `partial_fit`), as in
        scikit-learn; strings are always in NumPy.
    coefs_, intercepts_ : list of array
        The weights (inputs, outputs) and biases of each layer, in the library of X. Assigning an
        entry, ``model.coefs_[0] = W``, changes the network. So does writing to an entry in place,
        if X is in the library and on the device of the network; otherwise the entries are copies,
        read-only on NumPy.
    n_iter_, t_ : int
        Epochs of the last call of fit, and samples seen, counting repetitions.
    loss_, best_loss_, loss_curve_ : float, float or None, list of float
        The training loss with the penalty: the last, the lowest, and all.
    validation_scores_, best_validation_score_ : list of float or None, float or None
        With `early_stopping`: the accuracy on the held-out data.
    validation_loss_curve_ : list of float or None
        The loss on the held-out data, or the validation data given to `fit`, without the penalty.
    history_ : History
        All numbers of all epochs.
    n_features_in_, feature_names_in_, n_layers_, n_outputs_, out_activation_
        As in scikit-learn.

    Notes
    -----
    With ``sklearn.set_config(array_api_dispatch=True)``, `coefs_`, `intercepts_` and the
    results of methods are in the library and on the device of X, and `classes_` in those of y.
    Without it, all are NumPy arrays. Other attributes are Python numbers, or lists of these.

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
        max_fun: int = 15000,
        loss: str | Loss = "log_loss",
        class_weight: Any = None,
        dropout: float | Sequence[float] = 0.0,
        metrics: Sequence[str | Metric] = (),
        backend: str | Backend | None = None,
        device: int | None = None,
        checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
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
        self.max_fun = max_fun
        self.loss = loss
        self.class_weight = class_weight
        self.dropout = dropout
        self.metrics = metrics
        self.backend = backend
        self.device = device
        self.checkpoint = checkpoint

    @property
    def out_activation_(self) -> str:
        """The function from outputs to probabilities: "logistic", "softmax", or else "identity"."""
        check_is_fitted(self)
        if isinstance(self._loss, CrossEntropy):
            return "softmax"
        return "logistic" if isinstance(self._loss, BinaryCrossEntropy) else "identity"
