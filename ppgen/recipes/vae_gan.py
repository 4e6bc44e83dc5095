"""VAE-GAN: a variational autoencoder whose similarity is learned by a critic."""

from typing import Literal

from ppgen import guides, models, nn
from ppgen.data import Dataset
from ppgen.nn.critics import AdversarialNetwork
from ppgen.objectives import VAEGAN
from ppgen.objectives.adversarial.values import ValueName
from ppgen.recipes.adversaries import OutputOrAuto, output_for
from ppgen.recipes.base import Count, Entry, NotNegative, Positive, Recipe, Share, adam


def vae_gan(
    data: Dataset,
    *,
    z_dim: Count = 16,
    loss: ValueName = "non-saturating",
    similarity: NotNegative = 0.01,
    network: AdversarialNetwork = "mlp",
    hidden: tuple[Count, ...] | None = None,
    output: OutputOrAuto = "auto",
    encoder_network: Literal["mlp", "conv"] = "mlp",
    encoder_hidden: tuple[Count, ...] = (256,),
    learning_rate: Positive = 5e-4,
    critic_rate: Positive = 5e-4,
    schedule: Literal["constant", "cosine"] = "constant",
    average: Share | None = 0.999,
    batch_size: Count = 64,
    epochs: Count = 100,
) -> Recipe:
    """VAE-GAN: an autoencoder whose reconstructions are compared in the features of a critic.

    ``network`` and ``hidden`` are those of generator and critic; ``similarity`` is the paper's gamma.
    """
    generator = nn.generator([z_dim], data.shape, network=network, hidden=hidden, output=output_for(data, output))
    encoder = nn.encoder(data.shape, 2 * z_dim, network=encoder_network, hidden=encoder_hidden)
    # features of one size, whatever the critic does: a divergence in nats is weighed against their distance
    normalization: Literal["layer", "batch"] = "layer" if network == "mlp" else "batch"
    critic = nn.critic(data.shape, network=network, hidden=hidden, normalization=normalization)
    rates = {"critic": critic_rate, "model": learning_rate, "guide": learning_rate}
    of_steps = {player: adam(rate, schedule=schedule, betas=(0.5, 0.999)) for player, rate in rates.items()}
    return Recipe(
        model=models.Generator(generator, data.shape, z_dim),
        guide=guides.DiagonalGaussian(encoder, z_dim),
        objective=VAEGAN(critic, loss=loss, similarity=similarity),
        data=data,
        optimizer=lambda steps: {player: made(steps) for player, made in of_steps.items()},  # type: ignore[misc]
        epochs=epochs,
        batch_size=batch_size,
        average=average,
        low_precision=True,
    )


DIGITS = {"network": "dcgan", "encoder_network": "conv", "encoder_hidden": (32, 64, 128)}
IMAGES = {"z_dim": 64, "network": "dcgan", "encoder_network": "conv", "encoder_hidden": (32, 64, 256), "epochs": 15}
COLOUR = IMAGES | {"z_dim": 128, "hidden": (64, 128, 256), "encoder_hidden": (64, 128, 256, 512)}

VAE_GAN = Entry(
    "vae-gan",
    vae_gan,
    reference="Larsen, Soenderby, Larochelle, Winther 2016, arXiv:1512.09300",
    presets={
        "digits": DIGITS,
        **dict.fromkeys(("mnist", "fashion-mnist", "kmnist", "emnist", "usps"), IMAGES),
        **dict.fromkeys(("svhn", "cifar10"), COLOUR),
    },
)
