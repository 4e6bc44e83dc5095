"""Generative adversarial networks, from the first one to those that differ from it by their settings."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Linear, Module, ReLU, Sequential

from ppgen import guides, models, nn
from ppgen.data import Dataset
from ppgen.models.generator import Noise
from ppgen.nn.critics import AdversarialNetwork
from ppgen.objectives import GAN, MADGAN
from ppgen.objectives.adversarial.values import ValueName
from ppgen.recipes.adversaries import OutputOrAuto, output_for, players_adam, players_rmsprop
from ppgen.recipes.base import Count, Entry, NotNegative, OptimizerOfSteps, Positive, Recipe, Share

NormalizationOrAuto = Literal["auto", "none", "batch", "layer", "spectral", "virtual"]
SHARED_UNITS = 128
"""Of the layer that all generators of a mixture share."""
REFERENCE_ROWS = 64
"""Of virtual batch normalisation."""


def gan(
    data: Dataset,
    *,
    loss: ValueName = "non-saturating",
    z_dim: Count = 16,
    latent: Noise = "normal",
    generators: Count = 1,
    network: AdversarialNetwork = "mlp",
    hidden: tuple[Count, ...] | None = None,
    output: OutputOrAuto = "auto",
    activation: str = "relu",
    normalization: NormalizationOrAuto = "batch",
    critic_hidden: tuple[Count, ...] | None = None,
    critic_activation: str = "leaky-relu",
    critic_normalization: NormalizationOrAuto = "auto",
    minibatch: int = 0,
    dropout: Share = 0.0,
    critic_steps: Count = 1,
    smoothing: Share = 0.0,
    noise: NotNegative = 0.0,
    noise_steps: int = 0,
    pack: Count = 1,
    penalty: NotNegative = 0.0,
    clip: Positive | None = None,
    unroll: int = 0,
    unroll_rate: Positive = 0.1,
    optimizer: Literal["adam", "rmsprop"] = "adam",
    learning_rate: Positive = 5e-4,
    critic_rate: Positive | None = None,
    betas: tuple[Share, Share] = (0.5, 0.999),
    schedule: Literal["constant", "cosine"] = "cosine",
    average: Share | None = None,
    batch_size: Count = 100,
    epochs: Count = 200,
) -> Recipe:
    """Generative adversarial network: a generator against a critic that tells its draws from data.

    Sizes in ``hidden`` (the generator's) and ``critic_hidden`` are given from the data to the latents, to the output;
    DCGAN's networks are ``network=dcgan``. Normalisation is of one network's hidden layers: "auto" is "batch" for
    DCGAN's and "none" for others; a "virtual" one takes its reference from the first train rows. ``minibatch`` counts
    kernels of minibatch discrimination. The critic's learning rate is the generator's unless told. An epoch is as many
    steps as there are batches; a step takes a batch for each of the ``critic_steps`` and one for the generator. It
    ends in a sigmoid for images, unless ``output`` says otherwise.

    Stabilisers are off unless told: ``smoothing`` of the data's label, Gaussian ``noise`` on what the critic sees
    (fading over ``noise_steps``), a gradient ``penalty``, weights within ``clip``, rows judged ``pack`` by
    ``pack``, the critic ``unroll``-ed by so many steps of rate ``unroll_rate``. With several ``generators`` the critic
    tells them apart too.
    """
    sizes: dict[str, Any] = {"network": network, "output": output_for(data, output)}
    generator: Callable[[int], Module] = functools.partial(
        _generator, shape=data.shape, hidden=hidden, activation=activation, normalization=normalization, **sizes
    )
    model: Module
    if generators == 1:
        model = models.Generator(generator(z_dim), data.shape, z_dim, noise=latent)
    else:
        shared = Sequential(Linear(z_dim, SHARED_UNITS), ReLU())
        heads = [generator(SHARED_UNITS) for _ in range(generators)]
        model = models.GeneratorMixture(shared, heads, data.shape, z_dim, noise=latent)
    critic = nn.critic(
        (pack * data.shape[0], *data.shape[1:]),
        outputs=1 if generators == 1 else 1 + generators,
        network=network,
        hidden=critic_hidden,
        activation=critic_activation,
        dropout=dropout,
        normalization=None if critic_normalization == "auto" else critic_normalization,
        minibatch=minibatch,
        reference=_reference(data, pack) if critic_normalization == "virtual" else None,
    )
    adam = functools.partial(players_adam, betas=betas)
    moved: Callable[..., OptimizerOfSteps] = adam if optimizer == "adam" else players_rmsprop
    return Recipe(
        model=model,
        guide=guides.Nothing(),
        objective=(GAN if generators == 1 else MADGAN)(
            critic,
            loss=loss,
            critic_steps=critic_steps,
            smoothing=smoothing,
            noise=noise,
            noise_steps=noise_steps,
            pack=pack,
            penalty=penalty,
            clip=clip,
            unroll=unroll,
            unroll_rate=unroll_rate,
        ),
        data=data,
        optimizer=moved(learning_rate, critic_rate, schedule=schedule),
        epochs=epochs,
        batch_size=batch_size,
        average=average,
        low_precision=True,
    )


def _generator(inputs: int, *, normalization: NormalizationOrAuto, **options: Any) -> Module:
    reference = [torch.randn(REFERENCE_ROWS, inputs)] if normalization == "virtual" else None
    chosen = None if normalization == "auto" else normalization
    return nn.generator([inputs], normalization=chosen, reference=reference, **options)


def _reference(data: Dataset, pack: int) -> Tensor:
    rows = data.train["x"][: REFERENCE_ROWS * pack]
    return rows.reshape(-1, pack * data.shape[0], *data.shape[1:])


Options = dict[str, Any]

# weights are averaged while learning rates fall: draws then come to lie close to the modes
POINTS: Options = {
    "z_dim": 2,
    "hidden": (128, 128),
    "normalization": "none",
    "critic_hidden": (128, 128),
    "dropout": 0.0,
    "learning_rate": 1e-3,
    "average": 0.999,
    "batch_size": 128,
    "epochs": 25,
}
DENSE: Options = {
    "z_dim": 64,
    "hidden": (512, 256),
    "critic_hidden": (512, 256),
    "learning_rate": 2e-4,
    "epochs": 50,
}
CONVOLUTIONS: Options = {
    "z_dim": 64,
    "network": "dcgan",
    "hidden": (32, 64),
    "critic_hidden": (32, 64),
    "epochs": 10,
}
SMALL: Options = {key: CONVOLUTIONS[key] for key in ("network", "hidden", "critic_hidden")}
COLOUR: Options = CONVOLUTIONS | {"z_dim": 100, "hidden": (64, 128, 256), "critic_hidden": (64, 128, 256)}
STACKED_DIGITS: Options = CONVOLUTIONS | {
    "pack": 2,
    "critic_hidden": (16, 32),
    "batch_size": 64,
    "epochs": 10,
}
STACKED_MNIST: Options = STACKED_DIGITS | {
    "z_dim": 100,
    "hidden": (32, 64, 128),
    "critic_hidden": (16, 32, 64),
    "critic_rate": 2.5e-4,
    "epochs": 30,
}
GREY_SETS = ("mnist", "fashion-mnist", "kmnist", "emnist", "usps")
COLOUR_SETS = ("svhn", "cifar10")


def _entry(
    name: str,
    about: str,
    reference: str,
    settings: Options,
    *,
    images: Options = DENSE,
    points: Options | None = None,
    digits: Options | None = None,
    more: Mapping[str, Options] | None = None,
) -> Entry:
    """Returns the recipe ``gan`` with other settings, by another name.

    Args:
        name: what the user types.
        about: the recipe in a line.
        reference: author, year, arXiv id.
        settings: what makes it this recipe, on any data.
        images: sizes for grey images.
        points: what is different on the ring and the grid.
        digits: what is different on the digits.
        more: presets of further data sets.
    """
    colour = COLOUR if images is CONVOLUTIONS else {**images, "hidden": (1024, 512), "critic_hidden": (1024, 512)}
    by_sets: Mapping[tuple[str, ...], Options] = {
        ("digits",): {**settings, **(SMALL if images is CONVOLUTIONS else {}), "learning_rate": 5e-4, **(digits or {})},
        ("ring",): {**settings, **POINTS, **(points or {})},
        ("grid",): {**settings, **POINTS, "epochs": 50, **(points or {})},
        GREY_SETS: {**images, **settings},
        COLOUR_SETS: {**colour, **settings},
    }
    presets = {data: options for sets, options in by_sets.items() for data in sets} | dict(more or {})
    return Entry(name, gan, reference=reference, presets=presets, settings=settings, about=about)


GAN_ENTRY = _entry(
    "gan",
    "Generative adversarial network: a generator against a critic that tells its draws from data.",
    "Goodfellow et al. 2014, arXiv:1406.2661",
    {"dropout": 0.3},
)
DCGAN = _entry(
    "dcgan",
    "DCGAN: generator and critic of strided convolutions with batch normalisation.",
    "Radford, Metz, Chintala 2015, arXiv:1511.06434",
    {"network": "dcgan", "latent": "uniform"},
    images=CONVOLUTIONS,
)
UNROLLED_GAN = _entry(
    "unrolled-gan",
    "Unrolled GAN: the generator plays against the critic as it will be some steps later.",
    "Metz, Poole, Pfau, Sohl-Dickstein 2016, arXiv:1611.02163",
    # a faster critic wins, and one that looks five steps ahead all the more
    {"unroll": 5, "unroll_rate": 0.02, "critic_rate": 1e-4, "dropout": 0.3},
    points={"critic_rate": None},
    digits={"learning_rate": 1e-3},
)
PACGAN = _entry(
    "pacgan",
    "PacGAN: the critic judges several rows together, and so sees a lack of variety.",
    "Lin, Khetan, Fanti, Oh 2017, arXiv:1712.04086",
    {"pack": 2},
    images=CONVOLUTIONS,
    more={"stacked-digits": STACKED_DIGITS, "stacked-mnist": STACKED_MNIST},
)
MAD_GAN = _entry(
    "mad-gan",
    "MAD-GAN: several generators, which the critic has to tell apart.",
    "Ghosh et al. 2017, arXiv:1704.02906",
    {"generators": 4, "dropout": 0.3},
    points={"generators": 8},
)
WGAN_ENTRY = _entry(
    "wgan",
    "Wasserstein GAN: a critic with clipped weights estimates a distance.",
    "Arjovsky, Chintala, Bottou 2017, arXiv:1701.07875",
    {
        "loss": "wasserstein",
        "clip": 0.01,
        "critic_steps": 5,
        "optimizer": "rmsprop",
        "learning_rate": 5e-5,
        "batch_size": 64,
    },
)
WGAN_GP = _entry(
    "wgan-gp",
    "Wasserstein GAN whose critic is kept smooth by a penalty on its gradient.",
    "Gulrajani et al. 2017, arXiv:1704.00028",
    {
        "loss": "wasserstein",
        "penalty": 10.0,
        "critic_steps": 5,
        "learning_rate": 1e-4,
        "betas": (0.0, 0.9),
        "critic_normalization": "layer",
        "batch_size": 64,
    },
    points={"critic_normalization": "none", "penalty": 1.0, "critic_steps": 2, "betas": (0.5, 0.9)},
)
SN_GAN = _entry(
    "sn-gan",
    "SN-GAN: spectral normalisation keeps the critic smooth; hinge losses.",
    "Miyato, Kataoka, Koyama, Yoshida 2018, arXiv:1802.05957",
    {"loss": "hinge", "critic_normalization": "spectral", "betas": (0.0, 0.9), "batch_size": 64},
    images=CONVOLUTIONS,
)
GAN_ENTRIES = (GAN_ENTRY, DCGAN, UNROLLED_GAN, PACGAN, MAD_GAN, WGAN_ENTRY, WGAN_GP, SN_GAN)
