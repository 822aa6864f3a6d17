"""Backpropagation by hand: one update of a small network on XOR, number by number.

A network with one hidden layer (2 inputs, 3 tanh neurons, 1 sigmoid output) and binary
cross-entropy. Each step of backpropagation is written out as its formula, computed by hand, and
printed beside what gpunn computes; the two must agree. Then the network is trained on XOR.

    python examples/backprop_by_hand.py
    python examples/backprop_by_hand.py --backend cupy
"""

import argparse

import numpy as np

import gpunn as gn

X = [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
Y = [[0.0], [1.0], [1.0], [0.0]]
LEARNING_RATE = 0.5
UPDATES = 1000


def explain(text):
    """Print a paragraph, a blank line before it."""
    print("\n" + text.strip())


def show(formula, by_hand, library):
    """Print a formula, its value by hand and the library's, side by side; they must agree."""
    hand, lib = gn.to_numpy(by_hand), gn.to_numpy(library)
    assert hand.shape == lib.shape, f"{formula}: {hand.shape} by hand, {lib.shape} in gpunn"
    np.testing.assert_allclose(hand, lib, rtol=1e-12, atol=1e-14, err_msg=formula)
    rows_by_hand, rows_library = (np.atleast_2d(values) for values in (hand, lib))
    width = 9 * rows_by_hand.shape[1]
    shape = " x ".join(map(str, hand.shape)) or "a number"
    print(f"\n    {formula}   ({shape})")
    print(f"      {'by hand':>{width}}     {'gpunn':>{width}}")
    for left, right in zip(rows_by_hand, rows_library, strict=True):
        cells = ("".join(f"{value:9.4f}" for value in row) for row in (left, right))
        print("      {}  |  {}".format(*cells))


def show_start(x, y, hidden, output):
    """Print the data, and the parameters that the layers drew."""
    explain("""
0. THE START. Four samples, and the network's parameters: weights drawn at random, so that the
   hidden neurons differ and can learn different things, and biases of zero.""")
    for name, array in (
        ("X, the inputs", x),
        ("y, the answers", y),
        ("W1, from 2 inputs to 3 hidden neurons", hidden.weight.value),
        ("b1", hidden.bias.value),
        ("W2, from 3 hidden neurons to 1 output", output.weight.value),
        ("b2", output.bias.value),
    ):
        print(f"\n    {name}")
        for row in np.atleast_2d(gn.to_numpy(array)):
            print("      " + "".join(f"{value:9.4f}" for value in row))


def one_update(xp, x, y, hidden, output, loss, optimizer):
    """Print one step of gradient descent: forward, loss, its gradient, backward, update."""
    # The optimizer changes the parameters in place, so the calculation by hand takes copies.
    w1, b1, w2, b2 = (
        xp.asarray(parameter.value, copy=True)
        for layer in (hidden, output)
        for parameter in (layer.weight, layer.bias)
    )
    n = x.shape[0]

    explain("""
1. FORWARD. Each layer multiplies its input by its weights, adds its biases, and applies an
   activation function. Rows are samples, columns are neurons. The library writes on a tape what
   the way back will need.""")
    tape = gn.Tape()
    z1 = x @ w1 + b1
    h1 = xp.tanh(z1)
    hidden_output = hidden.forward(x, tape)
    show("hidden layer:   H = tanh(X W1 + b1)", h1, hidden_output)
    z2 = h1 @ w2 + b2
    logits = output.forward(hidden_output, tape)
    show("output layer:   z = H W2 + b2", z2, logits)
    p = 1.0 / (1.0 + xp.exp(-z2))
    show("probability of a 1:   p = sigmoid(z) = 1 / (1 + e^-z)", p, loss.probabilities(logits))

    explain("""
2. LOSS. One number says how wrong the network is: the mean, over the samples, of minus the
   logarithm of the probability that the network gave to the true answer. (In the library, the
   output layer stops at z, and the loss applies the sigmoid, in a form that cannot overflow.)""")
    cost = xp.mean(-y * xp.log(p) - (1.0 - y) * xp.log(1.0 - p))
    show("cost:   J = mean(-y log p - (1 - y) log(1 - p))", cost, loss.forward(logits, y, tape))

    explain("""
3. GRADIENT OF THE LOSS. How would J change if z did? The derivatives of the logarithm and of the
   sigmoid cancel, and what remains is the error, shared among the N = 4 samples. It is negative
   where z should rise (y = 1) and positive where it should fall (y = 0).""")
    grad_z2 = (p - y) / n
    grad = loss.backward(tape)
    show("dJ/dz = (p - y) / N", grad_z2, grad)

    explain("""
4. BACKWARD THROUGH THE OUTPUT LAYER. By the chain rule, a weight's gradient is the layer's input
   times the gradient of its output, added up over the samples; a bias has the input 1. And to go
   on backward, the gradient passes through the same weights, transposed: a hidden neuron is to
   blame as much as its weight to the output says.""")
    grad_w2 = h1.T @ grad_z2
    grad_b2 = xp.sum(grad_z2, axis=0)
    grad_h1 = grad_z2 @ w2.T
    grad = output.backward(grad, tape)
    show("dJ/dW2 = H^T dJ/dz", grad_w2, output.weight.grad)
    show("dJ/db2 = sum over the samples of dJ/dz", grad_b2, output.bias.grad)
    show("dJ/dH = dJ/dz W2^T", grad_h1, grad)

    explain("""
5. BACKWARD THROUGH THE HIDDEN LAYER. The same once more; only, the gradient first passes through
   the activation, whose slope is tanh'(z) = 1 - tanh(z)^2 = 1 - H^2. That is why the forward pass
   saved H. (The first sample's inputs are both 0, so it says nothing about W1.)""")
    grad_z1 = grad_h1 * (1.0 - h1 * h1)
    grad_w1 = x.T @ grad_z1
    grad_b1 = xp.sum(grad_z1, axis=0)
    grad_x = grad_z1 @ w1.T
    grad = hidden.backward(grad, tape)
    show("dJ/dW1 = X^T dJ/dZ1   with   dJ/dZ1 = dJ/dH (1 - H^2)", grad_w1, hidden.weight.grad)
    show("dJ/db1 = sum over the samples of dJ/dZ1", grad_b1, hidden.bias.grad)
    show("dJ/dX = dJ/dZ1 W1^T   (where a layer before this one would go on)", grad_x, grad)
    assert len(tape) == 0, "backward read all that forward wrote"

    explain(f"""
6. UPDATE. Each parameter takes a small step against its gradient, which is the direction in which
   J falls fastest. Here the learning rate, alpha, is {LEARNING_RATE}.""")
    optimizer.step()
    w1, b1 = w1 - LEARNING_RATE * grad_w1, b1 - LEARNING_RATE * grad_b1
    w2, b2 = w2 - LEARNING_RATE * grad_w2, b2 - LEARNING_RATE * grad_b2
    show("W1 <- W1 - alpha dJ/dW1", w1, hidden.weight.value)
    show("b1 <- b1 - alpha dJ/db1", b1, hidden.bias.value)
    show("W2 <- W2 - alpha dJ/dW2", w2, output.weight.value)
    show("b2 <- b2 - alpha dJ/db2", b2, output.bias.value)

    new_cost = loss.forward(output.forward(hidden.forward(x)), y)
    print(f"\n    The cost J was {float(cost):.6f}, and is {float(new_cost):.6f} now.")
    assert float(new_cost) < float(cost)


def train(model, loss, optimizer, x, y):
    """Repeat the update until XOR is learnt; return the cost and the probabilities."""
    for update in range(UPDATES + 1):
        cost, _ = gn.train_step(model, loss, optimizer, x, y)
        if update in (0, 10, 100, 200, 500, UPDATES):  # on a GPU, reading the cost waits for it
            print(f"    update {update:5d}   J = {float(cost):.6f}")
    p = gn.to_numpy(loss.probabilities(model(x)))
    print("\n    x1  x2   XOR   p")
    for (x1, x2), (target,), (answer,) in zip(X, Y, p, strict=True):
        print(f"    {x1:2.0f}  {x2:2.0f}   {target:3.0f}   {answer:.4f}")
    return float(cost), p


def lesson(backend):
    """Show one update, check the gradients in another way, then train; return loss and accuracy."""
    # float64, so that the calculation by hand and the library's agree to twelve digits.
    settings = {"rng": np.random.default_rng(0), "dtype": "float64", "backend": backend}
    hidden = gn.Dense(2, 3, activation="tanh", **settings)
    output = gn.Dense(3, 1, **settings)
    model = gn.Sequential(hidden, output)
    loss = gn.BinaryCrossEntropy()
    optimizer = gn.SGD(model.parameters(), learning_rate=LEARNING_RATE)
    x, y = backend.asarray(X, "float64"), backend.asarray(Y, "float64")

    explain("""
XOR is 1 where exactly one of its two inputs is 1. No straight line separates its ones from its
zeros, so a single layer cannot learn it; with one hidden layer, it can be learnt. Here is one
update of the parameters, with every number in it.""")
    show_start(x, y, hidden, output)
    one_update(backend.xp, x, y, hidden, output, loss, optimizer)

    explain("""
7. IS IT TRUE? A derivative can be checked without any calculus: change a parameter a little, and
   see how much J changes. (In the library, W1 is layers.0.weight, and b2 is layers.1.bias.)""")
    report = gn.check_gradients(model, x, y, loss=loss)
    print(
        f"\n    For all {report.checked} derivatives, backpropagation and a small change agree:\n"
        f"    beyond rounding, they differ by {report.error:.0e} of the derivative at most."
    )

    explain(f"""
8. AGAIN AND AGAIN. Steps 1 to 6 are what gn.train_step does. {UPDATES} times, on all four samples:
""")
    cost, p = train(model, loss, optimizer, x, y)
    return cost, np.mean((p > 0.5) == np.array(Y))


def main():
    """Give the lesson on the chosen backend."""
    parser = argparse.ArgumentParser(description="Backpropagation on XOR, step by step.")
    parser.add_argument("--backend", default="auto", help="auto, numpy, cupy, cupy:1, ...")
    backend = gn.get_backend(parser.parse_args().backend)
    print(f"backend: {backend}")
    with backend.scope():  # what is calculated by hand takes place on the backend's device
        cost, accuracy = lesson(backend)
    assert accuracy == 1.0, f"XOR is not learnt: accuracy {accuracy}"
    assert cost < 0.05, f"J is still {cost}"
    print(f"\nresult: accuracy={accuracy:.4f} loss={cost:.6f} backend={backend}")


if __name__ == "__main__":
    main()
