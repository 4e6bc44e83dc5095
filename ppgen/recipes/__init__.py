"""Recipes: a name to model, guide, objective and defaults; the only place that names concrete classes."""

import difflib

from ppgen.errors import ConfigError
from ppgen.recipes.aae import AAE_CLUSTERS, AAE_ENTRY, AAE_SEMISUPERVISED
from ppgen.recipes.avb import AVB_ENTRY
from ppgen.recipes.base import Entry, Recipe, adam
from ppgen.recipes.bigan import ALI, BIGAN_ENTRY
from ppgen.recipes.categorical_vae import CATEGORICAL_VAE
from ppgen.recipes.gan import GAN_ENTRIES
from ppgen.recipes.infogan import INFOGAN_ENTRY
from ppgen.recipes.iwae import IWAE_ENTRY
from ppgen.recipes.labelled_gan import ACGAN_ENTRY, CGAN
from ppgen.recipes.m2 import M2
from ppgen.recipes.sbn import SBN
from ppgen.recipes.structured import STRUCTURED
from ppgen.recipes.toy import TOY
from ppgen.recipes.users import load_users
from ppgen.recipes.vae import VAE
from ppgen.recipes.vae_gan import VAE_GAN

RECIPES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        M2,
        VAE,
        IWAE_ENTRY,
        SBN,
        CATEGORICAL_VAE,
        STRUCTURED,
        TOY,
        AAE_ENTRY,
        AAE_SEMISUPERVISED,
        AAE_CLUSTERS,
        *GAN_ENTRIES,
        CGAN,
        ACGAN_ENTRY,
        INFOGAN_ENTRY,
        BIGAN_ENTRY,
        ALI,
        AVB_ENTRY,
        VAE_GAN,
    )
}


def find(name: str) -> Entry:
    """Returns the recipe of that name, or the user's own named ``my_model.py:recipe`` or ``package.module:recipe``.

    Raises:
        ConfigError: if there is none; the nearest name is suggested.
    """
    if name in RECIPES:
        return RECIPES[name]
    if ":" in name:
        return load_users(name)
    near = difflib.get_close_matches(name, RECIPES, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(RECIPES)}"
    raise ConfigError(f"there is no recipe '{name}': {hint} (your own: my_model.py:recipe)")


__all__ = ["RECIPES", "Entry", "Recipe", "adam", "find"]
