"""InfoGAN: codes that the generator must make visible."""

from typing import Any, Literal

from ppgen import guides, models, nn
from ppgen.data import Dataset
from ppgen.models.generator import Noise
from ppgen.nn.batchwise import Normalization
from ppgen.nn.critics import AdversarialNetwork
from ppgen.objectives import InfoGAN
from ppgen.objectives.adversarial.values import ValueName
from ppgen.recipes.adversaries import OutputOrAuto, is_image, output_for, players_adam
from ppgen.recipes.base import Count, Entry, NotNegative, Positive, Recipe, Share


def infogan(
    data: Dataset,
    *,
    categories: Count = 10,
    styles: int = 2,
    z_dim: Count = 62,
    latent: Noise = "normal",
    weight: NotNegative = 1.0,
    style_weight: NotNegative = 0.1,
    loss: ValueName = "non-saturating",
    network: AdversarialNetwork | None = None,
    hidden: tuple[Count, ...] | None = None,
    output: OutputOrAuto = "auto",
    normalization: Normalization | None = None,
    critic_hidden: tuple[Count, ...] | None = None,
    critic_normalization: Normalization | None = None,
    head: Count = 128,
    dropout: Share = 0.0,
    smoothing: Share = 0.0,
    noise: NotNegative = 0.0,
    noise_steps: int = 0,
    learning_rate: Positive = 1e-3,
    critic_rate: Positive | None = 2e-4,
    betas: tuple[Share, Share] = (0.5, 0.999),
    schedule: Literal["constant", "cosine"] = "constant",
    average: Share | None = None,
    batch_size: Count = 128,
    epochs: Count = 150,
) -> Recipe:
    """InfoGAN: codes of the generator are told back from its draws, so that they become what the data vary in.

    ``categories`` are the states of a discrete code, ``styles`` the number of continuous ones; ``weight`` and
    ``style_weight`` weigh how well they are told. Networks are convolutional for images unless told.
    """
    chosen: Any = ("dcgan" if is_image(data) else "mlp") if network is None else network
    inputs = [z_dim, categories, *([styles] if styles else [])]
    generator = nn.generator(
        inputs, data.shape, network=chosen, hidden=hidden, normalization=normalization, output=output_for(data, output)
    )
    critic = nn.critic(
        data.shape,
        network=chosen,
        hidden=hidden if critic_hidden is None else critic_hidden,
        normalization=critic_normalization,
        dropout=dropout,
    )
    weights = {"code": weight, **({"style": style_weight} if styles else {})}
    return Recipe(
        model=models.CodedGenerator(generator, data.shape, z_dim, categories=categories, styles=styles, noise=latent),
        guide=guides.Codes(
            critic,
            categories=categories,
            styles=styles,
            hidden=head,
            batch_norm=chosen == "dcgan" and critic_normalization in (None, "batch"),
        ),
        objective=InfoGAN(critic, weight=weights, loss=loss, smoothing=smoothing, noise=noise, noise_steps=noise_steps),
        data=data,
        optimizer=players_adam(learning_rate, critic_rate, betas=betas, schedule=schedule),
        epochs=epochs,
        batch_size=batch_size,
        average=average,
        low_precision=True,
    )


# of the paper's 62 numbers, categories settled on less than digits
IMAGES = {"z_dim": 12, "latent": "uniform", "hidden": (32, 64), "epochs": 20}
COLOUR = {"z_dim": 128, "hidden": (32, 64, 128), "epochs": 20}

INFOGAN_ENTRY = Entry(
    "infogan",
    infogan,
    reference="Chen et al. 2016, arXiv:1606.03657",
    presets={
        "digits": {"hidden": (32, 64)},
        **dict.fromkeys(("mnist", "fashion-mnist", "kmnist", "emnist", "usps"), IMAGES),
        **dict.fromkeys(("svhn", "cifar10"), COLOUR),
    },
)
