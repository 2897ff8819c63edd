"""The pass `fuse`: a table of rules that put several nodes into one, applied until none fires.

Each rule proves its algebra in the docstring of its file; what holds for all of them is checked by the rule engine.
To add one, write its file and put it into the table.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from difflib import get_close_matches
from typing import ClassVar

from optimizer.context import Context
from optimizer.graph import Graph
from optimizer.pipeline import Pass
from optimizer.rewrite import Rule, apply_rules
from passes.fuse import (
    affine_conv,
    bias,
    clip,
    concat,
    constants,
    conv_affine,
    focus,
    gelu,
    gemm,
    hard,
    norm,
    pad,
    reduce,
    reshape,
    shared,
    slices,
    smooth,
    squeeze,
    transpose,
)

log = logging.getLogger(__name__)

RULES: tuple[Rule, ...] = (
    conv_affine.conv_bn,
    conv_affine.conv_mul,
    conv_affine.conv_div,
    conv_affine.conv_add,
    conv_affine.conv_sub,
    affine_conv.mul_conv,
    affine_conv.div_conv,
    affine_conv.add_conv,
    affine_conv.sub_conv,
    affine_conv.bn_conv,
    affine_conv.mul_add_conv,
    pad.pad_conv,
    pad.pad_average_pool,
    gemm.gemm_mul,
    gemm.gemm_add,
    gemm.gemm_bn,
    gemm.matmul_mul,
    gemm.matmul_add_mul,
    gemm.matmul_move_mul,
    gemm.matmul_bn,
    gemm.matmul_add,
    bias.zero_bias,
    hard.hard_swish,
    hard.hard_swish_clip,
    hard.hard_sigmoid,
    hard.hard_sigmoid_affine,
    smooth.mish,
    smooth.swish,
    gelu.gelu,
    gelu.gelu_tanh,
    norm.layer_norm,
    norm.rms_norm,
    norm.norm_mul,
    norm.norm_add,
    norm.norm_cast,
    transpose.transpose_transpose,
    squeeze.unsqueeze_unsqueeze,
    squeeze.squeeze_squeeze,
    squeeze.squeeze_unsqueeze,
    reshape.reshape_reshape,
    reshape.reshape_regroup,
    slices.slice_slice,
    shared.slice_shared,
    focus.focus_conv,
    concat.concat_concat,
    clip.clip_clip,
    constants.add_add,
    constants.mul_mul,
    reduce.reduce_unsqueeze,
    reduce.reduce_sum_square,
    reduce.reduce_l2,
    reduce.global_average_pool,
    reduce.log_softmax,
    reduce.reduce_log_sum_exp,
)
NAMES = tuple(one.name for one in RULES)
# Shorter, yet slower on ONNX Runtime's CPU kernels, by 1.3 to 3 times where it was measured: applied only where named.
NAMED_ONLY = frozenset(["swish", "reduce-sum-square", "reduce-l2", "global-average-pool"])
OLDEST = 7  # before it broadcasting is an attribute, and BatchNormalization trains unless told otherwise


@dataclass(frozen=True)
class Fuse(Pass):
    """Applies fusion rules. `rules`: only these (empty: all but NAMED_ONLY); `skip`: not these.

    `gemm` makes Gemm of MatMul and Add. `fast_math` adds the rules that may change NaN, -0 or overflow. Models below
    operator set 7 are left alone.
    """

    name: ClassVar[str] = "fuse"

    rules: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    fast_math: bool = False
    gemm: bool = True

    def __post_init__(self) -> None:
        for given in (*self.rules, *self.skip):
            if given not in NAMES:
                near = get_close_matches(given, NAMES, 3)
                raise ValueError(f"no rule is called '{given}'; there are {', '.join(near or NAMES)}")

    @property
    def chosen(self) -> tuple[Rule, ...]:
        """The rules to apply, in the order in which they are tried at a node."""
        on = self.rules or tuple(name for name in NAMES if name not in NAMED_ONLY)
        off = (*self.skip, *(() if self.gemm else ("matmul-add",)))
        return tuple(one for one in RULES if one.name in on and one.name not in off)

    def run(self, graph: Graph, ctx: Context) -> int:
        if graph.opset < OLDEST:
            return 0
        fired = apply_rules(graph, self.chosen, fast_math=self.fast_math)
        log.info("fuse: %s", ", ".join(f"{name} {count}" for name, count in sorted(fired.items())) or "nothing")
        return sum(fired.values())
