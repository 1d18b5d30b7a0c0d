"""One plain sentence for a request that does not fit its schema, from what Pydantic found first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 80
_ID = "1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit"
# Pydantic's kind of error -> what would be allowed; filled in from the error's `ctx`.
_ALLOWED = {
    "greater_than_equal": "{ge} or more is allowed",
    "greater_than": "more than {gt} is needed",
    "less_than_equal": "{le} at most is allowed",
    "less_than": "less than {lt} is needed",
    "string_pattern_mismatch": f"{_ID} are allowed",
    "string_too_long": "{max_length} characters at most are allowed",
    "too_long": "{max_length} entries at most are allowed",
    "too_short": "{min_length} or more entries are needed",
    "literal_error": "allowed is {expected}",
    "finite_number": "a finite number is needed",
}
_NEEDED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    "list": "a list",
    "tuple": "a pair",
    "dict": "an object",
    "model": "an object",
}


def sentence(errors: Sequence[Mapping[str, Any]], body: Any) -> str:
    """What was given and what is allowed. `errors` as FastAPI collects them, `body` the request's, where it was JSON.

    >>> fault = {"type": "less_than_equal", "loc": ("body", "jobs", 0, "priority"), "input": 101, "ctx": {"le": 100}}
    >>> sentence([fault], {"jobs": [{"job_id": "a", "priority": 101}]})
    "job 'a': priority is 101; 100 at most is allowed."
    """
    first = errors[0]
    kind, place = str(first["type"]), tuple(first["loc"])
    if kind == "json_invalid":
        return f"The request's body is no JSON: {first.get('ctx', {}).get('error', 'it cannot be read')}."
    whose, field = _owner_and_field(place, body)
    if not field:
        return f"{whose or 'The request'} is not what is asked for: a JSON object is needed."
    prefix = f"{whose}: " if whose else ""
    if kind == "missing":
        return f"{prefix}{field} is missing."
    if kind == "extra_forbidden":
        return f"{prefix}there is no field {field}."
    return f"{prefix}{field} is {_shown(first.get('input'))}; {_allowed(kind, first)}."


def _owner_and_field(place: tuple[Any, ...], body: Any) -> tuple[str, str]:
    """("job 'a'", "priority") of ("body", "jobs", 0, "priority")."""
    where = [part for part in place if part not in ("body", "query", "path", "header")]
    whose = ""
    if len(where) >= 2 and where[0] == "jobs" and isinstance(where[1], int):
        whose, where = _job(where[1], body), where[2:]
    elif len(where) >= 2 and where[0] == "sweep":
        whose, where = "sweep", where[1:]
    # A field itself, then which of its entries; the names of a union's branches, which Pydantic adds, tell nobody anything.
    if not where:
        return whose, ""
    entries = [f"[{part}]" for part in where[1:2] if part != "[key]"]
    return whose, f"{where[0]}{''.join(entries)}"


def _job(index: int, body: Any) -> str:
    try:
        job_id = body["jobs"][index]["job_id"]
    except (KeyError, IndexError, TypeError):
        job_id = ""
    if isinstance(job_id, str) and job_id:
        return f"job '{job_id[:SHOWN]}'"
    return f"job {index + 1} of the request"


def _shown(value: Any) -> str:
    text = f"'{value}'" if isinstance(value, str) else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _allowed(kind: str, error: Mapping[str, Any]) -> str:
    if kind in _ALLOWED:
        return _ALLOWED[kind].format_map({**error.get("ctx", {})})
    for name, needed in _NEEDED.items():
        if kind.startswith(f"{name}_"):
            return f"{needed} is needed"
    said = str(error["msg"])
    return said[:1].lower() + said[1:]
