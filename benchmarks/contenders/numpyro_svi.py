"""NumPyro's SVI, jitted, with first layers factored."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.handlers import scale
from numpyro.infer import SVI, TraceMeanField_ELBO

from benchmarks.works import ALPHA, LABELLED_SHARE, LEARNING_RATE, SMALLEST_SCALE, Work

CHUNK = 4


class Programs:
    """Model and guide of a work, as functions with `numpyro.param`."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.initial = work.weights()
        self.splits = {name: inputs[0] for name, (inputs, _) in work.networks().items()}

    def network(self, name: str, x: jax.Array, y: jax.Array | None = None) -> jax.Array:
        """Returns the output of a perceptron; a label has a first layer of its own."""
        (weight, bias), *rest = self.initial[name]
        parts = [weight[:, : self.splits[name]], weight[:, self.splits[name] :]]
        hidden = x @ numpyro.param(f"{name}.x", parts[0].T) + numpyro.param(f"{name}.bias", bias)
        if y is not None:
            hidden = hidden + y @ numpyro.param(f"{name}.y", parts[1].T)
        for index, (weight, bias) in enumerate(rest):
            hidden = jax.nn.relu(hidden) @ numpyro.param(f"{name}.{index}", weight.T)
            hidden = hidden + numpyro.param(f"{name}.{index}.bias", bias)
        return hidden

    def posterior(self, x: jax.Array, y: jax.Array | None = None) -> dist.Distribution:
        """Returns the guide's distribution of z."""
        mean, free = jnp.split(self.network("encoder", x, y), 2, axis=-1)
        return dist.Normal(mean, jax.nn.softplus(free) + SMALLEST_SCALE).to_event(1)

    def prior(self) -> dist.Distribution:
        """Returns the prior of z."""
        return dist.Normal(jnp.zeros(self.work.z), 1.0).to_event(1)

    def observe(self, name: str, z: jax.Array, x: jax.Array, y: jax.Array | None = None) -> None:
        """Scores the data."""
        logits = self.network("decoder", z, y)
        numpyro.sample(name, dist.Bernoulli(logits=logits).to_event(1), obs=jnp.broadcast_to(x, logits.shape))


class VAE(Programs):
    """A VAE."""

    def model(self, x: jax.Array) -> None:
        """The program: ``z ~ N(0, I)``, ``x ~ Bernoulli(decoder(z))``."""
        with numpyro.plate("data", len(x)), scale(scale=1 / len(x)):
            self.observe("x", numpyro.sample("z", self.prior()), x)

    def guide(self, x: jax.Array) -> None:
        """The program: ``z ~ N(encoder(x))``."""
        with numpyro.plate("data", len(x)), scale(scale=1 / len(x)):
            numpyro.sample("z", self.posterior(x))


class M2(Programs):
    """M2; the sum over labels is written as a plate of labels, weighted by the classifier.

    NumPyro's `TraceEnum_ELBO` sums over labels by itself; this gives the same bound and is faster.
    """

    def weights(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns q(y | x) and its logarithm, (classes, rows)."""
        log_q = jax.nn.log_softmax(self.network("classifier", x)).T
        return jnp.exp(log_q), log_q

    def model(self, x: jax.Array, labelled: jax.Array, y: jax.Array) -> None:
        """Both kinds of rows, and the cross-entropy of the labels."""
        states, uniform = jnp.eye(self.work.classes), jnp.log(self.work.classes)
        with numpyro.plate("labelled", len(y)), scale(scale=LABELLED_SHARE / len(y)):
            self.observe("x_labelled", numpyro.sample("z_labelled", self.prior()), labelled, y)
            numpyro.factor("y_labelled", jnp.full(len(y), -uniform))
        q, log_q = self.weights(x)
        share = (1 - LABELLED_SHARE) / len(x)
        labels, rows = numpyro.plate("labels", self.work.classes, dim=-2), numpyro.plate("rows", len(x), dim=-1)
        with labels, rows, scale(scale=share * q):
            self.observe("x", numpyro.sample("z", self.prior()), x, states[:, None])
        numpyro.factor("y", -share * (q * (log_q + uniform)).sum())
        log_label = jax.nn.log_softmax(self.network("classifier", labelled))
        numpyro.factor("classified", ALPHA / len(y) * (log_label * y).sum())

    def guide(self, x: jax.Array, labelled: jax.Array, y: jax.Array) -> None:
        """The encoder for z, for every label where it is not known."""
        with numpyro.plate("labelled", len(y)), scale(scale=LABELLED_SHARE / len(y)):
            numpyro.sample("z_labelled", self.posterior(labelled, y))
        q, _ = self.weights(x)
        labels, rows = numpyro.plate("labels", self.work.classes, dim=-2), numpyro.plate("rows", len(x), dim=-1)
        with labels, rows, scale(scale=(1 - LABELLED_SHARE) / len(x) * q):
            numpyro.sample("z", self.posterior(x, jnp.eye(self.work.classes)[:, None]))


def prepared(work: Work) -> tuple[SVI, list[list[jax.Array]]]:
    """Returns NumPyro's SVI with its Adam, and the batches of a work as arguments of the programs."""
    programs: VAE | M2 = M2(work) if work.classes else VAE(work)
    svi = SVI(programs.model, programs.guide, numpyro.optim.Adam(LEARNING_RATE), TraceMeanField_ELBO())
    return svi, [[jnp.asarray(b[name]) for name in ("x", "labelled", "y") if name in b] for b in work.batches()]


def build(work: Work) -> Callable[[], float]:
    """Returns a jitted `SVI.update`."""
    svi, arguments = prepared(work)
    state = svi.init(jax.random.PRNGKey(0), *arguments[0])
    update = jax.jit(svi.update, donate_argnums=0)
    batches = itertools.cycle(arguments)

    def step() -> float:
        nonlocal state
        state, loss = update(state, *next(batches))
        jax.block_until_ready(state)  # or a step would be over before it is done
        return float(loss)

    return step


def scanned(work: Work) -> Callable[[], Any]:
    """Returns a few updates as one jitted loop, as `SVI.run` without progress bar has it."""
    svi, arguments = prepared(work)
    state = svi.init(jax.random.PRNGKey(0), *arguments[0])
    columns = [jnp.stack(column) for column in zip(*arguments, strict=True)]
    chunks = [[column[start : start + CHUNK] for column in columns] for start in range(0, len(arguments), CHUNK)]
    batches = itertools.cycle(chunks)

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state: Any, chunk: Any) -> Any:
        return jax.lax.scan(lambda carried, batch: svi.update(carried, *batch), state, chunk)

    def step() -> Any:
        nonlocal state
        state, losses = update(state, next(batches))
        jax.block_until_ready(state)
        return np.asarray(losses)

    return step
