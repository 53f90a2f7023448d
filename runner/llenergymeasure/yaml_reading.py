"""Reads YAML so that every scalar means what it means to kubectl.

PyYAML decides differently from kubectl's reader (Go, sigs.k8s.io/yaml) in small things: `y` and `n`, `012`, `1e3`,
`1:30`, dates. The resolver below follows Go's, so that one file is one study by `llem run` and by `kubectl apply`.
kubectl also turns the unquoted key `n` into `false`; at the top of a design or in its sweep that means `n`.
"""

import contextlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import yaml

from llenergymeasure.core.errors import ConfigError

MAX_BYTES = 1_000_000
"""Largest configuration file; an API server takes no larger object either."""

MAX_NODES = 200_000
MAX_DEPTH = 64
_TRUE = frozenset(["y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"])
_FALSE = frozenset(["n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"])
_NULL = frozenset(["", "~", "null", "Null", "NULL"])
_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
_INT = re.compile(r"^[-+]?(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]+|0|[1-9][0-9]*)$")
_NOT_FINITE = re.compile(r"^([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # chosen at run time
    """Safe YAML with Go's scalar rules and no duplicate keys."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


def scalar(text: str) -> Any:
    """Value of a plain (unquoted) scalar by the rules of Go's YAML reader."""
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if text[0] not in "+-.0123456789":
        return text
    plain = text if text[0] == "." else text.replace("_", "")  # Go looks for underscores after a digit or sign only
    if _INT.match(plain):
        return _integer(plain)
    if _FLOAT.match(plain):
        value = float(plain)
        if math.isinf(value):
            return text
        return int(value) if value.is_integer() and abs(value) < 2**63 else value
    if _NOT_FINITE.match(text):
        raise ValueError(f"{text} is not a number that JSON can hold")
    return text


def _integer(text: str) -> int:
    sign, digits = (-1, text[1:]) if text[0] == "-" else (1, text.lstrip("+"))
    base = {"0x": 16, "0b": 2, "0o": 8}.get(digits[:2].lower())
    if base:
        return sign * int(digits[2:], base)
    return sign * int(digits, 8 if digits[0] == "0" and len(digits) > 1 else 10)


def _construct_plain(loader: Any, node: yaml.ScalarNode) -> Any:
    try:
        value = scalar(node.value)
    except ValueError as err:
        raise yaml.MarkedYAMLError(problem=str(err), problem_mark=node.start_mark) from err
    if node.tag != _PLAIN and isinstance(value, str):
        wanted = node.tag.rpartition(":")[2]
        raise yaml.MarkedYAMLError(problem=f"{value!r} is no {wanted}", problem_mark=node.start_mark)
    return value


def _construct_mapping(loader: Any, node: yaml.MappingNode) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    merged: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        if key_node.tag == _MERGE:
            if result or merged:  # kubectl lets a later << replace keys, other readers do not
                raise yaml.MarkedYAMLError(problem="<< must be the first key, once", problem_mark=key_node.start_mark)
            merged = _construct_merge(loader, value_node)
            continue
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, int | float) and not isinstance(key, bool):
            key = str(key)  # as JSON, and so kubectl, has it
        if not isinstance(key, str | bool):
            raise yaml.MarkedYAMLError(problem=f"a key must be text, not {key!r}", problem_mark=key_node.start_mark)
        if key in result:
            raise yaml.MarkedYAMLError(problem=f"duplicate key {key_node.value!r}", problem_mark=key_node.start_mark)
        result[key] = loader.construct_object(value_node, deep=True)
    return {**merged, **result}


def _construct_merge(loader: Any, node: yaml.Node) -> dict[Any, Any]:
    """Values of `<<: *a` or `<<: [*a, *b]`; the first mapping that has a key wins, the mapping around it over all."""
    found: dict[Any, Any] = {}
    for part in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        mapping = loader.construct_object(part, deep=True)
        if not isinstance(mapping, dict):
            raise yaml.MarkedYAMLError(problem="<< takes a mapping or a list of mappings", problem_mark=part.start_mark)
        found = {**mapping, **found}
    return found


def _construct_list(loader: Any, node: yaml.SequenceNode) -> list[Any]:
    return [loader.construct_object(child, deep=True) for child in node.value]


_PLAIN = "tag:llem,2026:plain"  # every unquoted scalar without a tag of its own
_MERGE = "tag:yaml.org,2002:merge"
_STANDARD = yaml.SafeLoader.yaml_constructors
_Loader.yaml_constructors = {k: _STANDARD[k] for k in (None, "tag:yaml.org,2002:str")}  # no dates, sets or bytes
for _tag in ("null", "bool", "int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _construct_plain)
_Loader.add_constructor(_PLAIN, _construct_plain)
_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
_Loader.add_constructor("tag:yaml.org,2002:seq", _construct_list)
_Loader.add_implicit_resolver(_MERGE, re.compile(r"^<<$"), ["<"])
_Loader.add_implicit_resolver(_PLAIN, re.compile(r"^.*$", re.DOTALL), [None])


def parse_yaml(text: str, *, source: str) -> Any:
    """Parse one YAML (or JSON) document; errors name the file and line.

    Raises:
        ConfigError: Syntax error, tab, duplicate key, several documents, too large, too deep.

    """
    if text.lstrip().startswith("{"):
        with contextlib.suppress(ValueError):  # flow YAML may look like JSON; then the YAML reader decides
            return _parse_json(_small(text, source))
    return _guarded(text, source, lambda: yaml.load(text, Loader=_Loader))  # noqa: S506  (a SafeLoader with stricter rules)


def parse_documents(text: str, *, source: str) -> list[Any]:
    """Parse a stream of YAML documents with the rules of `parse_yaml`; empty documents are left out.

    Raises:
        ConfigError: As `parse_yaml`.

    """
    if text.lstrip().startswith("{"):
        with contextlib.suppress(ValueError):
            return [_parse_json(_small(text, source))]
    found: list[Any] = _guarded(text, source, lambda: list(yaml.load_all(text, Loader=_Loader)))
    return [document for document in found if document is not None]


def _small(text: str, source: str) -> str:
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{source}: {len(text):,} characters are more than {MAX_BYTES:,}; split the file")
    return text


def _guarded(text: str, source: str, load: Callable[[], Any]) -> Any:
    """What `load` makes of a text of sensible size; YAML's errors as sentences."""
    _small(text, source)
    try:
        data = load()
        if _expanded_size(data, {}) > MAX_NODES:
            raise ConfigError(f"{source}: its aliases expand to more than {MAX_NODES:,} values; write them out")
    except RecursionError:
        raise ConfigError(f"{source}: nested too deeply (limit about {MAX_DEPTH} levels)") from None
    except yaml.YAMLError as err:
        raise ConfigError(f"{source}{_place(err, text)}") from err
    return data


def _parse_json(text: str) -> Any:
    """Parse JSON with the rules of our YAML; ValueError for what is no JSON, or is JSON that we refuse."""

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({k for k, _ in pairs}) < len(pairs):
            raise ValueError("duplicate key")
        return dict(pairs)

    def refuse(name: str) -> Any:
        raise ValueError(name)

    return json.loads(text, object_pairs_hook=mapping, parse_float=scalar, parse_constant=refuse)


def _expanded_size(data: Any, known: dict[int, int]) -> int:
    """Number of values once every alias is written out; shared parts are counted each time but walked once."""
    children = list(data.values()) if isinstance(data, dict) else data if isinstance(data, list) else ()
    if id(data) not in known:
        size = 1 + sum(_expanded_size(child, known) for child in children)
        if not children:
            return size
        known[id(data)] = size
    return known[id(data)]


def _place(err: yaml.YAMLError, text: str) -> str:
    mark = getattr(err, "problem_mark", None)
    problem = getattr(err, "problem", None) or str(err)
    if mark is None:
        return f": not valid YAML: {problem}"
    line = (text.splitlines() or [""])[min(mark.line, len(text.splitlines()) - 1)] if text else ""
    if "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in problem:
        problem = "YAML does not allow tabs for indentation; use spaces"
    elif problem.endswith("found another document"):
        problem = "another document begins here; only llem apply and kubectl read several from one file"
    return f":{mark.line + 1}: {problem}"


def read_text(path: Path) -> str:
    """Read a configuration file as text; raises ConfigError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: {path.stat().st_size:,} bytes are more than {MAX_BYTES:,}; split the file")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; name the YAML file in it") from None
    except UnicodeDecodeError as err:
        raise ConfigError(f"{path}: not UTF-8 text (byte {err.start})") from None
    except OSError as err:
        raise ConfigError(f"{path}: cannot be read: {err.strerror}") from err


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML or JSON file whose root is a mapping; raises ConfigError."""
    return root_mapping(parse_yaml(read_text(path), source=str(path)), source=str(path))


def root_mapping(data: Any, *, source: str) -> dict[str, Any]:
    """Give a parsed document that is a mapping; raises ConfigError for anything else."""
    if not isinstance(data, dict):
        found = "nothing" if data is None else type(data).__name__
        raise ConfigError(f"{source}: the file must hold a mapping of keys and values, not {found}")
    return data
