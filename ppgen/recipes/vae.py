"""The variational autoencoder."""

from typing import Literal

from ppgen import guides, models, nn
from ppgen.data import Dataset
from ppgen.objectives import ELBO
from ppgen.recipes.base import Count, Entry, NotNegative, Positive, Recipe, Share, adam

Binarization = Literal["none", "static", "dynamic"]
Likelihood = Literal["bernoulli", "gaussian", "gaussian-fixed", "gaussian-full", "categorical"]

IMAGES = {
    "z_dim": 50,
    "network": "conv",
    "hidden": (32, 64, 256),
    "activation": "silu",
    "binarization": "dynamic",
    "warmup": 5_900,
    "epochs": 70,
}
POINTS = {"z_dim": 2, "likelihood": "gaussian"}
COLOUR = IMAGES | {"likelihood": "gaussian", "binarization": "none"}


def observed(
    data: Dataset, likelihood: Likelihood, *, scale: float, levels: int, binarization: Binarization
) -> tuple[nn.Likelihood, Dataset]:
    """Returns a likelihood for the data, and the data as it observes them.

    Raises:
        DataError: if the likelihood needs values in [0, 1] and some are not.
    """
    chosen = nn.likelihood(likelihood, data.shape, scale=scale, levels=levels)
    if chosen.unit_interval:
        data.require_unit_interval(remedy="take likelihood=gaussian")
    return chosen, data.binarized(binarization)


def observed_as_bits(data: Dataset, *, binarization: Binarization) -> Dataset:
    """Returns the data as a model observes them that knows no likelihood but the Bernoulli.

    Raises:
        DataError: if values are not in [0, 1].
    """
    data.require_unit_interval(remedy="take recipe vae with likelihood=gaussian")
    return data.binarized(binarization)


def vae(
    data: Dataset,
    *,
    z_dim: Count = 16,
    likelihood: Likelihood = "bernoulli",
    scale: Positive = 0.1,
    levels: Count = 256,
    network: Literal["mlp", "conv"] = "mlp",
    hidden: tuple[Count, ...] = (128,),
    decoder_network: Literal["mlp", "conv"] | None = None,
    decoder_hidden: tuple[Count, ...] | None = None,
    activation: str = "relu",
    covariance: Literal["diagonal", "full"] = "diagonal",
    binarization: Binarization = "none",
    beta: NotNegative = 1.0,
    warmup: int = 0,
    free_bits: NotNegative = 0.0,
    particles: Count = 1,
    estimator: str | None = None,
    learning_rate: Positive = 2e-3,
    schedule: Literal["constant", "cosine"] = "cosine",
    clip: Positive | None = None,
    average: Share | None = 0.999,
    batch_size: Count = 100,
    epochs: Count = 200,
    evaluation_particles: Count = 100,
) -> Recipe:
    """Variational autoencoder: a Gaussian latent vector, a decoder, an amortised Gaussian guide.

    The decoder's network is the encoder's mirrored unless ``decoder_network`` and ``decoder_hidden`` say otherwise; its
    sizes are given in the encoder's order, from the data to the latents. Gradients are pathwise; ``estimator`` names
    another for the latent site, ``z:score`` say.
    """
    chosen, data = observed(data, likelihood, scale=scale, levels=levels, binarization=binarization)
    decoder = nn.decoder(
        [z_dim],
        data.shape,
        chosen.features,
        network=network if decoder_network is None else decoder_network,
        hidden=hidden if decoder_hidden is None else decoder_hidden,
        activation=activation,
    )
    full = covariance == "full"
    outputs = guides.FullGaussian.features(z_dim) if full else 2 * z_dim
    encoder = nn.encoder(data.shape, outputs, network=network, hidden=hidden, activation=activation)
    return Recipe(
        model=models.VAE(decoder, chosen, z_dim),
        guide=guides.FullGaussian(encoder, z_dim) if full else guides.DiagonalGaussian(encoder, z_dim),
        objective=ELBO(beta=beta, warmup=warmup, free_bits=free_bits, particles=particles, estimator=estimator),
        data=data,
        optimizer=adam(learning_rate, schedule=schedule, clip=clip),
        epochs=epochs,
        batch_size=batch_size,
        average=average,
        particles=evaluation_particles,
        low_precision=True,
    )


VAE = Entry(
    "vae",
    vae,
    reference="Kingma, Welling 2013, arXiv:1312.6114",
    presets={
        **dict.fromkeys(("ring", "grid", "swiss-roll"), POINTS),
        **dict.fromkeys(("mnist", "fashion-mnist", "kmnist", "emnist"), IMAGES),
        "binarized-mnist": IMAGES | {"binarization": "none"},
        "usps": IMAGES | {"binarization": "none", "warmup": 620},
        **dict.fromkeys(("svhn", "cifar10"), COLOUR),
    },
)
