"""The few shapes that the custom resources are made of: every one described and bounded, as an API server wants it."""

from collections.abc import Iterable
from typing import Any

Schema = dict[str, Any]

PRESERVE = {"x-kubernetes-preserve-unknown-fields": True}
"""Keep what is written although no property is declared; what checks it then is llem, which can name a typo."""

NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
DECIMAL = r"^-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?$"
QUANTITY = (
    r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$"
)
LARGEST = 2**53  # the largest integer that every reader of JSON takes as it is


def text(description: str, longest: int = 253, *, pattern: str = "", shortest: int = 0) -> Schema:
    """A string of at most `longest` characters."""
    bounds: Schema = {"maxLength": longest}
    bounds |= {"minLength": shortest} if shortest else {}
    bounds |= {"pattern": pattern} if pattern else {}
    return {"type": "string", "description": description, **bounds}


def name_of(description: str) -> Schema:
    """The name of another Kubernetes object."""
    return text(description, 253, pattern=NAME)


def choice(description: str, values: Iterable[str]) -> Schema:
    """A string out of a closed list."""
    return {"type": "string", "description": description, "enum": list(values), "maxLength": 63}


def integer(description: str, least: int = 0, most: int = LARGEST) -> Schema:
    """An integer between two bounds, both included."""
    return {"type": "integer", "format": "int64", "description": description, "minimum": least, "maximum": most}


def flag(description: str) -> Schema:
    """True or false."""
    return {"type": "boolean", "description": description}


def decimal(description: str) -> Schema:
    """A number as text, so that no reader rounds it."""
    return text(f"{description} A decimal number as text.", 32, pattern=DECIMAL)


def moment(description: str) -> Schema:
    """A time in UTC."""
    return {"type": "string", "format": "date-time", "description": description, "maxLength": 40}


def quantity(description: str) -> Schema:
    """An amount as Kubernetes writes it: 4, 500m, 16Gi."""
    return {"x-kubernetes-int-or-string": True, "description": description, "maxLength": 32, "pattern": QUANTITY}


def record(description: str, properties: Schema, *, required: Iterable[str] = (), atomic: bool = False) -> Schema:
    """An object with these fields and no others; `atomic`: always replaced as a whole."""
    needed = list(required)
    return {
        "type": "object",
        "description": description,
        **({"required": needed} if needed else {}),
        **({"x-kubernetes-map-type": "atomic"} if atomic else {}),
        "properties": properties,
    }


def mapping(description: str, values: Schema, most: int) -> Schema:
    """An object with up to `most` keys of the user's choice."""
    return {"type": "object", "description": description, "maxProperties": most, "additionalProperties": values}


def listing(description: str, items: Schema, most: int) -> Schema:
    """A list that is always replaced as a whole."""
    return {
        "type": "array",
        "description": description,
        "maxItems": most,
        "x-kubernetes-list-type": "atomic",
        "items": items,
    }


def keyed(description: str, items: Schema, most: int, *, key: str) -> Schema:
    """A list whose entries are told apart by one field, so that two writers can each own some."""
    return listing(description, items, most) | {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


def free(description: str, **bounds: int) -> Schema:
    """A value of any type, kept as written; the bounds count only for the types that they are about."""
    return {"description": description, **PRESERVE, **bounds}


def by_default(schema: Schema, value: Any) -> Schema:
    """The same field with a value for those who leave it out."""
    return {**schema, "default": value}


def rule(expression: str, message: str, path: str = "") -> Schema:
    """A rule that the API server checks at each write; broken: `message`, shown at the field `path`."""
    where = {"fieldPath": path} if path else {}
    return {"rule": expression, "message": message, "reason": "FieldValueForbidden", **where}
