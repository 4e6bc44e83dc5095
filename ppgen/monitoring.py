"""What a run looks at while it trains: validation rows, samples, and whether the training has collapsed."""

import logging
from pathlib import Path
from typing import Any

from ppgen.checkpoints import step_name
from ppgen.data import Dataset
from ppgen.errors import CheckpointError, DivergedError
from ppgen.evaluation.collapse import noticed
from ppgen.evaluation.measures import Trained
from ppgen.files import replace_file, storage_errors
from ppgen.randomness import forked
from ppgen.storage import RunFolder

SAMPLES = "samples"
"""The folder of a run for pictures of samples over time."""

Record = dict[str, Any]
logger = logging.getLogger("ppgen")


def looked_at(record: Record, trained: Trained, data: Dataset, folder: RunFolder) -> Record:
    """Returns a report with what validation rows say and, as "collapse", what has gone wrong, which is warned of once.

    Whether it has depends on nothing but the records in ``metrics.jsonl``, so that a resumed run goes on alike.
    """
    from ppgen.evaluation.validation import validated

    # a look must not change what comes after it: a stopped run looks more often than one that goes through
    with forked():
        try:
            record = {**record, **validated(trained, data)}
        except DivergedError as error:
            # the next step meets it too, and does what was asked for then
            logger.warning("step %s: validation rows are left out: %s", f"{record['step']:,}", error)
    found = noticed([*folder.metrics(), record])
    if found is None:
        return record
    logger.warning("step %s: %s: %s; try %s", f"{record['step']:,}", found.kind, found.evidence, found.remedy)
    return {**record, "collapse": found.kind}


def draw_samples(trained: Trained, data: Dataset, folder: Path, *, step: int) -> Path | None:
    """Draws what the model generates now into ``samples/step-00001000.png`` of a run folder, in place of an older one.

    Latents are the same at every step. A model that nothing can be drawn from has no picture, as is said at the end.

    Raises:
        CheckpointError: if the folder of samples is a symbolic link.
        StorageError: if the picture cannot be written.
    """
    from ppgen.evaluation.pictures import snapshot

    try:
        with forked():
            picture = snapshot(trained, data, title=f"step {step:,}")
    except Exception as error:  # a user's program, which trains, need not generate
        logger.debug("no samples of step %d: %s", step, error)
        return None
    path = folder / SAMPLES / f"{step_name(step)}.png"
    with storage_errors(path, f"free some space or mend the disk, then `ppgen resume {folder}`"):
        _write(path, picture, folder)
    return path


def _write(path: Path, content: bytes, folder: Path) -> None:
    if path.parent.is_symlink():
        raise CheckpointError(f"expected a folder at {path.parent}; got a symbolic link, which is refused")
    path.parent.mkdir(exist_ok=True)
    # the temporary file beside the checkpoints, where the next run removes what a killed one leaves
    replace_file(path, content, beside=folder)
