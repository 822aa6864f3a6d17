"""scikit-learn: a pipeline and a grid search around gpunn's classifier, on handwritten digits.

A scaler and a network; a grid search with cross-validation on 75 % of the images chooses the
network's settings, and the other 25 % are the test set. On a GPU everything stays there, from the
folds to the predictions: with array_api_dispatch, scikit-learn's own parts compute where their
arrays are (the scaler from scikit-learn 1.8 on).

    python examples/sklearn_pipeline.py
    python examples/sklearn_pipeline.py --backend cupy
"""

import argparse
import os
import time

os.environ.setdefault("SCIPY_ARRAY_API", "1")  # array_api_dispatch needs it, before SciPy's import

import sklearn
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import gpunn as gn

# For a scikit-learn user only this import changes, from `from sklearn.neural_network import
# MLPClassifier`. The settings (except solver="lbfgs"), the attributes and the network from one
# random_state are the same; dropout, class_weight, metrics, backend and more are new.
from gpunn.estimators import MLPClassifier

GRID = {
    "mlpclassifier__hidden_layer_sizes": [(32,), (64,)],
    "mlpclassifier__alpha": [0.01, 1.0],
    "mlpclassifier__dropout": [0.0, 0.3],  # scikit-learn's own has none
}


def load_data(backend):
    """Return x_train, x_test, y_train, y_test: pixels on the backend, labels on the host."""
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=0.25, stratify=y, random_state=0
    )
    x_train, x_test = (backend.asarray(part, "float32") for part in (x_train, x_test))
    return x_train, x_test, y_train, y_test


def search(x, y):
    """Return a grid search that has fitted its best pipeline to all of x and y."""
    network = MLPClassifier(learning_rate_init=0.01, max_iter=200, tol=1e-3, random_state=0)
    model = make_pipeline(StandardScaler(), network)
    return GridSearchCV(model, GRID, cv=3, error_score="raise").fit(x, y)


def in_words(params):
    """Return settings of the network as text, without the name of its step in the pipeline."""
    return ", ".join(f"{name.split('__')[1]}={value}" for name, value in params.items())


def report(results):
    """Print the mean score of each candidate, the best first."""
    print("cross-validated accuracy:")
    columns = (results[name] for name in ("mean_test_score", "std_test_score", "params"))
    rows = zip(*columns, strict=True)
    for mean, std, params in sorted(rows, key=lambda row: -row[0]):
        print(f"  {mean:.4f} +- {std:.4f}   {in_words(params)}")


def main():
    """Search on the chosen backend, then test what was found."""
    parser = argparse.ArgumentParser(description="A pipeline in a grid search on the 8x8 digits.")
    parser.add_argument("--backend", default="auto", help="auto, numpy, cupy, cupy:1, ...")
    backend = gn.get_backend(parser.parse_args().backend)
    print(f"backend: {backend}")

    x_train, x_test, y_train, y_test = load_data(backend)
    start = time.perf_counter()
    with sklearn.config_context(array_api_dispatch=True):
        found = search(x_train, y_train)
        answers = found.predict(x_test)
    seconds = time.perf_counter() - start
    report(found.cv_results_)

    network = found.best_estimator_[-1]
    print(f"best settings: {in_words(found.best_params_)}")
    print(f"refitted with these: {network.n_iter_} epochs, training loss {network.loss_:.4f}")
    assert type(answers) is type(x_test), f"the predictions are in {type(answers)}"
    accuracy = (gn.to_numpy(answers) == y_test).mean()
    assert accuracy >= 0.96, f"test accuracy {accuracy:.4f} is below 0.96"
    print(
        f"result: accuracy={accuracy:.4f} cv_accuracy={found.best_score_:.4f} "
        f"seconds={seconds:.1f} backend={backend}"
    )


if __name__ == "__main__":
    main()
