"""Latent Dirichlet allocation: documents as mixtures of topics (Blei, Ng, Jordan 2003).

ppgen train examples/topics.py:recipe                    digits as documents, pixels as words
ppgen train examples/topics.py:recipe --data counts.npz  x: how often each word stands in each document
"""

import dataclasses

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from ppgen import ELBO
from ppgen.data import Dataset
from ppgen.recipes import Recipe, adam


def counted(data: Dataset) -> Dataset:
    """Counts of words ``(documents, vocabulary)``; intensities from 0 to 1 become counts from 0 to 16."""
    factor = 16.0 if data.train["x"].max() <= 1 else 1.0

    def count(columns: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"x": (factor * columns["x"].flatten(1)).round()}

    return dataclasses.replace(
        data, train=count(data.train), validation=count(data.validation), test=count(data.test), classes=None
    )


class Topics(nn.Module):
    """Global topics ``(topics, vocabulary)``, local proportions, the topic of each word summed out by hand."""

    def __init__(self, documents: int, vocabulary: int, topics: int) -> None:
        super().__init__()
        self.documents, self.vocabulary, self.topics = documents, vocabulary, topics

    def forward(self, x: Tensor) -> None:
        """Draws topics, then each document's proportions and words."""
        with pyro.plate("topics", self.topics):
            topics = pyro.sample("topic", dist.Dirichlet(torch.full((self.vocabulary,), 0.3)))
        with pyro.plate("documents", self.documents, subsample_size=len(x)):
            shares = pyro.sample("share", dist.Dirichlet(torch.full((self.topics,), 0.5)))
            # documents differ in length, which the density takes from x itself
            words = dist.Multinomial(total_count=300, probs=shares @ topics, validate_args=False)
            pyro.sample("x", words, obs=x)


class Proportions(nn.Module):
    """Dirichlet factors for the topics, and a network that reads a document's proportions off its words."""

    def __init__(self, documents: int, vocabulary: int, topics: int, hidden: int) -> None:
        super().__init__()
        self.documents = documents
        self.first = 1 + torch.rand(topics, vocabulary)
        self.network = nn.Sequential(nn.Linear(vocabulary, hidden), nn.Softplus(), nn.Linear(hidden, topics))

    def forward(self, x: Tensor) -> None:
        """Draws topics and each document's proportions."""
        concentration = pyro.param("concentration", lambda: self.first.clone(), constraint=constraints.positive)
        with pyro.plate("topics", len(concentration)):
            pyro.sample("topic", dist.Dirichlet(concentration))
        strength = 0.1 + 10 * softplus(self.network(x / (1 + x.sum(-1, keepdim=True)) * x.shape[-1]))
        with pyro.plate("documents", self.documents, subsample_size=len(x)):
            pyro.sample("share", dist.Dirichlet(strength))


def recipe(data: Dataset, *, topics: int = 10, hidden: int = 64, learning_rate: float = 0.01) -> Recipe:
    """Latent Dirichlet allocation with an amortised guide for the documents."""
    data = counted(data)
    documents, vocabulary = data.train["x"].shape
    return Recipe(
        Topics(documents, vocabulary, topics),
        Proportions(documents, vocabulary, topics, hidden),
        ELBO(),
        data=data,
        optimizer=adam(learning_rate, schedule="cosine", clip=1e3),
        epochs=200,
    )
