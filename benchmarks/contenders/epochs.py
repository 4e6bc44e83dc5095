"""One epoch of 60,000 rows through each contender's own loop."""

import contextlib
import io
import logging
import os
import tempfile
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.contenders import handwritten, own, products
from benchmarks.contenders.handwritten import Step
from benchmarks.works import LEARNING_RATE, SMALLEST_SCALE, Work

ROWS = 60_000


def rows(work: Work) -> Tensor:
    """Returns MNIST's training images (rows, x) below `PPGEN_DATA`, or random ones of the same size."""
    if "PPGEN_DATA" in os.environ:
        from ppgen import data

        loaded = data.load("mnist", download=False)
        parts = [loaded.train["x"], loaded.validation["x"]]
        return torch.cat(parts).flatten(1)[:ROWS].contiguous()
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(ROWS, work.x, generator=generator) < 0.2).float()


def plain(work: Work) -> Step:
    """A loop over shuffled rows in memory around the hand-written step."""
    x = rows(work)
    advance = handwritten.stepping(handwritten.vae_loss, handwritten.parameters(work, factored=False))

    def epoch() -> float:
        losses = [advance({"x": x[chosen]}) for chosen in torch.randperm(ROWS).view(-1, work.batch)]
        return torch.stack(losses).mean().item()

    return epoch


def through_trainer(work: Work, *, precision: str = "fp32") -> Step:
    """Returns an epoch of `ppgen.Trainer.fit` on `ppgen.data.Batches`."""
    from ppgen.data import Batches

    trainer = own.trainer(work, precision=precision)
    batches = Batches({"x": rows(work)}, work.batch)

    def epoch() -> float:
        (report,) = trainer.fit(batches, steps=batches.steps_per_epoch, every=batches.steps_per_epoch)
        return report["loss"]

    return epoch


def trainer_full(work: Work) -> Step:
    """In float32."""
    return through_trainer(work)


def trainer_half(work: Work) -> Step:
    """Matrix products in bfloat16."""
    return through_trainer(work, precision="bf16")


def products_full(work: Work) -> Callable[[], None]:
    """The matrix products of an epoch, float32."""
    return _repeated(products.full(work), work)


def products_half(work: Work) -> Callable[[], None]:
    """The matrix products of an epoch, bfloat16."""
    return _repeated(products.half(work), work)


def _repeated(step: Callable[[], None], work: Work) -> Callable[[], None]:
    def epoch() -> None:
        for _ in range(ROWS // work.batch):
            step()

    return epoch


def pythae_trainer(work: Work) -> Step:
    """An epoch of pythae's `BaseTrainer`, on CPU, without evaluation and without saving the model."""
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    logging.getLogger("pythae.trainers.base_trainer.base_trainer").setLevel(logging.WARNING)
    x = rows(work)
    folder = tempfile.TemporaryDirectory()
    config = BaseTrainerConfig(
        output_dir=folder.name,
        per_device_train_batch_size=work.batch,
        learning_rate=LEARNING_RATE,
        no_cuda=True,
    )
    # its progress bar and lines are part of an epoch, but not to be seen among ours
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        trainer = BaseTrainer(_pythae_vae(work), BaseDataset(x, torch.zeros(len(x))), training_config=config)
        trainer.prepare_training()
    folder.cleanup()
    state = {"epochs": 0}

    def epoch() -> float:
        state["epochs"] += 1
        with contextlib.redirect_stderr(io.StringIO()):
            return float(trainer.train_step(state["epochs"]))

    return epoch


def _pythae_vae(work: Work) -> torch.nn.Module:
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    weights = handwritten.parameters(work, factored=False)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterList(weights["encoder"])

        def forward(self, x: Tensor) -> ModelOutput:
            mean, free = handwritten.perceptron(x, list(self.weights)).chunk(2, dim=-1)
            scale = torch.nn.functional.softplus(free) + SMALLEST_SCALE
            return ModelOutput(embedding=mean, log_covariance=2 * scale.log())

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterList(weights["decoder"])

        def forward(self, z: Tensor) -> ModelOutput:
            # its loss is made of probabilities
            return ModelOutput(reconstruction=torch.sigmoid(handwritten.perceptron(z, list(self.weights))))

    config = VAEConfig(input_dim=(work.x,), latent_dim=work.z, reconstruction_loss="bce")
    return VAE(config, encoder=Encoder(), decoder=Decoder())  # type: ignore[no-any-return]
