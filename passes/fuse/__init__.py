"""The pass `fuse`: a table of rules that put several nodes into one, applied until none fires.

Each rule proves its algebra in the docstring of its file; what holds for all of them is checked by the rule engine.
To add one, write its file and put it into the table.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from difflib import get_close_matches
from typing import ClassVar

from optimizer.context import Context
from optimizer.graph import Graph
from optimizer.pipeline import Pass
from optimizer.rewrite import Rule, apply_rules
from passes.fuse import (
    affine_conv,
    argmax,
    attention,
    bias,
    clip,
    concat,
    constants,
    conv_affine,
    conv_conv,
    conv_sum,
    depth,
    depthwise,
    einsum,
    factors,
    focus,
    gather,
    gelu,
    gemm,
    group,
    hard,
    leaky,
    norm,
    one_hot,
    pad,
    powers,
    products,
    reduce,
    reshape,
    rotary,
    shape,
    shared,
    signs,
    slices,
    smooth,
    softmax,
    squeeze,
    transpose,
)
from passes.fuse.packed import scale_packed
from passes.fuse.sink import sink_transposes

log = logging.getLogger(__name__)

RULES: tuple[Rule, ...] = (
    conv_affine.conv_bn,
    conv_affine.conv_mul,
    conv_affine.conv_div,
    conv_affine.conv_add,
    conv_affine.conv_sub,
    conv_affine.conv_squeeze,
    affine_conv.mul_conv,
    affine_conv.div_conv,
    affine_conv.add_conv,
    affine_conv.sub_conv,
    affine_conv.bn_conv,
    affine_conv.mul_add_conv,
    pad.pad_conv,
    pad.pad_average_pool,
    pad.pad_pad,
    depthwise.depthwise_mul,
    pad.pad_max_pool,
    pad.pad_max_pool_float,
    conv_conv.conv_conv,
    conv_sum.conv_sum,
    conv_sum.conv_add_input,
    conv_sum.conv_add_bn,
    gemm.gemm_mul,
    gemm.gemm_add,
    gemm.gemm_bn,
    gemm.matmul_mul,
    gemm.matmul_add_mul,
    gemm.matmul_move_mul,
    gemm.scores_move_mul,
    gemm.matmul_bn,
    products.matmul_matmul,
    products.gemm_gemm,
    products.matmul_sum,
    gemm.matmul_add,
    gemm.gemm_sum,
    gemm.gemm_gemm_sum,
    bias.zero_bias,
    factors.gemm_transpose,
    factors.matmul_rows,
    factors.matmul_batch,
    einsum.einsum,
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
    group.group_norm,
    attention.attention,
    attention.attention_bias,
    attention.attention_mask,
    attention.attention_groups,
    rotary.rotary_embedding,
    transpose.transpose_transpose,
    transpose.transpose_reshape,
    squeeze.unsqueeze_unsqueeze,
    squeeze.squeeze_squeeze,
    squeeze.squeeze_unsqueeze,
    depth.depth_to_space,
    depth.space_to_depth,
    depth.space_to_depth_slices,
    depth.merge_patches,
    reshape.reshape_reshape,
    reshape.reshape_regroup,
    slices.slice_slice,
    gather.gather_unsqueeze,
    gather.slice_squeeze,
    shape.shape_slice,
    shape.shape_gather,
    shape.concat_shape,
    shape.filled_cast,
    shape.filled_arithmetic,
    shared.slice_shared,
    focus.focus_conv,
    concat.concat_concat,
    concat.where_concat,
    clip.clip_clip,
    clip.min_max,
    clip.max_relu,
    clip.clip_unbounded,
    leaky.leaky_relu,
    leaky.leaky_where,
    smooth.sigmoid,
    smooth.silu,
    smooth.softsign,
    softmax.softmax,
    softmax.softmax_overflowing,
    softmax.log_softmax_parts,
    softmax.log_softmax_difference,
    one_hot.one_hot_matmul,
    argmax.arg_max,
    signs.add_neg,
    signs.sub_neg,
    signs.neg_neg,
    signs.neg_constant,
    signs.abs_neg,
    signs.where_negated,
    constants.add_add,
    constants.mul_mul,
    constants.add_sub,
    constants.mul_div,
    constants.min_min,
    reduce.reduce_unsqueeze,
    reduce.reduce_reshape,
    reduce.reduce_sum_square,
    reduce.reduce_l2,
    reduce.global_average_pool,
    reduce.log_softmax,
    reduce.reduce_log_sum_exp,
    reduce.reduce_one_stable,
    powers.pow_square,
    powers.pow_reciprocal,
    powers.pow_root,
    powers.pow_root_signed,
    powers.div_power_of_two,
    powers.mul_reciprocal,
)
NAMES = tuple(one.name for one in RULES)
GEMM = ("matmul-add", "gemm-sum", "gemm-gemm-sum")  # of what is added to a product
# Shorter, yet slower on ONNX Runtime's CPU kernels, by 1.3 to 3 times where it was measured, or (attention) no faster
# and in the way of int8: applied only where named.
SLOWER = ("swish", "reduce-sum-square", "reduce-l2", "global-average-pool", "group-norm")
NAMED_ONLY = frozenset([*SLOWER, "attention", "attention-bias", "attention-mask"])
LATE = (transpose.transpose_reshape,)  # what a Reshape took the place of cannot be moved any more
OLDEST = 7  # before it broadcasting is an attribute, and BatchNormalization trains unless told otherwise


@dataclass(frozen=True)
class Fuse(Pass):
    """Applies fusion rules. `rules`: only these (empty: all but NAMED_ONLY); `skip`: not these.

    `gemm` makes one Gemm of a product and what is added to it. `fast_math` adds the rules that may change NaN, -0 or
    overflow. `sink` moves Transposes to where they cancel. Models below operator set 7 are left alone.
    """

    name: ClassVar[str] = "fuse"
    tracked: ClassVar[bool] = True

    rules: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    fast_math: bool = False
    gemm: bool = True
    sink: bool = True

    def __post_init__(self) -> None:
        for given in (*self.rules, *self.skip):
            if given not in NAMES:
                near = get_close_matches(given, NAMES, 3)
                raise ValueError(f"no rule is called '{given}'; there are {', '.join(near or NAMES)}")

    @property
    def chosen(self) -> tuple[Rule, ...]:
        """The rules to apply, in the order in which they are tried at a node."""
        on = self.rules or tuple(name for name in NAMES if name not in NAMED_ONLY)
        off = (*self.skip, *(() if self.gemm else GEMM))
        return tuple(one for one in RULES if one.name in on and one.name not in off)

    def run(self, graph: Graph, ctx: Context) -> int:
        if graph.opset < OLDEST:
            return 0
        early = tuple(one for one in self.chosen if one not in LATE)
        fired = Counter(apply_rules(graph, early, fast_math=self.fast_math))
        if not self.rules and (count := scale_packed(graph)):
            fired["packed"] = count
        while self.sink and not self.rules and (count := sink_transposes(graph)):
            fired["sink"] += count
            fired.update(apply_rules(graph, early, fast_math=self.fast_math))
        late = tuple(one for one in self.chosen if one in LATE)
        if last := apply_rules(graph, late, fast_math=self.fast_math):
            fired.update(last)
            fired.update(apply_rules(graph, self.chosen, fast_math=self.fast_math))
        log.info("fuse: %s", ", ".join(f"{name} {count}" for name, count in sorted(fired.items())) or "nothing")
        return sum(fired.values())
