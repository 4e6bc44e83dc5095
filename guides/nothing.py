"""The guide of models whose latents nobody infers."""

from torch import nn


class Nothing(nn.Module):
    """A guide without sites, for objectives that only draw from the model."""

    def forward(self) -> None:
        """The program."""
