"""The deck's network in Keras, for scripts/benchmark --keras. Needs keras and tensorflow only.

python scripts/benchmark_keras.py rate POOL IMAGES      images per second; POOL 1: no pooling
python scripts/benchmark_keras.py until ACCURACY        trains the network without pooling until
                                                        that accuracy on 10,000 other images
"""

import sys
import time
from pathlib import Path
from typing import Any

import keras as k  # type: ignore[import-not-found]
import numpy as np

BATCH_SIZE = 32
RAW = Path("data/FashionMNIST/raw")
TRAINED = 50_000  # of 60,000


def network(pool: int) -> Any:
    pooling = [k.layers.MaxPool2D(pool)] if pool > 1 else []
    model = k.Sequential(
        [
            k.layers.Input((28, 28, 1)),
            k.layers.Conv2D(64, 3),
            k.layers.LeakyReLU(negative_slope=0.05),
            *pooling,
            k.layers.Flatten(),
            k.layers.Dense(128, activation="relu"),
            k.layers.Dropout(0.6),
            k.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def data() -> tuple[Any, Any]:
    """Return the training images, pixels between 0 and 1, and their labels."""
    pixels = np.fromfile(RAW / "train-images-idx3-ubyte", np.uint8, offset=16)
    labels = np.fromfile(RAW / "train-labels-idx1-ubyte", np.uint8, offset=8)
    return (pixels / 255).astype(np.float32).reshape(-1, 28, 28, 1), labels


def rate(pool: int, images: int) -> float:
    model = network(pool)
    pixels, labels = data()
    model.fit(pixels[:320], labels[:320], batch_size=BATCH_SIZE, verbose=0)  # compiles
    chosen = np.arange(images) % len(labels)
    pixels, labels = pixels[chosen], labels[chosen]
    start = time.perf_counter()
    model.fit(pixels, labels, batch_size=BATCH_SIZE, verbose=0)
    return images / (time.perf_counter() - start)


def until(accuracy: float) -> float:
    model = network(pool=1)
    pixels, labels = data()
    reached = 0.0
    while reached < accuracy:
        done = model.fit(
            *(pixels[:TRAINED], labels[:TRAINED]),
            batch_size=BATCH_SIZE,
            validation_data=(pixels[TRAINED:], labels[TRAINED:]),
            verbose=0,
        )
        reached = done.history["val_accuracy"][-1]
    return reached


if __name__ == "__main__":
    _, what, *numbers = sys.argv
    print(rate(int(numbers[0]), int(numbers[1])) if what == "rate" else until(float(numbers[0])))
