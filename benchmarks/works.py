"""What is measured: a work is one model with its sizes; a new one is a line in `WORKS`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Layers = list[tuple[Array, Array]]
"""Weights (out, in) and biases (out) of a perceptron's layers; several inputs lie side by side in the first."""

ALPHA, LABELLED_SHARE, LEARNING_RATE = 0.1, 0.5, 1e-3
"""Of `ppgen.SemiSupervised` and of Adam, the same for every contender."""

SMALLEST_SCALE = 1e-3
BATCHES = 8


@dataclass(frozen=True)
class Work:
    """One model, on one size of batch, that every contender of its kind trains.

    Attributes:
        name: what the user types.
        kind: which contenders can do it.
        x: values of a datum.
        hidden: sizes of the hidden layers of the encoder, or of the critic (of "wgan-gp-dcgan" channels); those of the
            decoder or generator are the same in reverse.
        z: size of the latent vector.
        batch: rows of a batch; of the unlabelled rows for "m2".
        labelled: labelled rows of a batch.
        classes: number of labels.
        particles: draws of the latent vector; the contenders of "iwae" and of `growth` alone know more than one.
        rounds: how often each contender has its turn; None for as often as the user asked.
        turn: consecutive steps of a turn.
        skip: how many steps at the start of a turn are not counted.
        calls: steps that are compared with the reference before anything is timed.
        references: runs of the reference, from which the Monte Carlo error is taken.
        tolerance: share of the loss by which a contender may differ beyond the Monte Carlo error.
    """

    name: str
    kind: Literal["vae", "m2", "iwae", "wgan-gp", "wgan-gp-dcgan", "vae-epoch"]
    x: int
    hidden: tuple[int, ...]
    z: int
    batch: int
    labelled: int = 0
    classes: int = 0
    particles: int = 1
    rounds: int | None = None
    turn: int = 6
    skip: int = 2
    calls: int = 10
    references: int = 10
    tolerance: float = 5e-4

    @property
    def description(self) -> str:
        """One line of sizes."""
        sizes = "-".join(map(str, (self.x, *self.hidden, self.z)))
        if self.kind == "m2":
            rows = f"batch {self.batch} unlabelled + {self.labelled} labelled"
            return f"M2 {sizes}, {self.classes} labels enumerated, {rows}"
        if self.kind == "iwae":
            return f"IWAE {sizes}, {self.particles} samples, batch {self.batch}"
        if self.kind in ("wgan-gp", "wgan-gp-dcgan"):
            network = "DCGAN " if self.kind == "wgan-gp-dcgan" else ""
            return f"WGAN-GP {network}{sizes}, batch {self.batch}, five times the critic and once the generator"
        return f"VAE {sizes}, batch {self.batch}" + (", one epoch of 60,000 rows" if self.kind == "vae-epoch" else "")

    @property
    def unit(self) -> str:
        """What one step is called."""
        return "epoch" if self.kind == "vae-epoch" else "step"

    def networks(self) -> dict[str, tuple[list[int], list[int]]]:
        """Returns the sizes of the inputs, and those of the layers, by network."""
        backwards = list(reversed(self.hidden))
        label = [self.classes] if self.classes else []
        found = {
            "encoder": ([self.x, *label], [*self.hidden, 2 * self.z]),
            "decoder": ([self.z, *label], [*backwards, self.x]),
        }
        return found | ({"classifier": ([self.x], [*self.hidden, self.classes])} if label else {})

    def weights(self) -> dict[str, Layers]:
        """Returns the initial weights, the same for every contender."""
        random = np.random.default_rng(0)
        found = {}
        for name, (inputs, outputs) in self.networks().items():
            layers, size = [], sum(inputs)
            for width in outputs:
                bound = 1 / np.sqrt(size)
                draw = random.uniform(-bound, bound, (width, size + 1)).astype(np.float32)
                layers.append((draw[:, :-1].copy(), draw[:, -1].copy()))
                size = width
            found[name] = layers
        return found

    def batches(self) -> list[Mapping[str, Array]]:
        """Returns a few batches of random black and white data, for every contender to go through in turn.

        Columns: ``x`` (batch, x) and, with labels, ``labelled`` (labelled, x) and one-hot ``y`` (labelled, classes).
        """
        random = np.random.default_rng(1)
        return [self._batch(random) for _ in range(BATCHES)]

    def _batch(self, random: np.random.Generator) -> Mapping[str, Array]:
        def images(rows: int) -> Array:
            return (random.random((rows, self.x)) < 0.2).astype(np.float32)

        batch = {"x": images(self.batch)}
        if self.labelled:
            y = random.integers(self.classes, size=self.labelled)
            batch |= {"labelled": images(self.labelled), "y": np.eye(self.classes, dtype=np.float32)[y]}
        return batch


_WORKS = [
    Work("vae-400-20", "vae", x=784, hidden=(400,), z=20, batch=100),
    Work("vae-500-500-50", "vae", x=784, hidden=(500, 500), z=50, batch=200),
    Work("m2-digits", "m2", x=64, hidden=(128,), z=16, batch=100, labelled=100, classes=10),
    Work("m2-mnist", "m2", x=784, hidden=(500,), z=50, batch=200, labelled=100, classes=10),
    Work("iwae-50", "iwae", x=784, hidden=(200, 200), z=50, batch=20, particles=50),
    Work("wgan-gp", "wgan-gp", x=784, hidden=(512, 512), z=128, batch=64),
    Work("wgan-gp-dcgan", "wgan-gp-dcgan", x=784, hidden=(16, 32), z=64, batch=64),
    Work(
        "vae-epoch",
        "vae-epoch",
        x=784,
        hidden=(400,),
        z=20,
        batch=100,
        rounds=4,
        turn=1,
        skip=0,
        calls=1,
        references=1,
        tolerance=0.01,
    ),
]
WORKS = {work.name: work for work in _WORKS}
