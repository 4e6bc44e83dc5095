"""Programs: what a model and a guide are, how they run together, and how data is generated from them.

A *program* is any callable with Pyro statements: a function with ``pyro.param``, an ``nn.Module``, a ``PyroModule``,
an autoguide. A *batch* is a dict of columns; a program is given the columns that its signature names. This is the
only package that knows Pyro's effect handlers.
"""

from ppgen.programs.calling import Batch, Call, Program, arguments, call, report_unused_columns
from ppgen.programs.dependencies import Dependencies, dependencies, late_priors, latents_of_runs
from ppgen.programs.frozen import require_repeatable, with_frozen_guide
from ppgen.programs.generation import generate, label_log_probs, posterior, reconstruct, template
from ppgen.programs.joint import DENSITY, Joint, frames, in_full_precision, log_prob_of
from ppgen.programs.minibatches import BatchRules, needs_training_rows
from ppgen.programs.ownership import separate_leaves
from ppgen.programs.parameters import (
    Store,
    buffers,
    checked,
    evaluation_mode,
    leaves,
    modules_of,
    quiet,
    registered,
    report_untrained_modules,
    without_host_reads,
)
from ppgen.programs.rows import DataPlate, Rows, Structure
from ppgen.programs.running import check, data_plate, first_nonfinite, left_to_the_model, run, structure_of
from ppgen.programs.simulation import (
    Relaxed,
    Site,
    Sites,
    has_pathwise,
    infer,
    number_of_states,
    require_pathwise,
    rows_of,
    scores,
    simulate,
    strictly_checked,
)
from ppgen.programs.support import require_support
from ppgen.programs.weights import (
    LogWeights,
    Weights,
    log_weights,
    report_scales,
    require_known_rows,
    require_one_weight,
    weights_of,
)

__all__ = [
    "DENSITY",
    "Batch",
    "BatchRules",
    "Call",
    "DataPlate",
    "Dependencies",
    "Joint",
    "LogWeights",
    "Program",
    "Relaxed",
    "Rows",
    "Site",
    "Sites",
    "Store",
    "Structure",
    "Weights",
    "arguments",
    "buffers",
    "call",
    "check",
    "checked",
    "data_plate",
    "dependencies",
    "evaluation_mode",
    "first_nonfinite",
    "frames",
    "generate",
    "has_pathwise",
    "in_full_precision",
    "infer",
    "label_log_probs",
    "late_priors",
    "latents_of_runs",
    "leaves",
    "left_to_the_model",
    "log_prob_of",
    "log_weights",
    "modules_of",
    "needs_training_rows",
    "number_of_states",
    "posterior",
    "quiet",
    "reconstruct",
    "registered",
    "report_scales",
    "report_untrained_modules",
    "report_unused_columns",
    "require_known_rows",
    "require_one_weight",
    "require_pathwise",
    "require_repeatable",
    "require_support",
    "rows_of",
    "run",
    "scores",
    "separate_leaves",
    "simulate",
    "strictly_checked",
    "structure_of",
    "template",
    "weights_of",
    "with_frozen_guide",
    "without_host_reads",
]
