"""A file that cannot be read as meant is refused in under a second, with the file, the line and the reason."""

import time
from pathlib import Path

import pytest

from llenergymeasure.core.errors import ConfigError
from llenergymeasure.core.sweep import expand
from llenergymeasure.loaders import read_document
from llenergymeasure.yaml_reading import parse_yaml, read_mapping

LIMIT_S = 1.0


def bomb(*, merge: bool) -> str:
    """Ten levels of ten aliases each: 10^10 values if written out."""
    lines = ["a0: &a0 {x: [1, 2, 3]}"]
    for i in range(1, 11):
        ten = ", ".join([f"*a{i - 1}"] * 10)
        lines.append(f"a{i}: &a{i} {{<<: [{ten}], k{i}: [{ten}]}}" if merge else f"a{i}: &a{i} [{ten}]")
    return "\n".join(lines)


# Name, text, line of the fault, words of the reason.
BAD: list[tuple[str, str, int, str]] = [
    ("syntax", "model: m\ndecoder: {temperature: 1\nn: 2\n", 3, ""),
    ("tab-indent", "model: m\ndecoder:\n\ttemperature: 1\n", 3, "tabs"),
    ("tab-first", "\tmodel: m\n", 1, "tabs"),
    ("duplicate", "model: m\nprecision: bf16\nmodel: other\n", 3, "duplicate key 'model'"),
    ("duplicate-nested", "model: m\ndecoder:\n  top_p: 1\n  top_p: 0.5\n", 4, "duplicate key 'top_p'"),
    ("duplicate-n", "model: m\nn: 1\nn: 2\n", 3, "duplicate key 'n'"),
    ("duplicate-by-value", "a:\n  8: x\n  010: y\n", 3, "duplicate key '010'"),
    ("inf", "model: m\ndecoder: {temperature: .inf}\n", 2, "not a number that JSON can hold"),
    ("minus-inf", "a: -.Inf\n", 1, "not a number that JSON can hold"),
    ("nan", "a: .nan\n", 1, "not a number that JSON can hold"),
    ("null-key", "model: m\n~: 1\n", 2, "a key must be text"),
    ("list-key", "model: m\n[a]: 1\n", 2, "a key must be text"),
    ("mapping-key", "model: m\n? {a: 1}\n: 1\n", 2, "a key must be text"),
    ("two-documents", "model: m\n---\nmodel: k\n", 2, "another document"),
    ("unknown-alias", "model: m\nn: *missing\n", 2, "undefined alias"),
    ("alias-of-itself", "model: m\na: &a [*a]\n", 2, "recursive"),
    ("python-object", "model: m\na: !!python/object/apply:os.system [id]\n", 2, "python/object"),
    ("own-tag", "a: !secret x\n", 1, "!secret"),
    ("timestamp-tag", "a: !!timestamp 2024-01-01\n", 1, "timestamp"),
    ("not-an-int", "model: m\na: !!int many\n", 2, "no int"),
    ("merge-of-a-scalar", "model: m\na: {<<: 1}\n", 2, "<< takes a mapping"),
    ("merge-that-would-replace", "b: &b {x: 1}\na: {x: 2, <<: *b}\n", 2, "<< must be the first key"),
    ("endless-number", "model: m\nn: " + "9" * 5000 + "\n", 2, "digits"),
    ("flow-nesting", "[" * 200_000, 1, "nest"),
]  # fmt: skip


def refused(folder: Path, text: str) -> tuple[str, float]:
    """The error that reading `text` raises, from behind the name of its file, and the processor time it took, s."""
    path = folder / "study.yaml"
    path.write_text(text)
    start_s = time.process_time()
    with pytest.raises(ConfigError) as caught:
        read_document(path)
    spent_s = time.process_time() - start_s
    named, _, said = str(caught.value).partition(str(path))
    assert named == ""
    return said, spent_s


@pytest.mark.parametrize(("text", "line", "words"), [r[1:] for r in BAD], ids=[r[0] for r in BAD])
def test_bad_yaml_is_refused_with_file_and_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    """The error names the file, the line of the fault and the reason, at once."""
    said, spent_s = refused(tmp_path, text)
    assert said.startswith(f":{line}: ")
    assert words in said
    assert spent_s < LIMIT_S


TOO_MUCH: list[tuple[str, str, str]] = [
    ("alias-bomb", bomb(merge=False), "aliases expand to more than 200,000 values"),
    ("merge-bomb", bomb(merge=True), "aliases expand to more than 200,000 values"),
    ("ten-megabytes", "a: " + "x" * 10_000_000, "10,000,003 bytes are more than 1,000,000"),
    ("deep", "[" * 900 + "]" * 900, "nested too deeply"),
    ("deep-blocks", "".join(" " * i + "a:\n" for i in range(900)), "nested too deeply"),
    ("control-character", "a: \x00", "not valid YAML"),
]


@pytest.mark.parametrize(("text", "words"), [r[1:] for r in TOO_MUCH], ids=[r[0] for r in TOO_MUCH])
def test_file_meant_to_exhaust_the_reader_is_refused(tmp_path: Path, text: str, words: str) -> None:
    """Bombs and giants cost neither time nor memory; the error names the file and the limit."""
    said, spent_s = refused(tmp_path, text)
    assert said.startswith(": ")
    assert words in said
    assert spent_s < LIMIT_S


ROOTS = [("list", "- a\n", "list"), ("text", "hello\n", "str"), ("number", "3\n", "int"), ("empty", "", "nothing")]


@pytest.mark.parametrize(("text", "found"), [r[1:] for r in ROOTS], ids=[r[0] for r in ROOTS])
def test_root_must_be_a_mapping(tmp_path: Path, text: str, found: str) -> None:
    """A file without keys is refused by saying what it holds instead."""
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"must hold a mapping of keys and values, not {found}"):
        read_document(path)


def test_missing_file_folder_and_binary_are_refused_by_name(tmp_path: Path) -> None:
    """What is not a readable text file is an error about the file, never a traceback."""
    binary = tmp_path / "weights.yaml"
    binary.write_bytes(b"a: \xff\xfe")
    for path, words in ((tmp_path / "none.yaml", "no such file"), (tmp_path, "is a folder"), (binary, "not UTF-8")):
        with pytest.raises(ConfigError) as caught:
            read_mapping(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert words in str(caught.value)


def test_aliases_are_legal_and_cannot_tie_two_experiments_together() -> None:
    """An alias is a copy: what one place does with it, the other does not see."""
    data = parse_yaml("a: &a {x: {z: 1}}\nb: *a\n", source="f.yaml")
    assert data == {"a": {"x": {"z": 1}}, "b": {"x": {"z": 1}}}


MILLION = {
    "one-axis": {"pytorch.batch_size": list(range(1, 1_000_001))},
    "six-axes": {
        "n": list(range(1, 11)), "random_seed": list(range(10)), "max_input_tokens": list(range(10)),
        "max_output_tokens": list(range(1, 11)), "pytorch.batch_size": list(range(1, 11)),
        "decoder.top_k": list(range(10)),
    },
}  # fmt: skip


@pytest.mark.parametrize("sweep", MILLION.values(), ids=list(MILLION))
def test_sweep_of_a_million_points_is_refused_before_it_is_made(sweep: dict[str, list[int]]) -> None:
    """A slip in a sweep costs no time and no memory; the error has the number and the limit."""
    start = time.process_time()
    with pytest.raises(ConfigError, match="1000000 combinations are more than 10000"):
        expand({"model": "m", "backend": "pytorch", "sweep": sweep})
    assert time.process_time() - start < LIMIT_S
