"""Programs: what a model and a guide are, how they run together, and how data is generated from them.

A *program* is any callable with Pyro statements: a function with ``pyro.param``, an ``nn.Module``, a ``PyroModule``,
an autoguide. A *batch* is a dict of columns; a program is given the columns that its signature names. This is the
only package that knows Pyro's effect handlers.
"""

from ppgen.programs.calling import Batch, Program, arguments, call, report_unused_columns
from ppgen.programs.generation import generate, label_log_probs, posterior, reconstruct, template
from ppgen.programs.joint import (
    DataPlate,
    Joint,
    check,
    data_plate,
    first_nonfinite,
    in_full_precision,
    nesting_of,
    run,
)
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
from ppgen.programs.weights import LogWeights, log_weights

__all__ = [
    "Batch",
    "DataPlate",
    "Joint",
    "LogWeights",
    "Program",
    "Store",
    "arguments",
    "buffers",
    "call",
    "check",
    "checked",
    "data_plate",
    "evaluation_mode",
    "first_nonfinite",
    "generate",
    "in_full_precision",
    "label_log_probs",
    "leaves",
    "log_weights",
    "modules_of",
    "nesting_of",
    "posterior",
    "quiet",
    "reconstruct",
    "registered",
    "report_untrained_modules",
    "report_unused_columns",
    "run",
    "template",
    "without_host_reads",
]
