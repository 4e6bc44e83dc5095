"""GANs that draw by label: the conditional GAN and the auxiliary classifier GAN."""

from typing import Any, Literal

from ppgen import guides, models, nn
from ppgen.data import Dataset
from ppgen.errors import DataError
from ppgen.models.generator import Noise
from ppgen.nn.batchwise import Normalization
from ppgen.nn.critics import AdversarialNetwork
from ppgen.objectives import ACGAN, GAN
from ppgen.objectives.adversarial.values import ValueName
from ppgen.recipes.adversaries import OutputOrAuto, is_image, output_for, players_adam
from ppgen.recipes.base import Count, Entry, NotNegative, Positive, Recipe, Share


def labelled_gan(
    data: Dataset,
    *,
    game: Literal["conditional", "auxiliary"] = "conditional",
    z_dim: Count = 32,
    latent: Noise = "normal",
    weight: NotNegative = 1.0,
    loss: ValueName = "non-saturating",
    network: AdversarialNetwork | None = None,
    hidden: tuple[Count, ...] | None = None,
    output: OutputOrAuto = "auto",
    normalization: Normalization | None = None,
    critic_hidden: tuple[Count, ...] | None = None,
    critic_normalization: Normalization | None = None,
    dropout: Share = 0.0,
    smoothing: Share = 0.0,
    noise: NotNegative = 0.0,
    noise_steps: int = 0,
    critic_steps: Count = 1,
    penalty: NotNegative = 0.0,
    learning_rate: Positive = 2e-4,
    critic_rate: Positive | None = None,
    betas: tuple[Share, Share] = (0.5, 0.999),
    schedule: Literal["constant", "cosine"] = "constant",
    average: Share | None = None,
    batch_size: Count = 100,
    epochs: Count = 100,
) -> Recipe:
    """Conditional GAN: the generator draws by label, the critic judges a row with its label.

    With ``game`` "auxiliary" the critic is not shown the label but has to tell it, as in ACGAN, and ``weight`` weighs
    how well it does; rows without a label then count as data, too. Networks are convolutional for images unless told.
    """
    conditional = game == "conditional"
    # a critic that is shown the label has nothing to tell apart
    classes = data.count_classes("a labelled GAN, which draws by label,", at_least=1 if conditional else 2)
    if conditional and (missing := int((data.train["y"] < 0).sum())):
        raise DataError(
            f"expected a label of every train row, since the critic is shown it; {missing} of {len(data.train['y'])}"
            " are missing: keep them all, or take recipe acgan"
        )
    chosen: Any = ("dcgan" if is_image(data) else "mlp") if network is None else network
    generator = nn.generator(
        [z_dim, classes],
        data.shape,
        network=chosen,
        hidden=hidden,
        normalization=normalization,
        output=output_for(data, output),
    )
    critic = nn.critic(
        data.shape,
        outputs=1 if conditional else 1 + classes,
        others=[classes] if conditional else [],
        network=chosen,
        hidden=hidden if critic_hidden is None else critic_hidden,
        normalization=critic_normalization,
        dropout=dropout,
    )
    options: Any = {
        "loss": loss,
        "smoothing": smoothing,
        "noise": noise,
        "noise_steps": noise_steps,
        "critic_steps": critic_steps,
        "penalty": penalty,
    }
    by_label: Any = {"sites": ("x", "y"), "given": ("y",)}
    objective = GAN(critic, **by_label, **options) if conditional else ACGAN(critic, weight=weight, **options)
    return Recipe(
        model=models.ConditionalGenerator(generator, data.shape, z_dim, classes, noise=latent),
        guide=guides.Nothing(),
        objective=objective,
        data=data,
        optimizer=players_adam(learning_rate, critic_rate, betas=betas, schedule=schedule),
        epochs=epochs,
        batch_size=batch_size,
        average=average,
        low_precision=True,
    )


IMAGES: dict[str, Any] = {"z_dim": 64, "hidden": (32, 64), "epochs": 10}
COLOUR = IMAGES | {"z_dim": 100, "hidden": (64, 128, 256)}
PRESETS: dict[str, dict[str, Any]] = {
    "digits": {"hidden": (32, 64)},
    **dict.fromkeys(("mnist", "fashion-mnist", "kmnist", "emnist", "usps"), IMAGES),
    **dict.fromkeys(("svhn", "cifar10"), COLOUR),
}

CGAN = Entry("cgan", labelled_gan, reference="Mirza, Osindero 2014, arXiv:1411.1784", presets=PRESETS)
ACGAN_ENTRY = Entry(
    "acgan",
    labelled_gan,
    reference="Odena, Olah, Shlens 2017, arXiv:1610.09585",
    presets=PRESETS,
    settings={"game": "auxiliary"},
    about="Auxiliary classifier GAN: the critic has to tell the label, and the generator helps it.",
)
