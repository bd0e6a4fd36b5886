"""Shape letters, fixed once for the whole project, and the check that enforces them at every boundary.

V views · N images · D feature_dim · B batch · S set_size · C classes

features (V, N, D) · labels (N,) · set features (B, S, D) · target (B,) · logits and scores (B, S)
"""

from typing import Any

SHAPES = {
    "features": "V N D",
    "labels": "N",
    "set features": "B S D",
    "target": "B",
    "logits": "B S",
    "scores": "B S",
    "rows": "B S",
}


def check_shape(name: str, array: Any, where: str = "", **sizes: int) -> None:
    """Raise ValueError unless `array` has the shape that `SHAPES` gives to `name`.

    `sizes` pins letters to numbers. The message carries the rule, the received value and `where` it came from.

    >>> import numpy as np
    >>> check_shape("logits", np.zeros((4, 10)), S=10)
    >>> check_shape("logits", np.zeros((4, 9)), where="head", S=10)
    Traceback (most recent call last):
    ...
    ValueError: logits must be (B, S) with S=10, got (4, 9) (head)
    """
    letters = SHAPES[name].split()
    shape = tuple(array.shape)
    fits = len(shape) == len(letters) and all(
        letter not in sizes or sizes[letter] == size for letter, size in zip(letters, shape, strict=True)
    )
    if not fits:
        pinned = ", ".join(f"{letter}={sizes[letter]}" for letter in letters if letter in sizes)
        rule = f"({', '.join(letters)})" + (f" with {pinned}" if pinned else "")
        raise ValueError(f"{name} must be {rule}, got {shape}" + (f" ({where})" if where else ""))
