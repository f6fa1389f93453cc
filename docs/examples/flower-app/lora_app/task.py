"""The task: a frozen linear layer W₀ that all clients correct by one low-rank update s · B A.

Every client has inputs of its own kind and answers of one hidden layer W₀ + C with C of rank 3, so
no client sees all of C, and together they do. Trained by plain gradient descent on the mean of
squared errors over all numbers of the answers.
"""

import numpy as np

INPUTS, OUTPUTS, SAMPLES, STEPS, RATE = 12, 8, 60, 20, 0.2
A, B = "base_model.model.layer.lora_A.weight", "base_model.model.layer.lora_B.weight"
Data = tuple[np.ndarray, np.ndarray]


def start(rank: int) -> dict[str, np.ndarray]:
    """LoRA's usual beginning: A at random, B = 0."""
    draw = np.random.default_rng(0)
    right = draw.normal(size=(rank, INPUTS)) / np.sqrt(INPUTS)
    left = np.zeros((OUTPUTS, rank))
    return {A: right.astype(np.float32), B: left.astype(np.float32)}


def layers() -> tuple[np.ndarray, np.ndarray]:
    """The frozen layer, and what it should have been."""
    draw = np.random.default_rng(1)
    frozen = draw.normal(size=(OUTPUTS, INPUTS))
    hidden = draw.normal(size=(OUTPUTS, 3)) @ draw.normal(size=(3, INPUTS)) / 3
    return frozen, frozen + hidden


def data_of(client: int) -> Data:
    """Inputs and answers of a client; it sees some inputs more strongly than others."""
    draw = np.random.default_rng(100 + client)
    scales = draw.uniform(0.2, 1.5, size=INPUTS)
    inputs = draw.normal(size=(SAMPLES, INPUTS)) * scales
    return inputs, inputs @ layers()[1].T


def loss_of(arrays: dict[str, np.ndarray], data: Data, alpha: float) -> float:
    """Mean squared error with the factors in place."""
    return float(np.square(_errors(arrays, data, alpha)).mean())


def descend(arrays: dict[str, np.ndarray], data: Data, alpha: float) -> dict[str, np.ndarray]:
    """Gradient descent on both factors."""
    right, left = (arrays[key].astype(np.float64) for key in (A, B))
    scale = alpha / len(right)
    for _ in range(STEPS):
        errors = _errors({A: right, B: left}, data, alpha)
        slope = 2 / errors.size * errors.T @ data[0]  # of the layer's whole update
        right, left = (
            right - RATE * scale * left.T @ slope,
            left - RATE * scale * slope @ right.T,
        )
    return {A: right.astype(np.float32), B: left.astype(np.float32)}


def _errors(arrays: dict[str, np.ndarray], data: Data, alpha: float) -> np.ndarray:
    inputs, answers = data
    scale = alpha / len(arrays[A])
    return inputs @ (layers()[0] + scale * arrays[B] @ arrays[A]).T - answers
