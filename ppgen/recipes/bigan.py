"""The bidirectional GAN, with an encoder that is deterministic (BiGAN) or has noise (ALI)."""

from typing import Any, Literal

from ppgen import guides, models, nn
from ppgen.data import Dataset
from ppgen.models.generator import Noise
from ppgen.nn.batchwise import Normalization
from ppgen.nn.critics import AdversarialNetwork
from ppgen.objectives import BiGAN
from ppgen.objectives.adversarial.values import ValueName
from ppgen.recipes.adversaries import OutputOrAuto, output_for, players_adam
from ppgen.recipes.base import Count, Entry, NotNegative, Positive, Recipe, Share


def bigan(
    data: Dataset,
    *,
    z_dim: Count = 16,
    latent: Noise = "uniform",
    encoder: Literal["deterministic", "gaussian"] = "deterministic",
    loss: ValueName = "non-saturating",
    network: AdversarialNetwork = "mlp",
    hidden: tuple[Count, ...] = (256, 256),
    output: OutputOrAuto = "auto",
    normalization: Normalization = "batch",
    critic_hidden: tuple[Count, ...] | None = None,
    critic_normalization: Normalization = "spectral",
    dropout: Share = 0.0,
    smoothing: Share = 0.0,
    noise: NotNegative = 0.0,
    critic_steps: Count = 1,
    learning_rate: Positive = 2e-4,
    critic_rate: Positive | None = 5e-4,
    betas: tuple[Share, Share] = (0.5, 0.999),
    schedule: Literal["constant", "cosine"] = "cosine",
    average: Share | None = None,
    batch_size: Count = 128,
    epochs: Count = 200,
) -> Recipe:
    """Bidirectional GAN: the critic judges data with their codes, so the encoder learns to invert the generator.

    ``hidden`` are the sizes of the generator's and the encoder's hidden layers, and of the critic's unless told. An
    encoder that is "gaussian" makes it ALI.
    """
    bounded = latent == "uniform"
    sizes: Any = {"network": network, "hidden": hidden}
    generator = nn.generator([z_dim], data.shape, normalization=normalization, output=output_for(data, output), **sizes)
    outputs = z_dim if encoder == "deterministic" else 2 * z_dim
    inference = nn.critic(data.shape, outputs=outputs, normalization=normalization, **sizes)
    critic = nn.critic(
        data.shape,
        others=[z_dim],
        network=network,
        hidden=hidden if critic_hidden is None else critic_hidden,
        normalization=critic_normalization,
        dropout=dropout,
    )
    guide: Any = guides.Deterministic(inference, bounded=bounded)
    if encoder == "gaussian":
        guide = guides.DiagonalGaussian(inference, z_dim)
    return Recipe(
        model=models.Generator(generator, data.shape, z_dim, noise=latent),
        guide=guide,
        objective=BiGAN(critic, loss=loss, smoothing=smoothing, noise=noise, critic_steps=critic_steps),
        data=data,
        optimizer=players_adam(learning_rate, critic_rate, betas=betas, schedule=schedule, name="autoencoder"),
        epochs=epochs,
        batch_size=batch_size,
        average=average,
        low_precision=True,
    )


IMAGES = {"z_dim": 50, "hidden": (1024, 1024), "critic_normalization": "batch", "critic_rate": 2e-4, "epochs": 50}
PRESETS = dict.fromkeys(("mnist", "fashion-mnist", "kmnist", "emnist", "usps", "svhn", "cifar10"), IMAGES)

BIGAN_ENTRY = Entry(
    "bigan",
    bigan,
    reference="Donahue, Kraehenbuehl, Darrell 2017, arXiv:1605.09782",
    presets=PRESETS,
)
ALI = Entry(
    "ali",
    bigan,
    reference="Dumoulin et al. 2017, arXiv:1606.00704",
    presets=PRESETS,
    settings={"encoder": "gaussian", "latent": "normal"},
    about="Adversarially learned inference: a BiGAN whose encoder has noise.",
)
