"""Adversarial variational Bayes: a variational autoencoder whose guide has no density."""

from typing import Literal

from ppgen import guides, models, nn
from ppgen.data import Dataset
from ppgen.objectives import AVB
from ppgen.recipes.adversaries import players_adam
from ppgen.recipes.base import Count, Entry, Positive, Recipe, Share
from ppgen.recipes.vae import POINTS, Binarization, Likelihood, observed


def avb(
    data: Dataset,
    *,
    z_dim: Count = 8,
    guide: Literal["implicit", "gaussian"] = "implicit",
    noise_dim: Count = 16,
    contrast: int = 8,
    critic_steps: Count = 1,
    likelihood: Likelihood = "bernoulli",
    scale: Positive = 0.1,
    levels: Count = 256,
    network: Literal["mlp", "conv"] = "mlp",
    hidden: tuple[Count, ...] = (256,),
    critic_hidden: tuple[Count, ...] = (256, 256),
    activation: str = "relu",
    critic_activation: str = "leaky-relu",
    binarization: Binarization = "none",
    learning_rate: Positive = 1e-3,
    critic_rate: Positive = 1e-3,
    schedule: Literal["constant", "cosine"] = "cosine",
    average: Share | None = 0.999,
    batch_size: Count = 100,
    epochs: Count = 200,
    evaluation_particles: Count = 100,
) -> Recipe:
    """Adversarial variational Bayes: a guide that pushes noise through a network, its divergence told by a critic.

    ``guide=gaussian`` has the same game played with a Gaussian guide, whose divergence is known, for comparison.
    ``contrast`` draws of the guide make its adaptive contrast; 0 for none.
    """
    chosen, data = observed(data, likelihood, scale=scale, levels=levels, binarization=binarization)
    decoder = nn.decoder([z_dim], data.shape, chosen.features, network=network, hidden=hidden, activation=activation)
    implicit = guide == "implicit"
    encoder = nn.encoder(
        data.shape,
        z_dim if implicit else 2 * z_dim,
        network=network,
        hidden=hidden,
        others=[noise_dim] if implicit else [],
        activation=activation,
    )
    critic = nn.critic(data.shape, hidden=critic_hidden, others=[z_dim], activation=critic_activation)
    return Recipe(
        model=models.VAE(decoder, chosen, z_dim),
        guide=guides.Implicit(encoder, noise_dim) if implicit else guides.DiagonalGaussian(encoder, z_dim),
        objective=AVB(critic, contrast=contrast, critic_steps=critic_steps),
        data=data,
        optimizer=players_adam(learning_rate, critic_rate, betas=(0.5, 0.999), schedule=schedule, name="autoencoder"),
        epochs=epochs,
        batch_size=batch_size,
        average=average,
        particles=evaluation_particles,
        low_precision=True,
    )


IMAGES = {
    "z_dim": 32,
    "noise_dim": 32,
    "hidden": (300, 300),
    "critic_hidden": (512, 512),
    "binarization": "dynamic",
    "epochs": 20,
}

AVB_ENTRY = Entry(
    "avb",
    avb,
    reference="Mescheder, Nowozin, Geiger 2017, arXiv:1701.04722",
    presets={
        **dict.fromkeys(("ring", "grid", "swiss-roll"), POINTS),
        "four-points": {
            "z_dim": 2,
            "noise_dim": 8,
            "contrast": 0,
            "hidden": (128, 128),
            "critic_hidden": (128, 128),
            "activation": "elu",
            "critic_activation": "elu",
            "critic_steps": 5,
            "learning_rate": 2e-4,
            "batch_size": 256,
            "epochs": 1_250,
        },
        **dict.fromkeys(("mnist", "fashion-mnist", "kmnist", "emnist"), IMAGES),
        "binarized-mnist": IMAGES | {"binarization": "none"},
    },
)
