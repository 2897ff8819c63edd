"""Renders Q/DQ for TensorRT: `rules` says which operators, `partition` what fuses, `placement` where, `render` how."""

from passes.quantize.tensorrt.placement import Choice, Plan, plan
from passes.quantize.tensorrt.render import render
from passes.quantize.tensorrt.rules import work
from passes.quantize.tensorrt.scales import Rest

__all__ = ["Choice", "Plan", "Rest", "plan", "render", "work"]
