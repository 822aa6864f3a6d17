"""Logistic regression: breast cancer, by gradient descent, to scikit-learn's own optimum.

A network of one layer, h = sigmoid(theta^T x), on 30 standardised features. The cost

    J(theta) = mean(-y log h - (1 - y) log(1 - h)) + |w|^2 / (2 N)

is scikit-learn's for C = 1, divided by the number of samples N; the bias is not penalised. J is
convex, so gradient descent and scikit-learn's lbfgs must find the same minimum.

    python examples/logistic_regression.py
    python examples/logistic_regression.py --backend cupy
"""

import argparse

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import gpunn as gn


def load_data():
    """Return x_train, x_test, y_train, y_test, standardised with the training set's statistics."""
    x, y = load_breast_cancer(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=0.25, stratify=y, random_state=0
    )
    scaler = StandardScaler().fit(x_train)
    return scaler.transform(x_train), scaler.transform(x_test), y_train, y_test


def cost(weights, bias, x, y):
    """Return J in NumPy and float64, the same yardstick for both solutions."""
    logits = x @ weights + bias
    # log(1 + e^z) - y z equals -y log h - (1 - y) log(1 - h), without overflow
    return np.mean(np.logaddexp(0, logits) - y * logits) + weights @ weights / (2 * len(y))


def theta(model):
    """Return a model's weights and bias as NumPy's float64."""
    weight, bias = (gn.to_numpy(p.value).astype(float) for p in (model.weight, model.bias))
    return weight[:, 0], bias[0]


def train(x, y, backend):
    """Descend along the gradient of J until convergence; return the trainer and the history."""
    model, loss = gn.logistic_regression(x.shape[1], rng=0, backend=backend)
    # One batch is the whole data set, so this is plain gradient descent. At the start, J is curved
    # a thousand times more along one direction than along another; momentum makes that bearable.
    loader = gn.Loader(x, y, batch_size=None, backend=backend)
    optimizer = gn.SGD(
        model.parameters(), learning_rate=0.3, momentum=0.9, nesterov=True, weight_decay=1 / len(y)
    )
    trainer = gn.Trainer(model, loss, optimizer, metrics=["binary_accuracy"])

    # "cost" is the history's column for J: the loss and the penalty of weight decay.
    until_convergence = gn.EarlyStopping(
        monitor="cost", tolerance=1e-6, patience=10, restore_best=False
    )
    history = trainer.fit(loader, epochs=5000, early_stopping=until_convergence)
    return trainer, history


def main():
    """Train, then compare with scikit-learn."""
    parser = argparse.ArgumentParser(description="Logistic regression on the breast cancer data.")
    parser.add_argument("--backend", default="auto", help="auto, numpy, cupy, cupy:1, ...")
    backend = gn.get_backend(parser.parse_args().backend)
    print(f"backend: {backend}")

    x_train, x_test, y_train, y_test = load_data()
    trainer, history = train(x_train, y_train, backend)
    print(f"stopped after {len(history)} epochs: {history.stopped}")

    reference = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(x_train, y_train)
    j = cost(*theta(trainer.model), x_train, y_train)
    j_best = cost(reference.coef_[0], reference.intercept_[0], x_train, y_train)
    accuracy = trainer.evaluate((x_test, y_test))["binary_accuracy"]

    print(f"{'':14}{'cost J':>10}{'test accuracy':>16}")
    print(f"{'gpunn':14}{j:10.6f}{accuracy:16.4f}")
    print(f"{'scikit-learn':14}{j_best:10.6f}{reference.score(x_test, y_test):16.4f}")
    assert abs(j - j_best) <= 1e-3, f"J is {j - j_best:.2e} above the optimum"
    assert accuracy >= 0.95, f"test accuracy {accuracy:.4f} is below 0.95"
    print(f"result: accuracy={accuracy:.4f} cost={j:.6f} excess={j - j_best:.1e} backend={backend}")


if __name__ == "__main__":
    main()
