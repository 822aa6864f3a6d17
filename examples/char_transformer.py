"""A small causal transformer learns to write Python's documentation, character by character.

The text is what `help()` prints on 79 topics and ships with Python, some 460,000 characters. One
topic in ten is held out; the loss on these is in nats a character, and exp(loss) is how many
characters the network hesitates between. At the end it writes a sample.

    python examples/char_transformer.py
    python examples/char_transformer.py --backend cupy --plot curve.png
    python examples/char_transformer.py --quick
"""

import argparse
import pydoc_data.topics

import numpy as np

import gpunn as gn

LENGTH, WIDTH, HEADS, BLOCKS = 64, 128, 4, 2
EPOCHS, LEARNING_RATE = 3, 3e-3
UNKNOWN = "\0"  # stands for characters that only the held-out topics have


def load_text():
    """Return the text to learn from and the held-out text."""
    topics = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    held_out = topics[::10]
    rest = [text for i, text in enumerate(topics) if i % 10]
    return "\n\n".join(rest), "\n\n".join(held_out)


class Alphabet:
    """The characters of a text, and their numbers."""

    def __init__(self, text):
        self.characters = [UNKNOWN, *sorted(set(text))]
        self.number_of = {character: i for i, character in enumerate(self.characters)}

    def encode(self, text):
        """Return the numbers of some characters."""
        return np.array([self.number_of.get(character, 0) for character in text])

    def windows(self, text, step):
        """Return sequences that begin every `step` characters, and the next one for each place."""
        numbers = self.encode(text)
        starts = np.arange(0, len(numbers) - LENGTH, step)[:, None]
        return numbers[starts + np.arange(LENGTH)], numbers[starts + np.arange(1, LENGTH + 1)]


def make_model(n_characters, rng):
    """Return the transformer: each half of a block is a norm, then a layer, with a skip."""
    layers = [gn.Embedding(n_characters, WIDTH, scale=0.02, rng=rng)]
    layers.append(gn.Position(LENGTH, WIDTH, rng=rng))
    for _ in range(BLOCKS):
        attention = gn.MultiHeadAttention(WIDTH, HEADS, causal=True, rng=rng)
        inner = gn.Dense(WIDTH, 4 * WIDTH, "relu", rng=rng), gn.Dense(4 * WIDTH, WIDTH, rng=rng)
        layers.append(gn.Residual(gn.Sequential(gn.LayerNorm(WIDTH), attention)))
        layers.append(gn.Residual(gn.Sequential(gn.LayerNorm(WIDTH), *inner)))
    return gn.Sequential(*layers, gn.LayerNorm(WIDTH), gn.Dense(WIDTH, n_characters, rng=rng))


def write(model, alphabet, beginning, length, rng, temperature=0.7):
    """Return a text with this beginning; the model's predictions draw each further character."""
    place, text = model.backend, beginning
    for _ in range(length):
        context = alphabet.encode(text[-LENGTH:])[None, :]
        logits = gn.to_numpy(model(place.asarray(context)))[0, -1].astype(float)
        chances = np.exp((logits - logits.max()) / temperature)
        chances[0] = 0.0  # no unknown character
        text += alphabet.characters[rng.choice(len(chances), p=chances / chances.sum())]
    return text


def report(_, history):
    """Print a line for each epoch."""
    print(
        f"epoch {len(history)}: training {history['loss'][-1]:.3f}, "
        f"held out {history['validation_loss'][-1]:.3f} nats a character, "
        f"{history['elapsed_s'][-1]:.0f} s",
        flush=True,
    )


def plot(history, path):
    """Save the learning curve; print a line if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 (optional)
    except ImportError:
        print("no learning curve: matplotlib is not installed (pip install matplotlib)")
        return
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    epochs = range(1, len(history) + 1)
    for column, label in (("loss", "training"), ("validation_loss", "held out")):
        axes.plot(epochs, history[column], marker="o", label=label)
    axes.set(xlabel="epoch", ylabel="nats a character", xticks=epochs)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    print(f"learning curve: {path}")


def main():
    """Train, report the loss on the held-out text, and write a sample."""
    parser = argparse.ArgumentParser(description="Train a transformer on Python's documentation.")
    parser.add_argument("--backend", default="auto", help="auto, numpy, cupy, cupy:1, ...")
    parser.add_argument(
        "--plot", default="char_transformer.png", metavar="PATH", help="the learning curve"
    )
    parser.add_argument("--quick", action="store_true", help="a sixteenth of the training")
    arguments = parser.parse_args()

    backend = gn.get_backend(arguments.backend)
    text, held_out = load_text()
    alphabet = Alphabet(text)
    x, y = alphabet.windows(text, LENGTH // 2)
    validation = alphabet.windows(held_out, LENGTH)
    epochs, most_loss = EPOCHS, 2.0
    if arguments.quick:
        rows = slice(0, len(x) * EPOCHS // 16)
        x, y, epochs, most_loss = x[rows], y[rows], 1, 3.0
    print(f"backend: {backend}")
    print(
        f"data: {len(text)} characters to learn from and {len(held_out)} held out, "
        f"{len(alphabet.characters)} different ones"
    )

    rng = np.random.default_rng(0)
    model = make_model(len(alphabet.characters), rng).to(backend)
    loader = gn.Loader(x, y, batch_size=32, keep_integers=True, backend=backend, rng=rng)
    steps = epochs * len(loader)
    schedule = gn.WarmUp(steps // 10, gn.Cosine(LEARNING_RATE, steps=steps - steps // 10))
    optimizer = gn.Adam(model.parameters(), schedule, clip_norm=1.0)
    trainer = gn.Trainer(model, gn.SequenceCrossEntropy(), optimizer)
    history = trainer.fit(loader, epochs, validation=validation, callbacks=[report])
    plot(history, arguments.plot)
    print(write(model, alphabet, "The ", 400, rng))

    loss = history["validation_loss"][-1]
    assert loss < most_loss, f"{loss:.3f} nats a held-out character, {most_loss} at most wanted"
    speed = LENGTH * np.median(history["samples_per_s"])
    print(f"result: nats={loss:.4f} characters_per_s={speed:.0f} backend={backend}")


if __name__ == "__main__":
    main()
