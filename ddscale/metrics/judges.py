"""Metrics made of a network's layers, each fed block by block: first the reference pictures, then the generated.

Legend: N reference pictures, G generated ones, M gallery pictures, B pictures of a block, D features, K classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddscale.metrics import ranks
from ddscale.metrics.features import Extractor, Name
from ddscale.metrics.frechet import FeatureMoments, frechet_distance, frechet_name
from ddscale.metrics.identification import Gallery, n_way_top_k
from ddscale.metrics.images import Pixels
from ddscale.metrics.inception_score import InceptionScore
from ddscale.metrics.results import Measure, Result

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Layers = dict[str, Tensor]


@dataclass(frozen=True)
class Layer:
    """One output of a network: its name, its width D, where it is computed."""

    name: str
    width: int
    device: torch.device


@dataclass(frozen=True)
class Protocol:
    """What all metrics of an evaluation share.

    shown (G,): the reference picture each generated one was made for. wrong (N,): the picture each is exchanged
    for in the shuffled control. gallery (M,): pictures to tell apart; a picture of the gallery is exchanged for
    another of it.
    """

    shown: Integers
    wrong: Integers
    gallery: Integers
    n_way: int
    top_k: int
    trials: int
    seed: int

    @property
    def references(self) -> int:
        return len(self.wrong)


class LayerMetric:
    """A metric that is shown layers of pictures; positions are those in the whole set."""

    name: str

    def see_reference(self, layers: Layers, positions: Integers) -> None:
        pass

    def finish_reference(self) -> None:
        """After all reference pictures, on every rank."""

    def see_generated(self, layers: Layers, positions: Integers) -> None:
        pass


class PictureMetric(LayerMetric):
    """A metric with a value for each generated picture, against the picture shown and against the wrong one.

    values (2, G): each rank fills its own places; judged (N,): reference pictures for which it is taken.
    """

    def __init__(self, measure: Measure, protocol: Protocol) -> None:
        self.name, self.measure = measure.name, measure
        self.protocol = protocol
        self.values = np.zeros((2, len(protocol.shown)))
        self.place = np.full(protocol.references, -1)
        self.place[protocol.gallery] = np.arange(len(protocol.gallery))
        self.judged = self.place >= 0 if measure.gallery_only else np.ones(protocol.references, bool)

    def compare(self, layers: Layers, targets: Integers, positions: Integers) -> Floats:
        """Values of generated pictures against the reference pictures `targets`, both (B,)."""
        raise NotImplementedError

    def see_generated(self, layers: Layers, positions: Integers) -> None:
        inside = self.judged[self.protocol.shown[positions]]
        if not inside.any():
            return
        chosen = torch.from_numpy(np.flatnonzero(inside))
        layers = {name: layer[chosen.to(layer.device)] for name, layer in layers.items()}
        mine = positions[inside]
        shown = self.protocol.shown[mine]
        self.values[0, mine] = self.compare(layers, shown, mine)
        self.values[1, mine] = self.compare(layers, self.protocol.wrong[shown], mine)


class TwoWay(PictureMetric):
    """Two-way identification by one layer."""

    def __init__(self, name: str, layer: Layer, protocol: Protocol) -> None:
        note = f"among {len(protocol.gallery)} pictures"
        super().__init__(
            Measure(name, "higher", 0.5, gallery_only=True, note=note, proportion=True), protocol
        )
        self._kept = _GalleryFeatures(layer, self.place)

    def see_reference(self, layers: Layers, positions: Integers) -> None:
        self._kept.see(layers, positions)

    def finish_reference(self) -> None:
        self._gallery = Gallery(self._kept.whole())

    def compare(self, layers: Layers, targets: Integers, positions: Integers) -> Floats:
        return self._gallery.two_way(layers[self._kept.layer.name].cpu().numpy(), self.place[targets])


class Similarity(PictureMetric):
    """Cosine similarity of one layer's features."""

    def __init__(self, name: str, layer: Layer, protocol: Protocol) -> None:
        super().__init__(Measure(name, "higher", gallery_only=True), protocol)
        self._kept = _GalleryFeatures(layer, self.place)

    def see_reference(self, layers: Layers, positions: Integers) -> None:
        self._kept.see(layers, positions)

    def finish_reference(self) -> None:
        self._embeddings = torch.from_numpy(self._kept.whole())

    def compare(self, layers: Layers, targets: Integers, positions: Integers) -> Floats:
        embeddings = self._embeddings[torch.from_numpy(self.place[targets])]
        return torch.cosine_similarity(layers[self._kept.layer.name].cpu(), embeddings, dim=1).numpy()


class NWay(PictureMetric):
    """n-way top-k accuracy; the right class is the one the classifier sees in the reference picture."""

    def __init__(self, name: str, layer: Layer, protocol: Protocol) -> None:
        n, k = protocol.n_way, protocol.top_k
        note = f"{protocol.trials} draws of {n - 1} other classes; right is what it sees in the picture shown"
        super().__init__(Measure(name, "higher", k / n, note=note, proportion=True), protocol)
        self._layer = layer
        self._classes = np.zeros(protocol.references)

    def see_reference(self, layers: Layers, positions: Integers) -> None:
        self._classes[positions] = layers[self._layer.name].argmax(dim=1).cpu().numpy()

    def finish_reference(self) -> None:
        self._classes = ranks.sum_of_parts(self._classes, self._layer.device)

    def compare(self, layers: Layers, targets: Integers, positions: Integers) -> Floats:
        p, scores = self.protocol, layers[self._layer.name].cpu().numpy()
        classes = self._classes[targets].astype(np.int64)
        return n_way_top_k(scores, classes, positions, p.n_way, p.top_k, p.trials, p.seed)


class Frechet(LayerMetric):
    """Fréchet distance between all reference and all generated pictures by one layer."""

    def __init__(self, extractor: str, layer: Layer) -> None:
        self.name, self._layer = frechet_name(extractor), layer
        self._real = FeatureMoments(layer.width, layer.device)
        self._made = FeatureMoments(layer.width, layer.device)

    def see_reference(self, layers: Layers, positions: Integers) -> None:
        self._real.add(layers[self._layer.name])

    def see_generated(self, layers: Layers, positions: Integers) -> None:
        self._made.add(layers[self._layer.name])

    def result(self) -> Result:
        if ranks.many():
            self._real.all_reduce()
            self._made.all_reduce()
        real, made = self._real.gaussian(), self._made.gaussian()
        note = f"{made.count} generated against {real.count} real pictures"
        if min(made.count, real.count) <= self._layer.width:
            note += f", fewer than the {self._layer.width} features: compare it only at the same numbers"
        return Result(self.name, frechet_distance(real, made), "lower", note=note)


class Score(LayerMetric):
    """Inception Score of the generated pictures."""

    def __init__(self, name: str, layer: Layer) -> None:
        self.name, self._layer = name, layer
        self._score = InceptionScore(layer.width, device=layer.device)

    def see_generated(self, layers: Layers, positions: Integers) -> None:
        self._score.add(layers[self._layer.name], positions)

    def result(self) -> Result:
        if ranks.many():
            self._score.all_reduce()
        mean, deviation = self._score.result()
        note = f"± {deviation:.3g} over {self._score.splits} splits; says nothing about likeness to the pictures shown"
        return Result(self.name, mean, "higher", note=note)


class Judge:
    """One network and the metrics made of its layers."""

    def __init__(self, extractor: Extractor, protocol: Protocol) -> None:
        self._extractor = extractor
        grey = extractor(torch.full((1, 3, 64, 64), 0.5))
        layers = {name: Layer(name, values.shape[1], extractor.device) for name, values in grey.items()}
        # A network on weights of other origin keeps its digits in the metrics' names.
        plain = next(name for name in METRICS if extractor.name.startswith(name))
        made = METRICS[plain](extractor.name, layers, protocol)
        self.of_pictures = [metric for metric in made if isinstance(metric, PictureMetric)]
        self.of_the_set = [metric for metric in made if isinstance(metric, Frechet | Score)]

    def see_reference(self, pictures: Pixels, positions: Integers) -> None:
        layers = self._extractor(pictures)
        for metric in (*self.of_pictures, *self.of_the_set):
            metric.see_reference(layers, positions)

    def finish_reference(self) -> None:
        for metric in self.of_pictures:
            metric.finish_reference()

    def see_generated(self, pictures: Pixels, positions: Integers) -> None:
        layers = self._extractor(pictures)
        for metric in (*self.of_pictures, *self.of_the_set):
            metric.see_generated(layers, positions)


class _GalleryFeatures:
    """Features (M, D) of the gallery pictures; each rank fills in those that it saw."""

    def __init__(self, layer: Layer, place: Integers) -> None:
        self.layer, self._place = layer, place
        self._features = np.zeros((int((place >= 0).sum()), layer.width), np.float32)

    def see(self, layers: Layers, positions: Integers) -> None:
        inside = self._place[positions] >= 0
        self._features[self._place[positions[inside]]] = layers[self.layer.name].cpu().numpy()[inside]

    def whole(self) -> NDArray[np.float32]:
        return ranks.sum_of_parts(self._features, self.layer.device)


def _inception(name: str, layers: dict[str, Layer], protocol: Protocol) -> list[LayerMetric]:
    score = "inception_score" if name == "inception_v3" else f"inception_score_{name}"
    pool = layers["pool"]
    return [
        TwoWay(f"two_way_{name}", pool, protocol),
        Frechet(name, pool),
        Score(score, layers["logits"]),
    ]


def _alexnet(name: str, layers: dict[str, Layer], protocol: Protocol) -> list[LayerMetric]:
    return [
        TwoWay(f"two_way_{name}_2", layers["relu2"], protocol),
        TwoWay(f"two_way_{name}_5", layers["relu5"], protocol),
    ]


def _efficientnet(name: str, layers: dict[str, Layer], protocol: Protocol) -> list[LayerMetric]:
    return [
        TwoWay(f"two_way_{name}", layers["pool"], protocol),
        *_classifier(name, layers, protocol),
        Frechet(name, layers["pool"]),
    ]


def _clip(name: str, layers: dict[str, Layer], protocol: Protocol) -> list[LayerMetric]:
    embedding = layers["embedding"]
    return [
        Similarity(f"{name}_similarity", embedding, protocol),
        TwoWay(f"two_way_{name}", embedding, protocol),
        Frechet(name, embedding),
    ]


def _classifier(name: str, layers: dict[str, Layer], protocol: Protocol) -> list[LayerMetric]:
    return [NWay(f"{protocol.n_way}_way_top_{protocol.top_k}_{name}", layers["logits"], protocol)]


METRICS: dict[Name, Callable[[str, dict[str, Layer], Protocol], list[LayerMetric]]] = {
    "inception_v3": _inception,
    "alexnet": _alexnet,
    "efficientnet_lite0": _efficientnet,
    "clip": _clip,
    "vit_h_14": _classifier,
}


def metric_names(network: Name, protocol: Protocol) -> list[str]:
    """Names of the metrics that a network gives."""
    # Built on layers of width 1, merely to be named.
    layers: dict[str, Layer] = defaultdict(lambda: Layer("", 1, torch.device("cpu")))
    return [metric.name for metric in METRICS[network](network, layers, protocol)]
