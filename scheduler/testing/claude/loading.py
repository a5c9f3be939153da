"""Building configuration values from JSON or TOML, with errors that name the field and the value."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any, ClassVar, Literal, Protocol, TypeVar, get_args, get_origin, get_type_hints


class Dataclass(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


T = TypeVar("T", bound=Dataclass)

# The metadata of fields whose values must not be shown.
SECRET = {"secret": True}


class ConfigError(ValueError):
    """A configuration value is wrong; the text names the field and the value."""


def build(kind: type[T], values: object, where: str) -> T:
    """Build a dataclass from a mapping; `where` is the dotted name used in errors.

    Raises `ConfigError` for unknown and missing fields, wrong types and values that the class itself refuses.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected a table of fields, got {values!r}")
    hints = get_type_hints(kind)
    known = {field.name: field for field in dataclasses.fields(kind)}
    for name in values:
        if name not in known:
            raise ConfigError(f"{where}.{name}: unknown field (known: {', '.join(sorted(known))})")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{where}.{name}: is missing")
    return kind(**{name: _field(known[name], value, hints[name], where) for name, value in values.items()})


def _field(field: dataclasses.Field[Any], value: object, hint: Any, where: str) -> Any:
    """Convert the value of a field; that of a secret one stays out of errors."""
    try:
        return convert(value, hint, f"{where}.{field.name}")
    except ConfigError:
        if not field.metadata.get("secret"):
            raise
        # The error before this one has the value in its text, and must not be seen beside it.
        raise ConfigError(f"{where}.{field.name}: expected a list of texts (which are not shown)") from None


def convert(value: object, hint: Any, where: str) -> Any:
    """Convert a JSON or TOML value to the type a field declares.

    Raises `ConfigError` when it does not fit.
    """
    origin = get_origin(hint)
    if hint is Any or hint is object:
        return value
    if origin in (typing.Union, types.UnionType):
        return _first_that_fits(value, get_args(hint), where)
    if origin is Literal:
        require(value in get_args(hint), where, value, f"expected one of {', '.join(get_args(hint))}")
        return value
    if origin is tuple:
        return tuple(_items(value, get_args(hint)[0], where))
    if origin is not None and issubclass(origin, Mapping):
        return _table(value, get_args(hint)[1], where)
    if hasattr(hint, "from_mapping"):
        return hint.from_mapping(value, where=where)
    return _plain(value, hint, where)


def _first_that_fits(value: object, choices: tuple[Any, ...], where: str) -> Any:
    plain = [choice for choice in choices if choice is not types.NoneType]
    if value is None and len(plain) < len(choices):
        return None
    for choice in plain[:-1]:
        try:
            return convert(value, choice, where)
        except ConfigError:
            continue
    return convert(value, plain[-1], where)


def _items(value: object, hint: Any, where: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where}: expected a list, got {value!r}")
    return [convert(item, hint, f"{where}[{index}]") for index, item in enumerate(value)]


def _table(value: object, hint: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected a table, got {value!r}")
    return {str(name): convert(item, hint, f"{where}.{name}") for name, item in value.items()}


_EXPECTED = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _plain(value: object, hint: Any, where: str) -> Any:
    # bool is a subclass of int, and `true` is never meant as the number 1.
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint not in _EXPECTED or not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {_EXPECTED.get(hint, hint)}, got {value!r}")
    return value


def require_header(field: str, value: object) -> None:
    """Raise `ConfigError` for a text that no header can carry; what is no text is none of its business."""
    if isinstance(value, str):
        sendable = value.isascii() and value.isprintable() and value == value.strip()
        require(sendable, field, value, "must be printable ASCII without blanks around it")


def require(condition: bool, field: str, value: object, rule: str) -> None:
    """Raise `ConfigError` naming the field and the value unless the condition holds."""
    if not condition:
        raise ConfigError(f"{field}: {rule}, got {value!r}")
