"""The table of kernels: the arguments of several calls of each."""

from __future__ import annotations

import itertools
from typing import Any

import array_api_compat.numpy as xp64
import numpy as np

import gpunn as gn
from gpunn.kernels.update import Slots, Update
from gpunn.optim.gradient_sum import GradientSum
from tests.norm_calls import norm_calls
from tests.sequence_calls import sequence_calls
from tests.window_calls import window_calls

NOTHING = gn.Parameter(np.zeros(1))  # for optimizers, of which only the rule is used


class Shift(gn.Activation):
    """A formula that no library can know."""

    def function(self, xp: Any, x: Any) -> Any:
        return xp.abs(x) + 1.0

    def gradient(self, xp: Any, grad: Any, saved: Any) -> Any:
        return grad * xp.sqrt(saved)


FORMULAS = [*(kind() for kind in gn.ACTIVATIONS.values()), gn.ELU(0.3), gn.LeakyReLU(0.2), Shift()]


def calls(rng: np.random.Generator, n: int, p: int) -> dict[str, list[tuple[Any, ...]]]:
    """Return the arguments of several calls of every kernel."""

    def x(*shape: int) -> Any:
        return rng.standard_normal(shape or (n, p))

    labels = rng.integers(0, p, n)
    wrong = np.where(np.arange(n) % 3 == 1, rng.choice([-1, p, 10**6], n), labels)
    scales = [0.25, np.asarray(0.5), rng.uniform(0, 1, n)]
    positions, wrong_positions = (
        np.where(rng.uniform(0, 1, (n, 3)) < 0.3, -100, some[:, None]) for some in (labels, wrong)
    )
    soft = rng.uniform(0, 1, (n, p))
    counts, signs = rng.poisson(1.0, (n, p)).astype(float), rng.choice([-1.0, 1.0], (n, p))
    apart = np.random.default_rng(1)  # so that the numbers of other calls stay as they are
    shares = np.where(soft > 0.2, soft, 0.0)  # 0 log 0 is 0
    parameters = [(n, p), (p,), (2, n, 3), *[(p,)] * (50 if n == 1 else 0)]

    def drawn() -> list[Any]:
        return [x(*shape) for shape in parameters]

    regularised = [
        ([decay if i % 2 else 0.0 for i in range(len(parameters))], clip_norm, clip_value)
        for decay, clip_norm, clip_value in itertools.product((0.0, 0.1), (None, 1), (None, 1))
    ]

    def updates(n_states: int) -> list[Update]:
        return [
            Update(
                Slots(drawn(), drawn(), [[y**2 for y in drawn()] for _ in range(n_states)], decays),
                0.1,
                *clips,
            )
            for decays, *clips in regularised
        ]

    backward = [
        (x(), formula.function(xp64, x()) if formula.saves_output else x(), formula)
        for formula in FORMULAS
    ]
    classes = rng.uniform(0, 2, p).tolist()
    softmax = gn.SoftmaxCrossEntropy()
    weighted = gn.SoftmaxCrossEntropy(class_weight=classes, label_smoothing=0.1)
    losses = [
        *(
            (softmax, 1e3 * x() if i else x(), some, scale)
            for i, scale in enumerate(scales)
            for some in (labels, wrong)
        ),
        *((softmax, 1e3 * soft, some, 0.25) for some in (labels, wrong)),
        *((softmax, x(), soft, scale) for scale in scales),
        *((weighted, x(), some, scale) for scale in scales for some in (labels, wrong, soft)),
        *((gn.BinaryCrossEntropy(), 30 * x(), soft, scale) for scale in scales),
        *(
            (loss, *data, scale)
            for loss, *data in (
                (gn.MeanSquaredError(), x(), x()),
                (gn.MeanAbsoluteError(), x(), x()),
                (gn.Huber(0.5), x(), x()),
                (gn.Poisson(), x(), counts),
                (gn.Poisson(deviance=True), apart.standard_normal((n, p)), counts),
                (gn.Hinge(), 2 * x(), signs),
                (gn.Hinge(squared=True), 2 * x(), 0.5 * (signs + 1)),
                (gn.CosineDistance(), x(), x()),
                (gn.CosineDistance(epsilon=0.5), 0.3 * x(), x()),
                (gn.KLDivergence(), 10 * x(), shares),
                (gn.KLDivergence(from_logits=False), -(x() ** 2), shares),
            )
            for scale in scales
        ),
        *(
            (gn.SequenceCrossEntropy(label_smoothing=e), 10 * x(n, 3, p), some, scale)
            for scale in scales
            for e, some in ((0.0, positions), (0.1, positions), (0.0, wrong_positions))
        ),
    ]
    masses = [(rng.uniform(0, 1, n), None), (None, rng.uniform(0, 1, n)), (x(n) ** 2, x(n) ** 2)]
    return (
        norm_calls(x, n, p)
        | sequence_calls(rng, n, p)
        | window_calls(rng, n, p)
        | {
            "loss": [(*some, {"summed": summed}) for some in losses for summed in (False, True)],
            "add": [(x(), x()), (x(n), x(n))],
            "multiply": [(x(), x())],
            "accumulate": [(x(), x()), (x(p), x(p))],
            "reshape": [(x(), (n, 1, p)), (x(n), (n, 1))],
            "class_mass": [(some, np.array(classes)) for some in (labels, wrong, soft)],
            "count_labels": [
                (some, ignored, x(n))
                for some in (positions, labels[:, None])
                for ignored in (-100, 0)
            ],
            "mean_scale": [*masses, (np.zeros(n), None)],
            "total_mass": masses,
            "product": [(x(), x(p, 4)), (x(p, n), x())],
            "convert": [(labels, "int32"), (3 * x(), "int64")],
            "stack": [([x(), x(), x()],), ([x(p)],)],
            "total": [(x() ** 2,), (x(n) ** 2,)],  # where nothing cancels, errors are relative
            "copy_to_blocks": [(drawn(),)],
            "activation": [(x(), formula) for formula in FORMULAS],
            "bias_activation": [
                (x(), bias, formula) for formula in FORMULAS for bias in (x(p), None)
            ],
            "activation_backward": backward,
            "bias_activation_backward": backward,
            "column_sums": [(x(),)],
            "dropout": [(x(), 2**64 - 1, 0.3), (x(n), 0, 0.5), (x(n, 2, p), 12345, 0.0)],
            "one_hot": [
                (some.astype(t), x()) for some in (labels, wrong) for t in ("int32", "int64")
            ]
            + [(labels.astype("uint8"), x())],
            "sum_of_squares": [(drawn(),), ([x()],)],
            "gradient_norm": [(drawn(),)],
            "update": [
                *(
                    (gn.SGD([NOTHING], momentum=momentum, nesterov=nesterov), update)
                    for momentum, nesterov in ((0.0, False), (0.9, False), (0.9, True))
                    for update in updates(1 if momentum else 0)
                ),
                *(
                    (
                        gn.Adam([NOTHING], beta_1=beta_1, beta_2=beta_2, epsilon=1e-2),
                        update._replace(epsilon=1e-2),
                    )
                    for beta_1, beta_2 in ((0.9, 0.99), (0.0, 0.5), (0.5, 0.0))
                    for update in updates(2)
                ),
                *(
                    (rule, update._replace(epsilon=1e-2, decay_factor=0.5, decoupled=True))
                    for rules, n_states in (
                        ([gn.RMSprop([NOTHING], beta=0.9, epsilon=1e-2)], 1),
                        ([gn.RMSprop([NOTHING], beta=0.9, momentum=0.5, epsilon=1e-2)], 2),
                        ([gn.Adagrad([NOTHING], epsilon=1e-2), GradientSum([NOTHING])], 1),
                    )
                    for update in updates(n_states)
                    for rule in rules
                ),
            ],
            "clip": [(x(), -0.5, 1.0)],
            "gather": [
                (some, rng.integers(0, n, m))
                for some in ([x()], [x(), labels], [x(n, 2, p), x(n), soft], [x()] * 4)
                for m in (0, n, 2 * n)
            ]
            if n
            else [([x(3, p)], labels)],
        }
    )


# By position: what may be written to.
OWNED = {"bias_activation": [0], "accumulate": [0], "track": [0], "update": [1]}
