"""ARITHMETIC: FLOPs, bytes, link bytes, seconds, joules and dollars of one step, and the laws built on the step law.

    from ridgepoint.catalog.hardware import accelerator
    from ridgepoint.catalog.models import model_spec
    from ridgepoint.cost import SERVING, Layout, Precision, StepBatch, step_cost

    cost = step_cost(model_spec("gpt-oss-120b"), accelerator("h200"), Layout(tp=1), Precision.named("mxfp4"),
                     StepBatch.decode(sequences=64, context=2000), SERVING)
    cost.estimate_s, cost.binds, cost.terms, cost.estimate_usd

Counts of a batch are of the whole instance (all its chips). Layout degrees and batch fields may be numpy arrays of one shape;
results then are arrays. Plain Python floats in give floats out.
"""

from ridgepoint.cost.batch import Group, StepBatch
from ridgepoint.cost.calibration import BEFORE_FIT, ROOFLINE, SERVING, Calibration, calibrations
from ridgepoint.cost.formats import FORMATS, Precision, bytes_per_value
from ridgepoint.cost.layout import Layout
from ridgepoint.cost.memory import (
    filled_frac,
    kv_bytes_per_chip,
    kv_bytes_per_seq,
    kv_bytes_per_token,
    kv_fixed_bytes_per_seq,
    max_sequences,
    memory_per_chip,
    usable_bytes,
    weight_bytes,
    weight_bytes_per_chip,
)
from ridgepoint.cost.serving import ClosedLoop, ServingCost, closed_loop
from ridgepoint.cost.shape import ModelShape, shape_of
from ridgepoint.cost.step import ROOFS, StepCost, Term, step_cost
from ridgepoint.cost.workload import Workload

__all__ = [
    "BEFORE_FIT", "FORMATS", "ROOFLINE", "ROOFS", "SERVING", "Calibration", "ClosedLoop", "Group", "Layout", "ModelShape", "Precision",
    "ServingCost", "StepBatch", "StepCost", "Term", "Workload", "bytes_per_value", "calibrations", "closed_loop", "filled_frac", "kv_bytes_per_chip", "kv_bytes_per_seq", "kv_bytes_per_token", "kv_fixed_bytes_per_seq",
    "max_sequences", "memory_per_chip", "shape_of", "step_cost", "usable_bytes", "weight_bytes", "weight_bytes_per_chip",
]  # fmt: skip
