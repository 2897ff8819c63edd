"""Sizes an engine must serve: checks the profiles that were given against the network, and hands them over.

An input with unknown dims needs a profile. So does a shape tensor, an input whose values are sizes: there the profile
holds its least, best and most values. Dims of one name are equal to TensorRT, so their sizes must be given alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from optimizer.engine import Profile
from optimizer.errors import UserError


def inputs(network: Any) -> list[Any]:
    return [network.get_input(index) for index in range(network.num_inputs)]


def used(network: Any, given: Mapping[str, Profile]) -> dict[str, Profile]:
    """The profiles of the inputs that need one. Raises UserError where one is missing or does not fit."""
    tensors = {tensor.name: tensor for tensor in inputs(network)}
    for name, profile in given.items():
        if name not in tensors:
            raise UserError(f"--shape {name}={profile}: the model has no input '{name}'; it has {', '.join(tensors)}")
    found = {}
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        if tensor.is_shape_tensor:
            found[name] = _values(name, shape, given.get(name))
        elif -1 in shape:
            found[name] = _sizes(name, shape, given.get(name))
        elif name in given:
            _sizes(name, shape, given[name])
    _check_names(network, found)
    return found


def _sizes(name: str, shape: tuple[int, ...], profile: Profile | None) -> Profile:
    wanted = _written(shape)
    if profile is None:
        shown = "x".join(str(size) if size >= 0 else "1" for size in shape)
        raise UserError(
            f"input '{name}' [{wanted}] has unknown sizes: give those the engine must serve, as --shape "
            f"{name}=MIN:OPT:MAX, such as --shape {name}={shown}:{shown}:{shown}"
        )
    for sizes in (profile.least, profile.best, profile.most):
        fits = len(sizes) == len(shape) and all(a in (-1, b) for a, b in zip(shape, sizes, strict=True))
        if not fits:
            raise UserError(f"--shape {name}={profile} does not fit input '{name}' [{wanted}]: change what is fixed")
    return profile


def _values(name: str, shape: tuple[int, ...], profile: Profile | None) -> Profile:
    """The range of a shape tensor's values; three times its own shape is the shape itself, not a range."""
    count = shape[0] if shape else 1
    if profile is None or {profile.least, profile.best, profile.most} == {shape} or len(profile.least) != count:
        wanted = "x".join("N" * count)
        raise UserError(
            f"the values of input '{name}' are sizes: give their range as --shape {name}=MIN:OPT:MAX, each {wanted}, "
            f"or bind it to one value with --freeze {name}=VALUE"
        )
    return profile


def _written(shape: tuple[int, ...]) -> str:
    return ",".join("?" if size < 0 else str(size) for size in shape)


def apply(builder: Any, config: Any, network: Any, profiles: Mapping[str, Profile]) -> None:
    """Adds one optimization profile that holds all of them; nothing where every size is known."""
    if not profiles:
        return
    made = builder.create_optimization_profile()
    for tensor in inputs(network):
        if (profile := profiles.get(tensor.name)) is None:
            continue
        give = made.set_shape_input if tensor.is_shape_tensor else made.set_shape
        give(tensor.name, profile.least, profile.best, profile.most)
    config.add_optimization_profile(made)


def _check_names(network: Any, profiles: Mapping[str, Profile]) -> None:
    """Raises UserError where dims of one name are given different sizes."""
    seen: dict[str, tuple[str, tuple[int, int, int]]] = {}
    for tensor, axis, name in _named_dims(network):
        profile = profiles[tensor.name]
        sizes = (profile.least[axis], profile.best[axis], profile.most[axis])
        first, known = seen.setdefault(name, (tensor.name, sizes))
        if known != sizes:
            raise UserError(
                f"dims of inputs '{first}' and '{tensor.name}' are both called '{name}', which means equal sizes, but "
                f"--shape says {_range(known)} and {_range(sizes)}: give them the same, or rename one in the model"
            )


def _range(sizes: tuple[int, int, int]) -> str:
    return ":".join(map(str, sizes))


def _named_dims(network: Any) -> Iterator[tuple[Any, int, str]]:
    for tensor in inputs(network):
        if tensor.is_shape_tensor:
            continue
        for axis, size in enumerate(tensor.shape):
            if size < 0 and (name := tensor.get_dimension_name(axis)):
                yield tensor, axis, name
