"""Hyper-parameters from the command line."""

import math
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, TypeVar, get_type_hints

from shortlist_trainer.errors import ConfigError
from shortlist_trainer.models.base import ModelConfig

C = TypeVar("C", bound=ModelConfig)


def parse_settings(config_type: type[C], settings: Iterable[str]) -> C:
    """A configuration with some hyper-parameters changed.

    Args:
        config_type: whose fields are the names that may be set.
        settings: texts of the form NAME=VALUE.

    Raises:
        ConfigError: a name is unknown, or a value is not of the field's type or range.
    """
    types = get_type_hints(config_type)
    values: dict[str, Any] = {}
    for setting in settings:
        name, divider, text = setting.partition("=")
        if not divider:
            raise ConfigError(f"--set takes NAME=VALUE, not {setting!r}")
        if name not in types:
            known = ", ".join(f"{field.name}={field.default}" for field in fields(config_type))
            raise ConfigError(f"there is no hyper-parameter {name!r}; there are {known}")
        try:
            values[name] = types[name](text)
        except ValueError as error:
            raise ConfigError(f"{name} must be of type {types[name].__name__}, not {text!r}") from error
    return config_type(**values)


def require(condition: bool, name: str, rule: str, value: object) -> None:
    """Raises ConfigError unless a hyper-parameter keeps its rule and is finite."""
    if not condition or (isinstance(value, float) and not math.isfinite(value)):
        raise ConfigError(f"{name} must be {rule}, not {value}")
