"""The adversarial autoencoder in its five forms."""

import functools
from typing import Any, Literal

from torch.nn import BatchNorm1d, Module, Sequential, init

from ppgen import guides, models, nn
from ppgen.data import Dataset
from ppgen.errors import ConfigError, DataError
from ppgen.models.steered import Prior
from ppgen.objectives import AAE, SemiSupervised
from ppgen.objectives.adversarial.values import ValueName
from ppgen.programs import Program
from ppgen.recipes.adversaries import players_adam
from ppgen.recipes.base import Count, Entry, NotNegative, Positive, Recipe, Share
from ppgen.recipes.vae import Binarization, Likelihood, observed

REFERENCE = "Makhzani, Shlens, Jaitly, Goodfellow, Frey 2015, arXiv:1511.05644"
Network = Literal["mlp", "conv"]
PLANAR: dict[str, type[models.RingOfGaussians] | type[models.SwissRoll]] = {
    "mixture": models.RingOfGaussians,
    "swiss-roll": models.SwissRoll,
}


def aae(
    data: Dataset,
    *,
    prior: Literal["gaussian", "mixture", "swiss-roll"] = "gaussian",
    labels: Literal["ignored", "prior", "decoder"] = "ignored",
    z_dim: Count | None = None,
    likelihood: Likelihood = "gaussian-fixed",
    scale: Positive = 0.5,
    levels: Count = 256,
    network: Network = "mlp",
    hidden: tuple[Count, ...] = (256, 256),
    critic_hidden: tuple[Count, ...] = (256, 256),
    activation: str = "relu",
    binarization: Binarization = "none",
    loss: ValueName = "non-saturating",
    smoothing: Share = 0.0,
    weight: NotNegative = 5.0,
    critic_steps: Count = 1,
    learning_rate: Positive = 1e-3,
    critic_rate: Positive = 1e-3,
    schedule: Literal["constant", "cosine"] = "cosine",
    average: Share | None = 0.999,
    batch_size: Count = 100,
    epochs: Count = 200,
    evaluation_particles: Count = 100,
) -> Recipe:
    """Adversarial autoencoder: a critic makes the codes of all data together look like draws of any prior.

    ``labels=prior`` has the label choose the part of a mixture or swiss roll, and tells the critic; a row without label
    may be anywhere. ``labels=decoder`` gives the label to the decoder, so that the codes are left with style, if they
    are too few for the rest. The mixture and the swiss roll lie in the plane; ``z_dim`` of the Gaussian is 4 unless
    told, and 2 with labels=decoder.
    """
    chosen, data = observed(data, likelihood, scale=scale, levels=levels, binarization=binarization)
    size = _code_size(prior, labels, z_dim)
    classes = 0 if labels == "ignored" else data.count_classes(f"recipe aae with labels={labels}")
    decoder = nn.decoder(
        [size, classes] if labels == "decoder" else [size],
        data.shape,
        chosen.features,
        network=network,
        hidden=hidden,
        activation=activation,
    )
    encoder = nn.encoder(data.shape, 2 * size, network=network, hidden=hidden, activation=activation)
    others = [classes] if labels == "prior" else []
    critic = nn.critic((size,), hidden=critic_hidden, others=others)
    return Recipe(
        model=_model(prior, labels, decoder, chosen, size, classes, data),
        guide=guides.DiagonalGaussian(encoder, size),
        objective=AAE(
            {"z,y": critic} if labels == "prior" else {"z": critic},
            loss=loss,
            given=("y",) if labels == "prior" else (),
            smoothing=smoothing,
            weight=weight,
            critic_steps=critic_steps,
        ),
        data=data,
        optimizer=players_adam(learning_rate, critic_rate, schedule=schedule, name="autoencoder"),
        epochs=epochs,
        batch_size=batch_size,
        average=average,
        particles=evaluation_particles,
        low_precision=True,
    )


def _code_size(prior: str, labels: str, z_dim: int | None) -> int:
    if prior in PLANAR and z_dim not in (None, 2):
        raise ConfigError(f"expected z_dim=2 for prior={prior}, which lies in the plane; got {z_dim}")
    if z_dim is not None:
        return z_dim
    return 2 if prior in PLANAR or labels == "decoder" else 4


def _model(
    prior: str, labels: str, decoder: Module, chosen: nn.Likelihood, z_dim: int, classes: int, data: Dataset
) -> Program:
    if labels == "decoder":
        if prior != "gaussian":
            raise ConfigError(f"expected prior=gaussian with labels=decoder; got prior={prior}")
        if missing := int((data.train["y"] < 0).sum()):
            raise DataError(f"expected a label for every train row with labels=decoder; {missing} rows have none")
        return models.M2(decoder, chosen, z_dim, classes)
    if prior not in PLANAR:
        if labels == "prior":
            raise ConfigError("expected prior mixture or swiss-roll, of which labels=prior chooses parts; got gaussian")
        return models.VAE(decoder, chosen, z_dim)
    parts: Prior = functools.partial(PLANAR[prior], classes=classes or 10)
    if labels == "prior":
        return models.LabelledPriorVAE(decoder, chosen, parts, classes)
    return models.PriorVAE(decoder, chosen, parts)


def semisupervised(
    data: Dataset,
    *,
    z_dim: Count = 4,
    likelihood: Likelihood = "gaussian-fixed",
    scale: Positive = 0.5,
    levels: Count = 256,
    network: Network = "mlp",
    hidden: tuple[Count, ...] = (256,),
    classifier_network: Network | None = None,
    classifier_hidden: tuple[Count, ...] | None = None,
    critic_hidden: tuple[Count, ...] = (256, 256),
    activation: str = "relu",
    dropout: Share = 0.25,
    augment: NotNegative = 0.0,
    rotation: NotNegative = 10.0,
    views: Count = 2,
    binarization: Binarization = "none",
    loss: ValueName = "non-saturating",
    smoothing: Share = 0.0,
    weight: NotNegative = 2.0,
    alpha: NotNegative = 5.0,
    critic_steps: Count = 1,
    learning_rate: Positive = 2e-3,
    critic_rate: Positive = 1e-3,
    schedule: Literal["constant", "cosine"] = "cosine",
    average: Share | None = 0.999,
    batch_size: Count = 100,
    labelled_batch_size: Count = 50,
    epochs: Count = 200,
    evaluation_particles: Count = 100,
) -> Recipe:
    """Adversarial autoencoder as a classifier from few labels: one critic for the style, one for the label.

    The critic of the label makes the classifier sure of each row and use every class equally often. The classifier's
    network is like the others unless ``classifier_network`` and ``classifier_hidden`` say otherwise. While training it
    answers for ``views`` changes of an image together: shifted by up to ``augment`` pixels, turned by up to
    ``rotation`` degrees, scaled and slanted a little; with ``augment`` 0, for the image as it is.
    """
    classes = data.count_classes("recipe aae-semisupervised", at_least=2)
    chosen, data = observed(data, likelihood, scale=scale, levels=levels, binarization=binarization)
    sizes: dict[str, Any] = {"network": network, "hidden": hidden, "activation": activation}
    decoder = nn.decoder([z_dim, classes], data.shape, chosen.features, **sizes)
    classifier = nn.encoder(
        data.shape,
        classes,
        network=network if classifier_network is None else classifier_network,
        hidden=hidden if classifier_hidden is None else classifier_hidden,
        activation=activation,
        dropout=dropout,
    )
    style = nn.encoder(data.shape, 2 * z_dim, others=[classes], **sizes)
    game = AAE(
        _critics("y", z_dim, classes, critic_hidden),
        loss=loss,
        smoothing=smoothing,
        weight=weight,
        critic_steps=critic_steps,
    )
    return Recipe(
        model=models.M2(decoder, chosen, z_dim, classes),
        guide=guides.Label(_agreeing(classifier, augment, rotation, views), style, classes),
        objective=SemiSupervised(alpha=alpha, unlabelled=game),
        data=data,
        optimizer=players_adam(learning_rate, critic_rate, schedule=schedule, name="autoencoder"),
        epochs=epochs,
        batch_size=batch_size,
        labelled_batch_size=labelled_batch_size,
        average=average,
        particles=evaluation_particles,
        low_precision=True,
    )


def clusters(
    data: Dataset,
    *,
    clusters: Count = 16,
    z_dim: Count = 4,
    likelihood: Likelihood = "gaussian-fixed",
    scale: Positive = 0.5,
    levels: Count = 256,
    network: Network = "mlp",
    hidden: tuple[Count, ...] = (256, 256),
    classifier_network: Network | None = None,
    classifier_hidden: tuple[Count, ...] | None = None,
    critic_hidden: tuple[Count, ...] = (256, 256),
    activation: str = "relu",
    dropout: Share = 0.0,
    augment: NotNegative = 0.0,
    rotation: NotNegative = 10.0,
    views: Count = 2,
    sharpness: Positive = 4.0,
    binarization: Binarization = "none",
    loss: ValueName = "non-saturating",
    smoothing: Share = 0.0,
    weight: NotNegative = 2.0,
    critic_steps: Count = 1,
    learning_rate: Positive = 1e-3,
    critic_rate: Positive = 1e-3,
    schedule: Literal["constant", "cosine"] = "cosine",
    average: Share | None = 0.999,
    batch_size: Count = 100,
    epochs: Count = 200,
    evaluation_particles: Count = 100,
) -> Recipe:
    """Adversarial autoencoder that clusters without labels: the critic of the category keeps all clusters in use.

    The networks are those of aae-semisupervised. The logits of the clusters are normalised over each batch, to a
    standard deviation of ``sharpness`` at first: where all rows start alike, the critic moves all of them together.
    """
    chosen, data = observed(data, likelihood, scale=scale, levels=levels, binarization=binarization)
    sizes: dict[str, Any] = {"network": network, "hidden": hidden, "activation": activation}
    decoder = nn.decoder([z_dim, clusters], data.shape, chosen.features, **sizes)
    style = nn.encoder(data.shape, 2 * z_dim, others=[clusters], **sizes)
    normalized = BatchNorm1d(clusters)
    init.constant_(normalized.weight, sharpness)
    classifier = nn.encoder(
        data.shape,
        clusters,
        network=network if classifier_network is None else classifier_network,
        hidden=hidden if classifier_hidden is None else classifier_hidden,
        activation=activation,
        dropout=dropout,
    )
    agreeing = _agreeing(Sequential(classifier, normalized), augment, rotation, views)
    return Recipe(
        model=models.Clusters(decoder, chosen, z_dim, clusters),
        guide=guides.Label(agreeing, style, clusters, site="cluster"),
        objective=AAE(
            _critics("cluster", z_dim, clusters, critic_hidden),
            loss=loss,
            smoothing=smoothing,
            weight=weight,
            critic_steps=critic_steps,
        ),
        data=data,
        optimizer=players_adam(learning_rate, critic_rate, schedule=schedule, name="autoencoder"),
        epochs=epochs,
        batch_size=batch_size,
        average=average,
        particles=evaluation_particles,
        low_precision=True,
    )


def _agreeing(classifier: Module, augment: float, rotation: float, views: int) -> Module:
    if not augment:
        return classifier
    return nn.AgreedLogits(classifier, nn.RandomAffine(shift=augment, rotation=rotation), views=views)


def _critics(category: str, z_dim: int, classes: int, hidden: tuple[int, ...]) -> dict[str, Module]:
    return {"z": nn.critic((z_dim,), hidden=hidden), category: nn.critic((classes,), hidden=hidden)}


GREY = ("mnist", "fashion-mnist", "kmnist", "emnist", "usps")
SEEN_FROM_SIDES = {
    "classifier_network": "conv",
    "classifier_hidden": (16, 32, 128),
    "dropout": 0.25,
    "augment": 3.0,
    "rotation": 15.0,
    "epochs": 8,
    "evaluation_particles": 10,
}
COLOUR = {"network": "conv", "hidden": (32, 64, 256), "scale": 0.25, "epochs": 30, "evaluation_particles": 10}
PLANE = {"z_dim": 2, "scale": 0.1, "epochs": 10}
LARGE = {"hidden": (500, 500), "epochs": 20, "evaluation_particles": 10}

AAE_ENTRY = Entry(
    "aae",
    aae,
    reference=REFERENCE,
    presets={
        **dict.fromkeys(("ring", "grid", "swiss-roll"), PLANE),
        **dict.fromkeys(GREY, LARGE | {"z_dim": 8}),
        **dict.fromkeys(("svhn", "cifar10"), COLOUR | {"z_dim": 32}),
    },
)
AAE_SEMISUPERVISED = Entry(
    "aae-semisupervised",
    semisupervised,
    reference=REFERENCE,
    labels=100,
    presets={
        "digits": {"augment": 0.7},
        **dict.fromkeys(GREY, SEEN_FROM_SIDES),
        **dict.fromkeys(("svhn", "cifar10"), SEEN_FROM_SIDES | COLOUR | {"classifier_hidden": (32, 64, 128)}),
    },
)
AAE_CLUSTERS = Entry(
    "aae-clusters",
    clusters,
    reference=REFERENCE,
    presets={
        **dict.fromkeys(GREY, SEEN_FROM_SIDES | {"dropout": 0.0}),
        **dict.fromkeys(("svhn", "cifar10"), SEEN_FROM_SIDES | COLOUR | {"classifier_hidden": (32, 64, 128)}),
    },
)
