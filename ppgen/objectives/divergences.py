"""Autoencoders whose draws from the guide, over all data together, are to look like draws from the prior."""

import torch
from torch import Tensor

from ppgen.errors import ConfigError
from ppgen.objectives.kernels import Kernel, mmd
from ppgen.objectives.prior_matching import PriorMatching, checked_scale, divergence, reconstruction
from ppgen.programs import Joint

IMQ_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Scales of the kernel of Wasserstein autoencoders."""


class InfoVAE(PriorMatching):
    r"""The information maximising autoencoder, with the maximum mean discrepancy (MMD).

    ``loss = -E_q[log p(x | z)] + (1 - alpha) KL(q(z | x) || p(z)) + (alpha + scale - 1) MMD^2(q(z), p(z))`` per datum,
    where ``scale`` is the paper's lambda. ``alpha=0, scale=1`` is the evidence lower bound; ``alpha=1`` leaves no
    penalty on the information that ``z`` has of ``x`` (MMD-VAE).

    Args:
        alpha: weight that is taken off the divergence from row to row, at most 1.
        scale: with ``alpha``, the weight of the discrepancy, which is a small number: at most 2 for the kernel "rbf".
        kernel: "rbf", "imq", "laplace" or "energy".
        bandwidth: "dimension", "median" or a number; see `Kernel`.
        scales: multiples of the squared bandwidth over which the kernel is summed.
        site: the latent site that is compared with the prior; None for all.

    Raises:
        ConfigError: if ``alpha`` exceeds 1 or the weight of the discrepancy is negative.

    References:
        Zhao, Song, Ermon, 2017, arXiv:1706.02262, eq. 7.

    >>> InfoVAE(alpha=0.0, scale=10.0).weight
    9.0
    """

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        scale: float = 1000.0,
        kernel: str = "rbf",
        bandwidth: float | str = "dimension",
        scales: tuple[float, ...] = (1.0,),
        site: str | None = None,
    ) -> None:
        if alpha > 1 or alpha + scale < 1:
            raise ConfigError(f"expected alpha <= 1 and alpha + scale >= 1; got alpha {alpha} and scale {scale}")
        super().__init__(weight=alpha + scale - 1, site=site)
        self.alpha = alpha
        self.kernel = Kernel(kernel, bandwidth, scales)

    def bound(self, joint: Joint) -> Tensor:
        """See `PriorMatching.bound`."""
        # without its weight the divergence need not exist: that of a deterministic guide does not
        error = reconstruction(joint)
        return error if self.alpha == 1 else error + (1 - self.alpha) * divergence(joint)

    def discrepancy(self, posterior: Tensor, prior: Tensor) -> Tensor:
        """See `PriorMatching.discrepancy`."""
        return mmd(posterior, prior, self.kernel)


class WAE(PriorMatching):
    r"""The Wasserstein autoencoder, with the maximum mean discrepancy (MMD).

    ``loss = -E_q[log p(x | z)] + scale * MMD^2(q(z), p(z))`` per datum. The paper's squared error is the likelihood of
    a Gaussian of fixed scale ``s``, times ``2 s^2``. The guide may be deterministic (a ``Delta``).

    Args:
        scale: the paper's lambda: 10 for its MNIST, 100 for its faces.
        kernel: "imq", "rbf", "laplace" or "energy".
        bandwidth: "dimension", "median" or a number; see `Kernel`.
        scales: multiples of the squared bandwidth over which the kernel is summed.
        site: the latent site that is compared with the prior; None for all.

    References:
        Tolstikhin, Bousquet, Gelly, Schoelkopf, 2018, arXiv:1711.01558, algorithm 2.

    >>> WAE().kernel.name
    'imq'
    """

    def __init__(
        self,
        *,
        scale: float = 10.0,
        kernel: str = "imq",
        bandwidth: float | str = "dimension",
        scales: tuple[float, ...] = IMQ_SCALES,
        site: str | None = None,
    ) -> None:
        super().__init__(weight=checked_scale(scale), site=site)
        self.kernel = Kernel(kernel, bandwidth, scales)

    def discrepancy(self, posterior: Tensor, prior: Tensor) -> Tensor:
        """See `PriorMatching.discrepancy`."""
        return mmd(posterior, prior, self.kernel)


class SlicedWAE(PriorMatching):
    r"""The sliced Wasserstein autoencoder.

    ``loss = -E_q[log p(x | z)] + scale * mean_u W2^2(u . z, u . z')`` per datum, over random directions ``u`` of length
    1. Between draws on a line the squared distance ``W2^2`` is exact: the mean squared difference of the sorted draws.

    Args:
        scale: the paper's lambda.
        projections: number of directions, drawn anew at every step.
        site: the latent site that is compared with the prior; None for all.

    References:
        Kolouri, Pope, Martin, Rohde, 2018, arXiv:1804.01947, algorithm 1.

    >>> SlicedWAE(projections=100).projections
    100
    """

    def __init__(self, *, scale: float = 10.0, projections: int = 50, site: str | None = None) -> None:
        super().__init__(weight=checked_scale(scale), site=site)
        if projections < 1:
            raise ConfigError(f"expected projections >= 1; got {projections}")
        self.projections = projections

    def discrepancy(self, posterior: Tensor, prior: Tensor) -> Tensor:
        """See `PriorMatching.discrepancy`."""
        directions = torch.randn(posterior.shape[1], self.projections, dtype=posterior.dtype, device=posterior.device)
        return sliced_wasserstein(posterior, prior, directions / directions.norm(dim=0))


def sliced_wasserstein(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    """Returns the squared 2-Wasserstein distance of equally many draws along each direction, and the mean of these.

    Args:
        x: ``(n, dims)``.
        y: ``(n, dims)``.
        directions: ``(dims, projections)``, columns of length 1.

    >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [2.0]])
    >>> sliced_wasserstein(x, y, torch.ones(1, 1)).item()
    4.0
    """
    one, other = ((draws @ directions).sort(dim=0).values for draws in (x, y))
    return (one - other).square().mean()
