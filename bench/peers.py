"""The ways that this project competes with, written as their users would write them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms


def make_tutorial_extraction(root: Path, model: nn.Module, batch_size: int = 64) -> Callable[[], int]:
    """An ImageFolder with PIL transforms in a DataLoader, torchvision's network in float32."""
    images = torchvision.datasets.ImageFolder(
        str(root),
        transforms.Compose(
            [
                transforms.Resize(224),
                transforms.CenterCrop(224),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        ),
    )

    @torch.no_grad()
    def work() -> int:
        loader = DataLoader(images, batch_size=batch_size, num_workers=2)
        features = torch.cat([model(batch).flatten(1) for batch, _ in loader])
        return len(features)

    return work


class TutorialSets(Dataset):
    """One set an item: the image at `index` is the anomaly, its companions are drawn when it is asked for."""

    def __init__(self, features: Tensor, labels: np.ndarray, set_size: int):
        self.features, self.labels, self.set_size = features, labels, set_size
        self.generator = np.random.default_rng(0)
        self.rows = {label: np.flatnonzero(labels == label) for label in np.unique(labels)}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        others = [label for label in self.rows if label != self.labels[index]]
        inliers = self.generator.choice(self.rows[self.generator.choice(others)], self.set_size - 1, replace=False)
        target = self.generator.integers(self.set_size)
        return self.features[np.insert(inliers, target, index)], int(target)


class TutorialHead(nn.Module):
    """The same head out of PyTorch's own layers."""

    def __init__(self, input_dim: int):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            256, 4, 512, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.embed = nn.Linear(input_dim, 256)
        self.encoder = nn.TransformerEncoder(layer, 4, norm=nn.LayerNorm(256), enable_nested_tensor=False)
        self.classifier = nn.Linear(256, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(self.encoder(self.embed(features))).squeeze(-1)


def make_tutorial_training(features: Tensor, labels: np.ndarray, batch_size: int, steps: int) -> Callable[[], int]:
    """A Dataset that draws a set an item, a DataLoader with two workers, TransformerEncoder in float32, AdamW."""
    model = TutorialHead(features.shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), 5e-4, weight_decay=0.01)
    loss_function = nn.CrossEntropyLoss()
    loader = DataLoader(
        TutorialSets(features, labels, 10), batch_size, shuffle=True, num_workers=2, persistent_workers=True
    )
    batches = _repeat(loader)
    next(batches)  # starts the workers

    def work() -> int:
        model.train()
        for _ in range(steps):
            batch, target = next(batches)
            loss = loss_function(model(batch), target)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return steps * batch_size

    return work


def _repeat(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


def make_onnx_runtime(model: nn.Module, images: Tensor, folder: Path) -> Callable[[], int]:
    """ONNX Runtime, an extra, in float32 on preprocessed images, as exported by PyTorch. Raises ImportError."""
    open_session = resolve_name("onnxruntime:InferenceSession")
    resolve_name("onnx")  # without it, the export fails in another way
    path = folder / "model.onnx"
    torch.onnx.export(model, (images[:16],), str(path), input_names=["x"], dynamo=False)
    session = open_session(str(path), providers=["CPUExecutionProvider"])
    batches = [batch.numpy() for batch in images.split(16) if len(batch) == 16]

    def work() -> int:
        return sum(len(session.run(None, {"x": batch})[0]) for batch in batches)

    return work
