"""M2: a classifier from few labels."""

import functools
from typing import Any, Literal

from torch.nn import Sequential

from ppgen import guides, models, nn
from ppgen.data import Dataset
from ppgen.objectives import ELBO, SemiSupervised, named
from ppgen.recipes.base import Count, Entry, NotNegative, Positive, Recipe, Share, adam
from ppgen.recipes.vae import Binarization, Likelihood, observed

IMAGES = {
    "z_dim": 4,
    "hidden": (256,),
    "classifier_network": "conv",
    "classifier_hidden": (32, 64, 128),
    "dropout": 0.5,
    "augment": 3.0,
    "rotation": 15.0,
    "binarization": "dynamic",
    "labelled_share": 0.05,
    "batch_size": 100,
    "epochs": 16,
    "evaluation_particles": 100,
}
COLOUR = IMAGES | {
    "z_dim": 50,
    "likelihood": "gaussian",
    "binarization": "none",
    "network": "conv",
    "hidden": (32, 64, 256),
    "evaluation_particles": 10,
}


def m2(
    data: Dataset,
    *,
    z_dim: Count = 4,
    likelihood: Likelihood = "bernoulli",
    scale: Positive = 0.1,
    levels: Count = 256,
    network: Literal["mlp", "conv"] = "mlp",
    hidden: tuple[Count, ...] = (128,),
    classifier_network: Literal["mlp", "conv"] | None = None,
    classifier_hidden: tuple[Count, ...] | None = None,
    activation: str = "relu",
    dropout: Share = 0.3,
    augment: NotNegative = 0.0,
    rotation: NotNegative = 10.0,
    binarization: Binarization = "none",
    alpha: NotNegative = 5.0,
    labelled_share: NotNegative = 0.08,
    beta: NotNegative = 1.0,
    warmup: int = 0,
    objective: Literal["elbo", "iwae", "renyi", "vr-max", "ciwae"] = "elbo",
    estimator: str = "enumerate",
    particles: Count = 1,
    learning_rate: Positive = 2e-3,
    schedule: Literal["constant", "cosine"] = "cosine",
    clip: Positive | None = None,
    average: Share | None = 0.999,
    batch_size: Count = 100,
    labelled_batch_size: Count = 100,
    epochs: Count = 300,
    evaluation_particles: Count = 100,
) -> Recipe:
    """Semi-supervised classifier M2: label and style generate the data, labels summed out where they are missing.

    The classifier's network is like the others unless ``classifier_network`` and ``classifier_hidden`` say otherwise.
    While training it is shown images that are shifted by up to ``augment`` pixels, turned by up to ``rotation``
    degrees, and scaled and slanted a little; with ``augment`` 0, images as they are.

    ``objective`` is the bound of unlabelled rows, of ``particles`` samples, and ``estimator`` treats their label: it is
    summed out, or drawn (score, nvil, leave-one-out, vimco). Under iwae with a summed label the classifier learns from
    labelled rows alone, since that bound does not depend on it.
    """
    classes = data.count_classes("recipe m2", at_least=2)
    chosen, data = observed(data, likelihood, scale=scale, levels=levels, binarization=binarization)
    decoder = nn.decoder(
        [z_dim, classes], data.shape, chosen.features, network=network, hidden=hidden, activation=activation
    )
    encoder = functools.partial(nn.encoder, data.shape, network=network, activation=activation)
    classifier = encoder(
        classes,
        network=network if classifier_network is None else classifier_network,
        hidden=hidden if classifier_hidden is None else classifier_hidden,
        dropout=dropout,
    )
    if augment:
        classifier = Sequential(nn.RandomAffine(shift=augment, rotation=rotation), classifier)
    annealed = {"beta": beta, "warmup": warmup} if objective == "elbo" else {}
    bound: Any = named(objective, particles=particles, estimator=estimator, **annealed)
    style = encoder(2 * z_dim, hidden=hidden, others=[classes])
    return Recipe(
        model=models.M2(decoder, chosen, z_dim, classes),
        guide=guides.Label(classifier, style, classes),
        objective=SemiSupervised(
            alpha=alpha,
            labelled_share=labelled_share,
            labelled=ELBO(beta=beta, warmup=warmup),
            unlabelled=bound,
        ),
        data=data,
        optimizer=adam(learning_rate, schedule=schedule, clip=clip),
        epochs=epochs,
        batch_size=batch_size,
        labelled_batch_size=labelled_batch_size,
        average=average,
        particles=evaluation_particles,
        low_precision=True,
    )


M2 = Entry(
    "m2",
    m2,
    reference="Kingma, Rezende, Mohamed, Welling 2014, arXiv:1406.5298",
    labels=100,
    presets={
        "digits": {"classifier_network": "mlp", "classifier_hidden": (256,), "augment": 0.7},
        **dict.fromkeys(("mnist", "fashion-mnist", "kmnist", "emnist"), IMAGES),
        "usps": IMAGES | {"binarization": "none"},
        **dict.fromkeys(("svhn", "cifar10"), COLOUR),
    },
)
