"""How a family of policies makes one from its name. Each family's `__init__` holds its own mapping name -> module:Class."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from tierline.core.errors import InvalidInput, UnknownName


def policy_class(family: str, policies: Mapping[str, str], name: str) -> Any:
    """The class of a registered policy, or of `module:Class` given by a user; raises `UnknownName` or `InvalidInput`."""
    target = policies.get(name, name)
    module, colon, attribute = target.partition(":")
    if not colon:
        raise UnknownName(family, name, policies)
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InvalidInput(f"{family} '{name}' cannot be loaded: {error}.") from error


def make(family: str, policies: Mapping[str, str], name: str, options: Mapping[str, Any] | None) -> Any:
    """A fresh policy; `options` are its dataclass fields. Raises `UnknownName` or `InvalidInput`."""
    cls = policy_class(family, policies, name)
    try:
        return cls(**(options or {}))
    except TypeError as error:
        raise InvalidInput(f"{family} '{name}' does not take these options: {error}.") from error
