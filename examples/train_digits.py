"""A real training to schedule: an MLP in plain numpy on scikit-learn's digits, with minibatch SGD and momentum.

    python train_digits.py --lr 0.1 --width 512

It trains for `--budget` seconds of CPU (all attempts together), reports its validation loss several times a second, and
checkpoints when asked to stop, so that Tierline can take it off its slot and bring it back where it left. Run without
Tierline it does the same and prints its progress. Every hyperparameter may be hostile: see scripts/demo.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import tierline
from tierline.report import resuming

Array = NDArray[np.float32]
CHECKPOINT = "mlp.npz"
VALIDATION_ROWS = 500


def load_digits() -> tuple[Array, NDArray[np.int64]]:
    """The 1,797 digits: pixels (N, 64) scaled to 0..1, labels (N). Reads the file that scikit-learn ships.

    Importing scikit-learn itself takes about a second, which every restart of a trial would pay again.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("train_digits.py needs scikit-learn: pip install 'tierline[demo]'")
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    rows = np.loadtxt(path, delimiter=",", dtype=np.float32)
    order = np.random.default_rng(0).permutation(len(rows))
    return rows[order, :64] / 16.0, rows[order, 64].astype(np.int64)


def shifted(pixels: Array, rng: np.random.Generator) -> Array:
    """Each image moved by up to one pixel and made noisy, so that there is something to learn for a while."""
    padded = np.pad(pixels.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    down, right = rng.integers(0, 3, size=(2, len(pixels)))
    rows = (down[:, None] + np.arange(8))[:, :, None]
    columns = (right[:, None] + np.arange(8))[:, None, :]
    moved = padded[np.arange(len(pixels))[:, None, None], rows, columns].reshape(-1, 64)
    noise = rng.standard_normal(moved.shape, dtype=np.float32)
    return np.asarray(moved + np.float32(0.25) * noise, dtype=np.float32)


class Mlp:
    """64 → width (depth times, ReLU) → 10, softmax cross-entropy. Weights are lists of (inputs, outputs) arrays."""

    def __init__(self, width: int, depth: int, init: float, rng: np.random.Generator) -> None:
        sizes = [64] + [width] * depth + [10]
        self.weights = [
            (rng.standard_normal((a, b)) * init * np.sqrt(2.0 / a)).astype(np.float32)
            for a, b in itertools.pairwise(sizes)
        ]
        self.biases = [np.zeros(b, np.float32) for b in sizes[1:]]
        self.velocity = [np.zeros_like(p) for p in self.parameters()]

    def parameters(self) -> list[Array]:
        return [*self.weights, *self.biases]

    def forward(self, x: Array) -> list[Array]:
        """The activations of every layer, logits last."""
        layers = [x]
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            z = layers[-1] @ w + b
            layers.append(z if i == len(self.weights) - 1 else np.maximum(z, 0))
        return layers

    def step(self, x: Array, y: NDArray[np.int64], lr: float, momentum: float) -> None:
        layers = self.forward(x)
        delta = np.exp(layers[-1] - layers[-1].max(axis=1, keepdims=True))
        delta /= delta.sum(axis=1, keepdims=True)
        delta[np.arange(len(y)), y] -= 1
        delta /= len(y)
        grad_w: list[Array] = []
        grad_b: list[Array] = []
        for i in reversed(range(len(self.weights))):
            grad_w.insert(0, layers[i].T @ delta)
            grad_b.insert(0, delta.sum(axis=0))
            if i:
                delta = (delta @ self.weights[i].T) * (layers[i] > 0)
        for parameter, velocity, gradient in zip(self.parameters(), self.velocity, [*grad_w, *grad_b], strict=True):
            velocity *= momentum
            velocity -= lr * gradient
            parameter += velocity

    def evaluate(self, x: Array, y: NDArray[np.int64]) -> tuple[float, float]:
        """(cross-entropy in nats, accuracy); a model that has learnt nothing has ln 10 = 2.303 and about 0.1."""
        logits = self.forward(x)[-1].astype(np.float64)
        top = logits.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
        loss = float(np.mean(log_sum - logits[np.arange(len(y)), y]))
        return loss, float(np.mean(logits.argmax(axis=1) == y))

    def save(self, step: int, cpu_s: float) -> None:
        """Everything a later attempt needs."""
        arrays = [*self.parameters(), *self.velocity]
        tierline.save_checkpoint(CHECKPOINT, lambda file: np.savez(file, *arrays, step=step, cpu_s=cpu_s))

    def load(self, path: Path) -> tuple[int, float]:
        """(step, CPU seconds used so far) of the checkpoint."""
        with np.load(path) as stored:
            own = [*self.parameters(), *self.velocity]
            for i, array in enumerate(own):
                array[...] = stored[f"arr_{i}"]
            return int(stored["step"]), float(stored["cpu_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--init", type=float, default=1.0, help="scale of the initial weights; 1 is He's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=15.0, help="CPU seconds of training, all attempts together")
    options = parser.parse_args()
    np.seterr(all="ignore")  # a diverging trial is part of the game; its loss says so

    pixels, labels = load_digits()
    x_valid, y_valid = pixels[:VALIDATION_ROWS], labels[:VALIDATION_ROWS]
    x_train, y_train = pixels[VALIDATION_ROWS:], labels[VALIDATION_ROWS:]
    rng = np.random.default_rng(options.seed)
    model = Mlp(options.width, options.depth, options.init, rng)
    step, cpu_before = 0, 0.0
    if resuming() and (tierline.checkpoint_dir() / CHECKPOINT).exists():
        step, cpu_before = model.load(tierline.checkpoint_dir() / CHECKPOINT)
        rng = np.random.default_rng((options.seed, step))

    def cpu_s() -> float:
        return cpu_before + time.process_time() - cpu_start

    cpu_start = time.process_time()
    reported_s = -1.0
    while cpu_s() < options.budget:
        rows = rng.integers(0, len(x_train), options.batch)
        model.step(shifted(x_train[rows], rng), y_train[rows], options.lr, options.momentum)
        step += 1
        if cpu_s() - reported_s >= 0.25:
            reported_s = cpu_s()
            loss, accuracy = model.evaluate(x_valid, y_valid)
            tierline.report(step, loss=loss, accuracy=accuracy)
            print(f"step {step} loss {loss:.4f} accuracy {accuracy:.3f} cpu {reported_s:.1f} s", flush=True)
        if tierline.should_stop():
            model.save(step, cpu_s())
            break


if __name__ == "__main__":
    main()
