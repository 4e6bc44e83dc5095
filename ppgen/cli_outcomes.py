"""The commands for finished runs: evaluate, sample, embed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from ppgen import display, failures
from ppgen.options import AT_LEAST_1, FILE, SEED, as_json, data_root, own_recipe

if TYPE_CHECKING:
    from ppgen.runs import Record, Run

MEASURES = (
    *("nll", "accuracy", "elbo", "knn", "clusters", "mmd", "c2st", "modes"),
    *("fid_classifier", "kid_classifier", "precision_classifier", "recall_classifier", "one_nn_classifier", "parzen"),
)
"""Those of `ppgen.evaluation.ALL_MEASURES`, which would be slow to import."""
SPLITS = ("train", "validation", "test", "all")


def open_run(run: str, recipe: str | None, data_root: str | None, **options: Any) -> "Run":
    """Opens a run folder, and says so if that runs code of the user's own; ``options`` are those of `Run.open`."""
    from ppgen.runs import Run

    if recipe:
        display.say(f"Running the code of {recipe.rpartition(':')[0]}.")
    return Run.open(run, recipe=recipe, data_root=data_root, **options)


def show(document: "Record", run: "Run", *, as_json: bool) -> None:
    """Prints a judged result, as a table or as JSON."""
    if as_json:
        display.write(json.dumps(document, indent=2, allow_nan=False))
    else:
        display.show_result(document, rows=len(run.data.test["x"]))


@click.command()
@click.argument("run")
@click.option(
    "--measure",
    "measures",
    metavar="NAME",
    type=click.Choice(MEASURES),
    multiple=True,
    help=f"May be repeated: {', '.join(MEASURES)}.  [default: what suits the run]",
)
@click.option("--particles", metavar="N", type=AT_LEAST_1, help="Draws a row, for nll and elbo.  [default: recipe's]")
@click.option(
    "--samples",
    metavar="N",
    type=click.IntRange(min=20),
    help="Samples for mmd and those after it.  [default: as many as test rows, at most 1,000 or 5,000]",
)
@click.option("--arviz", type=FILE, metavar="FILE.nc", help="Write draws of everything for ArviZ.")
@own_recipe
@data_root
@as_json
def evaluate(
    run: str,
    measures: tuple[str, ...],
    particles: int | None,
    samples: int | None,
    arviz: Path | None,
    recipe: str | None,
    data_root: str | None,
    as_json: bool,
) -> None:
    """Judge RUN, a run folder, on test rows; nothing is written into it.

    A run with a density of the data has nll and elbo, one with labels in its guide accuracy. mmd and those after it
    compare samples with test rows; NAME_classifier does so on features of a classifier that is trained on the data set,
    which compares with no published figure. knn: do nearest neighbours by the guide's features have the same label?
    clusters: does a category that the guide infers without labels agree with them, each named by most train rows?
    """
    from ppgen import exports
    from ppgen.devices import use_free_cores

    if arviz:
        exports.check_file(arviz, (".nc",))
    opened = open_run(run, recipe, data_root)
    use_free_cores()
    sizes = {"particles": particles or opened.recipe.particles}
    with failures.memory_of(sizes, prefix="--"), display.waiting("Judging on test rows ..."):
        document = opened.result(particles=particles, samples=samples, measures=measures)
        written = exports.write_arviz(opened, arviz) if arviz else ""
    show(document, opened, as_json=as_json)
    if arviz:
        display.say(f"Wrote {arviz}: {written}.")


@click.command()
@click.argument("run")
@click.option("-n", "--number", metavar="N", type=AT_LEAST_1, default=100, help="How many.")
@click.option("--label", metavar="Y", help="Only of this class, by name or number.")
@click.option("--out", type=FILE, metavar="FILE", help=".png, .npz or .npy.  [default: RUN-samples.png or .npz]")
@click.option("--seed", metavar="N", type=SEED, default=0, help="Seed of the draws.")
@own_recipe
@data_root
def sample(
    run: str, number: int, label: str | None, out: Path | None, seed: int, recipe: str | None, data_root: str | None
) -> None:
    """Draw samples from the model of RUN, a run folder.

    A .png shows the means of images, a .npz holds draws and means, a .npy the draws of x.
    """
    from ppgen import exports

    if out:
        exports.check_file(out, exports.FORMATS)
    opened = open_run(run, recipe, data_root)
    path = out or exports.default_file(opened)
    with failures.memory_of({"number": number}, prefix="--"):
        exports.write_samples(opened, path, number, label=label, seed=seed)
    display.write(f"Wrote {number:,} samples to {display.short(path)}")


@click.command()
@click.argument("run")
@click.option("--data", metavar="NAME|PATH", help="Rows of the same shape from elsewhere.  [default: the run's data]")
@click.option("--label-column", metavar="NAME", help="Column of labels of a .csv file, with --data.")
@click.option("--split", type=click.Choice(SPLITS), help="Which rows.  [default: test; all of --data]")
@click.option("--out", type=FILE, metavar="FILE", help=".npz or .csv.  [default: RUN-features.npz]")
@click.option("--seed", metavar="N", type=SEED, default=0, help="Seed of draws, where there are any.")
@own_recipe
@data_root
def embed(
    run: str,
    data: str | None,
    label_column: str | None,
    split: str | None,
    out: Path | None,
    seed: int,
    recipe: str | None,
    data_root: str | None,
) -> None:
    """Write features of rows: the means of the latents, as the guide of RUN, a run folder, sees them.

    A .npz has an array for each latent site, such as z, and y with the labels, -1 where unknown, and row with the
    row numbers in the source; a .csv has a column for each number, such as z_0, z_1.
    """
    from ppgen import exports, feature_files

    if label_column and not data:
        raise click.UsageError("--label-column goes with --data FILE.csv")
    if out:
        exports.check_file(out, feature_files.FORMATS)
    opened = open_run(run, recipe, data_root)
    split = split or ("all" if data else "test")
    rows = feature_files.rows_of(opened, data, split=split, label_column=label_column, data_root=data_root)
    path = out or Path(f"{opened.folder.path.name}-features.npz")
    with display.waiting("Embedding ..."):
        written = feature_files.write_features(opened, rows, path, seed=seed)
    display.write(f"Wrote {written} to {display.short(path)}")
