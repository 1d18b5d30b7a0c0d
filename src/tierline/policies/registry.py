"""How a family of policies makes one from its name. Each family's `__init__` holds its own mapping name -> module:Class."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
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


def make(
    family: str,
    policies: Mapping[str, str],
    name: str,
    options: Mapping[str, Any] | None,
    offered: Mapping[str, Any] | None = None,
) -> Any:
    """A fresh policy; `options` are its dataclass fields, and of what is `offered` it gets those that it has a field for.
    Raises `UnknownName` or `InvalidInput`."""
    cls = policy_class(family, policies, name)
    known = {field.name for field in fields(cls)} if offered and is_dataclass(cls) else set()
    given = {key: value for key, value in (offered or {}).items() if key in known and value is not None}
    try:
        return cls(**(given | dict(options or {})))
    except TypeError as error:
        raise InvalidInput(f"{family} '{name}' does not take these options: {error}.") from error
