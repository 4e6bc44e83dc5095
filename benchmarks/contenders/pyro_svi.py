"""Pyro's own SVI: models and guides in the manner of Pyro's examples, inputs expanded and concatenated."""

from collections.abc import Iterator, Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, JitTrace_ELBO, JitTraceEnum_ELBO, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from benchmarks.contenders.handwritten import Step, endless
from benchmarks.works import ALPHA, LABELLED_SHARE, LEARNING_RATE, SMALLEST_SCALE, Layers, Work


class Perceptron(nn.Module):
    """A perceptron of inputs that are expanded and concatenated."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        for weight, bias in layers:
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            linear.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
            modules += [linear, nn.ReLU()]
        self.layers = nn.Sequential(*modules[:-1])

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns ``(..., outputs)``."""
        leading = torch.broadcast_shapes(*(x.shape[:-1] for x in inputs))
        joined = torch.cat([x.expand(*leading, x.shape[-1]) for x in inputs], dim=-1)
        return self.layers(joined)  # type: ignore[no-any-return]


def normal(features: Tensor) -> dist.TorchDistribution:
    """Returns the guide's distribution of z."""
    mean, free = features.chunk(2, dim=-1)
    return dist.Normal(mean, nn.functional.softplus(free) + SMALLEST_SCALE).to_event(1)


class Programs:
    """A model and a guide over the same batch.

    Args:
        work: sizes and weights.
        name: a prefix, since Pyro's parameter store is global.
    """

    def __init__(self, work: Work, name: str) -> None:
        self.work, self.name = work, name
        self.networks = {key: Perceptron(layers) for key, layers in work.weights().items()}

    def register(self, *names: str) -> None:
        """Tells Pyro about networks."""
        for name in names:
            pyro.module(f"{self.name}.{name}", self.networks[name])

    def latent(self, like: Tensor) -> dist.TorchDistribution:
        """Returns the prior of z."""
        return dist.Normal(like.new_zeros(self.work.z), like.new_ones(self.work.z)).to_event(1)


class VAE(Programs):
    """A VAE on the columns of a batch."""

    def model(self, x: Tensor) -> None:
        """The program: ``z ~ N(0, I)``, ``x ~ Bernoulli(decoder(z))``."""
        self.register("decoder")
        with pyro.plate("data", len(x)), poutine.scale(scale=1 / len(x)):
            z = pyro.sample("z", self.latent(x))
            pyro.sample("x", dist.Bernoulli(logits=self.networks["decoder"](z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """The program: ``z ~ N(encoder(x))``."""
        self.register("encoder")
        with pyro.plate("data", len(x)), poutine.scale(scale=1 / len(x)):
            pyro.sample("z", normal(self.networks["encoder"](x)))


class IWAE(Programs):
    """A VAE without a scale, which `RenyiELBO` would put inside its logarithm."""

    def model(self, x: Tensor) -> None:
        """The program: ``z ~ N(0, I)``, ``x ~ Bernoulli(decoder(z))``."""
        self.register("decoder")
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.latent(x))
            pyro.sample("x", dist.Bernoulli(logits=self.networks["decoder"](z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """The program: ``z ~ N(encoder(x))``."""
        self.register("encoder")
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(self.networks["encoder"](x)))


class M2(Programs):
    """M2: labelled rows, unlabelled rows and the classifier's own loss as sites of one program."""

    def part(self, name: str, share: float, x: Tensor, y: Tensor | None) -> None:
        """The generative model of labelled or unlabelled rows."""
        with pyro.plate(name, len(x)), poutine.scale(scale=share / len(x)):
            prior = dist.OneHotCategorical(logits=x.new_zeros(self.work.classes))
            label = pyro.sample(f"y_{name}", prior, obs=y)
            z = pyro.sample(f"z_{name}", self.latent(x))
            logits = self.networks["decoder"](z, label)
            pyro.sample(f"x_{name}", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def model(self, x: Tensor, labelled: Tensor, y: Tensor) -> None:
        """Both kinds of rows, and the cross-entropy of the labels."""
        self.register("decoder", "classifier")
        self.part("labelled", LABELLED_SHARE, labelled, y)
        self.part("unlabelled", 1 - LABELLED_SHARE, x, None)
        with pyro.plate("classified", len(y)), poutine.scale(scale=ALPHA / len(y)):
            pyro.sample("y", dist.OneHotCategorical(logits=self.networks["classifier"](labelled)), obs=y)

    def guide(self, x: Tensor, labelled: Tensor, y: Tensor) -> None:
        """The classifier for the label, the encoder for z."""
        self.register("encoder", "classifier")
        with pyro.plate("labelled", len(y)), poutine.scale(scale=LABELLED_SHARE / len(y)):
            pyro.sample("z_labelled", normal(self.networks["encoder"](labelled, y)))
        with pyro.plate("unlabelled", len(x)), poutine.scale(scale=(1 - LABELLED_SHARE) / len(x)):
            q = dist.OneHotCategorical(logits=self.networks["classifier"](x))
            label = pyro.sample("y_unlabelled", q, infer={"enumerate": "parallel"})
            pyro.sample("z_unlabelled", normal(self.networks["encoder"](x, label)))


def build(work: Work, loss: pyro.infer.ELBO, batches: Iterator[Mapping[str, Tensor]] | None = None) -> Step:
    """Returns `SVI.step` with one of Pyro's ELBOs and Pyro's Adam, on batches in memory unless others are given."""
    name = f"{work.name}.{type(loss).__name__}"
    kinds: dict[str, type[VAE | M2 | IWAE]] = {"m2": M2, "iwae": IWAE}
    programs = kinds.get(work.kind, VAE)(work, name)
    rows = work.batch if work.kind == "iwae" else 1
    svi = SVI(programs.model, programs.guide, pyro.optim.Adam({"lr": LEARNING_RATE}), loss)
    drawn = endless(work) if batches is None else batches

    def step() -> float:
        batch = next(drawn)
        return float(svi.step(*(batch[name] for name in ("x", "labelled", "y") if name in batch))) / rows

    return step


def enumerating() -> TraceEnum_ELBO:
    """Returns Pyro's ELBO that sums over the labels."""
    return TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)


def vectorised(work: Work) -> TraceMeanField_ELBO:
    """Returns Pyro's ELBO with the particles of a work."""
    several = work.particles > 1
    return TraceMeanField_ELBO(num_particles=work.particles, vectorize_particles=several, max_plate_nesting=1)


def renyi(work: Work) -> Step:
    """IWAE with `RenyiELBO` of order 0, particles vectorised."""
    return build(work, RenyiELBO(alpha=0, num_particles=work.particles, vectorize_particles=True, max_plate_nesting=1))


def trace(work: Work) -> Step:
    """VAE with `Trace_ELBO`, as Pyro's example has it."""
    return build(work, Trace_ELBO())


def mean_field(work: Work) -> Step:
    """VAE with `TraceMeanField_ELBO`: the divergence in closed form."""
    return build(work, vectorised(work))


def jit_trace(work: Work) -> Step:
    """VAE with `JitTrace_ELBO`."""
    return build(work, JitTrace_ELBO(ignore_jit_warnings=True))


def enumerated(work: Work) -> Step:
    """M2 with `TraceEnum_ELBO`."""
    return build(work, enumerating())


def jit_enumerated(work: Work) -> Step:
    """M2 with `JitTraceEnum_ELBO`."""
    elbo = JitTraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False, ignore_jit_warnings=True)
    return build(work, elbo)
