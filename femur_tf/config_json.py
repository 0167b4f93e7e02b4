"""Settings as JSON and back, strictly: what a field does not expect is refused, not converted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import cattrs
import cattrs.v

from femur_tf.errors import DataError
from femur_tf.files import read_json

T = TypeVar("T")


def _only(kinds: type | tuple[type, ...], expected: str) -> Callable[[Any, Any], Any]:
    """Return a hook that accepts values of `kinds`; True and False are of no kind but bool."""

    def structure(value: Any, kind: Callable[[Any], Any]) -> Any:
        if not isinstance(value, kinds) or isinstance(value, bool) != (kind is bool):
            raise ValueError(f"expected {expected}. Received: {value!r}")
        return kind(value)

    return structure


def _one_of(value: Any, kind: Any) -> Any:
    """Accept one of the values that a Literal lists."""
    choices = get_args(kind)
    if value not in choices:
        raise ValueError(f"expected one of {', '.join(map(repr, choices))}. Received: {value!r}")
    return value


def _is_literal(kind: Any) -> bool:
    """Return whether a type is a Literal."""
    return get_origin(kind) is Literal


def _converter() -> cattrs.Converter:
    """Return a converter that knows no conversion but list to tuple and whole number to float."""
    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_structure_hook(bool, _only(bool, "true or false"))
    converter.register_structure_hook(int, _only(int, "a whole number"))
    converter.register_structure_hook(float, _only((int, float), "a number"))
    converter.register_structure_hook(str, _only(str, "a text"))
    converter.register_structure_hook_func(_is_literal, _one_of)
    return converter


_CONVERTER = _converter()


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config dataclass as plain JSON types."""
    result: dict[str, Any] = _CONVERTER.unstructure(config)
    return result


def _describe(error: BaseException, kind: type[Any] | None) -> str:
    """Say what is wrong with a field; our own checks already do."""
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        names = ", ".join(sorted(error.extra_fields))
        return f"{names}, unknown to this version of femur_tf: use the one that made the file"
    return str(error) if "expected" in str(error) else cattrs.v.format_exception(error, kind)


def from_dict(kind: type[T], values: object, source: str = "config") -> T:
    """Build the config dataclass `kind` from plain JSON types.

    Args:
      kind: a dataclass of settings, or one that composes them.
      values: what `to_dict` gave, possibly through JSON.
      source: named in the error, usually the file's path.

    Raises:
      DataError: an unknown, missing or badly typed field, or a value out of range.
    """
    try:
        return _CONVERTER.structure(values, kind)
    except (cattrs.BaseValidationError, ValueError, TypeError, AttributeError) as error:
        problems = "; ".join(cattrs.transform_error(error, kind.__name__, _describe))
        raise DataError(f"{source}: expected the fields of {kind.__name__}. Received: {problems}") from error


def load(kind: type[T], path: Path) -> T:
    """Read the config dataclass `kind` from the JSON file `path`.

    Raises:
      FileNotFoundError: no such file.
      DataError: not JSON, or not the fields of `kind`.
    """
    return from_dict(kind, read_json(path), str(path))


def differences(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> set[str]:
    """Return the dotted names of the fields in which two configs, as `to_dict` gives them, differ.

    Example:
      >>> differences({"train": {"batch": 64, "seed": 1}}, {"train": {"batch": 32, "seed": 1}})
      {'train.batch'}
    """
    found = set()
    for name in one:
        if isinstance(one[name], dict):
            found |= differences(one[name], other[name], f"{prefix}{name}.")
        elif _plain(one[name]) != _plain(other[name]):
            found.add(prefix + name)
    return found


def _plain(value: Any) -> Any:
    """Return tuples as lists, as JSON has them."""
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
