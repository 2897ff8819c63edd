"""What compiling backends are told: profiles from the text and from the data, and what of them cannot be."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from optimizer.data import Input
from optimizer.engine import Profile, make_profiles, parse_profile
from optimizer.errors import UserError

FLOAT = np.dtype(np.float32)
INPUTS = {"x": Input("x", FLOAT, ("N", 3, None, None)), "fixed": Input("fixed", FLOAT, (1, 4))}


def test_three_shapes_make_a_profile() -> None:
    assert parse_profile("x=1x3x8x8:4x3x8x8:9x3x8x8") == ("x", Profile((1, 3, 8, 8), (4, 3, 8, 8), (9, 3, 8, 8)))
    assert parse_profile("a=b=2:2:3") == ("a=b", Profile((2,), (2,), (3,)))
    assert str(parse_profile("x=1x3:2x3:4x3")[1]) == "1x3:2x3:4x3"


@pytest.mark.parametrize("text", ["x", "=1x3", "x=1x3", "x=1x3:2x3", "x=axb", "x=2x3:1x3:4x3", "x=1:1x2:1x2", "x=-1x3"])
def test_what_is_no_profile_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match=r"--shape .*(MIN:OPT:MAX|min <= opt <= max)"):
        parse_profile(text)


def test_profiles_span_the_data_and_are_best_at_the_commonest_size() -> None:
    seen = Counter({(1, 3, 8, 32): 1, (1, 3, 8, 16): 3, (2, 3, 8, 24): 2})
    made = make_profiles(INPUTS, {"x": seen, "fixed": Counter({(1, 4): 6})}, {})
    assert made == {"x": Profile((1, 3, 8, 16), (1, 3, 8, 16), (2, 3, 8, 32))}


def test_a_given_profile_wins() -> None:
    given = {"x": Profile((1, 3, 8, 8), (1, 3, 9, 9), (2, 3, 9, 9))}
    assert make_profiles(INPUTS, {"x": Counter({(1, 3, 5, 5): 1})}, given) == given


def test_nothing_is_made_up_for_an_input_that_was_never_seen() -> None:
    assert make_profiles(INPUTS, {}, {}) == {}


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [("y", (1,), "inputs are x, fixed"), ("x", (1, 4, 8, 8), "float32"), ("fixed", (4,), "does not fit")],
)
def test_a_profile_must_fit_an_input(name: str, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_profiles(INPUTS, {}, {name: Profile(shape, shape, shape)})


def test_a_profile_of_sizes_that_come_as_values_is_left_to_the_backend() -> None:
    inputs = {"k": Input("k", np.dtype(np.int64), (1,)), "trips": Input("trips", np.dtype(np.int64), ())}
    given = {"k": Profile((2,), (4,), (9,)), "trips": Profile((1,), (3,), (5,))}
    assert make_profiles(inputs, {}, given) == given
