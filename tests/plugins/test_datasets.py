"""Prompts from files, from the wheel and from a generator: which column, which records, which errors, which sum."""

import json
from pathlib import Path
from typing import Any

import pytest

from llenergymeasure import datasets
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import Prompt
from llenergymeasure.core.errors import ConfigError


def _config(dataset: Any, n: int = 1, **fields: Any) -> ExperimentConfig:
    return ExperimentConfig(model="x", dataset=dataset, n=n, **fields)


@pytest.fixture
def jsonl(tmp_path: Path) -> Any:
    """Write lines into a .jsonl file and give its path."""

    def write(*lines: Any) -> str:
        path = tmp_path / "prompts.jsonl"
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        path.write_text(text + "\n", encoding="utf-8")
        return str(path)

    return write


def _texts(config: ExperimentConfig) -> list[str | None]:
    return [p.text for p in datasets.load_prompts(config).prompts]


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"prompt": "p", "text": "t", "instruction": "i", "input": "n", "question": "q"}, "p"),
        ({"question": "q", "input": "n", "instruction": "i", "text": "t"}, "t"),
        ({"question": "q", "input": "n", "instruction": "i"}, "i"),
        ({"question": "q", "input": "n"}, "n"),
        ({"question": "q", "answer": "a"}, "q"),
    ],
    ids=["prompt", "text", "instruction", "input", "question"],
)
def test_the_first_known_column_is_the_prompt(record: dict[str, str], text: str, jsonl: Any) -> None:
    """prompt beats text beats instruction beats input beats question, whatever their order in the record."""
    assert _texts(_config(jsonl(record))) == [text]


def test_the_first_n_records_are_used_in_file_order(jsonl: Any) -> None:
    """n takes from the front; the rest of the file is not looked at."""
    path = jsonl({"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}, "this line is broken")
    assert _texts(_config(path, n=3)) == ["a", "b", "c"]


def test_notes_and_blank_lines_are_skipped(jsonl: Any) -> None:
    """Records whose keys start with an underscore are remarks about the file, not prompts."""
    path = jsonl({"_license": "CC0", "_source": "me"}, "", {"prompt": "a"}, "   ", {"_note": 1}, {"prompt": "b"})
    assert _texts(_config(path, n=2)) == ["a", "b"]


def test_a_records_output_length_comes_with_it(jsonl: Any) -> None:
    """max_new_tokens is kept per record and absent where the record has none."""
    path = jsonl({"prompt": "a", "max_new_tokens": 7}, {"prompt": "b"}, {"prompt": "c", "max_new_tokens": None})
    assert datasets.load_prompts(_config(path, n=3)).prompts == (
        Prompt(text="a", max_new_tokens=7),
        Prompt(text="b"),
        Prompt(text="c"),
    )


def test_line_separators_inside_a_prompt_stay_there(jsonl: Any) -> None:
    """Only a line feed ends a record: other characters that Python calls line ends belong to the text."""
    text = "a\u2028b\x0cc\x85d"
    path = jsonl('{"prompt": "' + "a\u2028b\x85d" + '"}', {"prompt": text})
    assert _texts(_config(path, n=2)) == ["a\u2028b\x85d", text]


@pytest.mark.parametrize(
    ("lines", "number", "said"),
    [
        pytest.param(['{"prompt": "a"}', "{broken"], 2, "not JSON", id="syntax"),
        pytest.param(['{"prompt": "a"}', "", '["a"]'], 3, "must be an object", id="list"),
        pytest.param(['{"prompt": "a"}', '{"title": "x"}'], 2, "prompt, text, instruction", id="no column"),
        pytest.param(['{"prompt": "a"}', '{"prompt": 5}'], 2, "prompt must be text, not int", id="number"),
        pytest.param(['{"prompt": "a"}', '{"prompt": null}'], 2, "must be text", id="null"),
        pytest.param(['{"prompt": "a", "max_new_tokens": 0}'], 1, "whole number >= 1, not 0", id="length 0"),
        pytest.param(['{"prompt": "a", "max_new_tokens": 1.5}'], 1, "not 1.5", id="length 1.5"),
        pytest.param(['{"prompt": "a", "max_new_tokens": true}'], 1, "not True", id="length true"),
        pytest.param(['{"prompt": "a", "max_new_tokens": "9"}'], 1, "not '9'", id="length text"),
    ],
)
def test_a_bad_record_is_named_by_its_line(lines: list[str], number: int, said: str, jsonl: Any) -> None:
    """The error has the file, the line number and what is wrong there."""
    path = jsonl(*lines)
    with pytest.raises(ConfigError) as caught:
        datasets.load_prompts(_config(path, n=5))
    assert f"{path}:{number}:" in str(caught.value)
    assert said in str(caught.value)


def test_a_file_that_is_not_utf8_is_named_with_the_byte(tmp_path: Path) -> None:
    """Another encoding is an error with its position, not a traceback."""
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"prompt": "caf\xe9"}\n')
    with pytest.raises(ConfigError, match="not UTF-8 text \\(byte 15\\)"):
        datasets.load_prompts(_config(str(path)))


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_a_file_that_cannot_be_read_is_a_config_error(kind: str, tmp_path: Path) -> None:
    """A path that is not there, or is a folder, is named."""
    path = tmp_path / "x.jsonl"
    if kind == "folder":
        path.mkdir()
    with pytest.raises(ConfigError, match=r"x\.jsonl: (no such file|cannot be read)"):
        datasets.load_prompts(_config(str(path)))


def test_a_path_may_begin_at_home(jsonl: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """~ is the user's home."""
    jsonl({"prompt": "at home"})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _texts(_config("~/prompts.jsonl")) == ["at home"]


def test_too_large_an_n_names_both_numbers(jsonl: Any) -> None:
    """The error says how many are wanted and how many there are, notes not counted."""
    path = jsonl({"_note": "x"}, {"prompt": "a"}, {"prompt": "b"})
    with pytest.raises(ConfigError, match=r"n: 5 prompts are wanted, but .* has 2; lower n"):
        datasets.load_prompts(_config(path, n=5))


def test_an_empty_file_has_no_prompts(jsonl: Any) -> None:
    """A file without records cannot fill even one."""
    with pytest.raises(ConfigError, match="has 0"):
        datasets.load_prompts(_config(jsonl("")))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        pytest.param("biultin", "did you mean builtin?", id="slip of the pen"),
        pytest.param("aienergyscor", "did you mean aienergyscore?", id="letter lost"),
        pytest.param("prompts.csv", "a path to a .jsonl file", id="other format"),
    ],
)
def test_an_unknown_dataset_lists_the_known_ones(name: str, advice: str) -> None:
    """Name, valid values, and the nearest one."""
    with pytest.raises(ConfigError) as caught:
        datasets.check(_config(name))
    assert advice in str(caught.value)
    assert repr(name) in str(caught.value)
    assert "builtin, aienergyscore" in str(caught.value)


def test_the_sum_follows_the_content(jsonl: Any) -> None:
    """The recorded SHA-256 depends on the prompts used and their lengths: not on file name, notes or unused ones."""

    def sha(*lines: Any, n: int = 1) -> str:
        return datasets.load_prompts(_config(jsonl(*lines), n=n)).sha256

    first = sha({"prompt": "a"})
    assert len(first) == 64
    assert sha({"_note": 1}, {"text": "a"}, {"prompt": "unused"}) == first
    others = [
        sha({"prompt": "b"}),
        sha({"prompt": "a", "max_new_tokens": 3}),
        sha({"prompt": "a"}, {"prompt": "b"}, n=2),
        sha({"prompt": "b"}, {"prompt": "a"}, n=2),
    ]
    assert len({first, *others}) == 5


@pytest.mark.parametrize(
    ("texts", "constant"),
    [(["a", "a", "a"], True), (["a", "b", "a"], False), (["a"], False)],
    ids=["all equal", "one differs", "a single one"],
)
def test_constant_prompts_are_recognised(texts: list[str], constant: bool, jsonl: Any) -> None:
    """Several prompts that are all the same are no realistic load."""
    found = datasets.load_prompts(_config(jsonl(*({"prompt": t} for t in texts)), n=len(texts)))
    assert found.constant is constant


def test_the_builtin_set_is_large_and_varied() -> None:
    """At least 200 different prompts come with the wheel, and need no network."""
    prompts = datasets.load_prompts(_config("builtin", n=200)).prompts
    assert len({p.text for p in prompts}) == 200


@pytest.mark.model
def test_builtin_prompts_are_20_to_500_tokens_long(shared_model_cache: Path) -> None:
    """Counted by SmolLM2's own tokeniser, every prompt is within the promised lengths, and they differ."""
    from transformers import AutoTokenizer

    from llenergymeasure import models

    folder = models.resolve("builtin:smollm2-135m", None, cache=shared_model_cache).path
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    prompts = datasets.load_prompts(_config("builtin", n=200)).prompts
    lengths = [len(tokenizer(p.text)["input_ids"]) for p in prompts]
    assert 20 <= min(lengths) <= max(lengths) <= 500
    assert len(set(lengths)) > 50


@pytest.mark.parametrize(("input_len", "output_len", "n"), [(1, 1, 1), (512, 128, 3), (17, 5, 8)])
def test_drawn_prompts_have_exact_lengths(input_len: int, output_len: int, n: int) -> None:
    """Every generated prompt has the asked number of token ids and its own output length; no two are alike."""
    dataset = {"synthetic": {"input_len": input_len, "output_len": output_len}}
    prompts = datasets.load_prompts(_config(dataset, n=n)).prompts
    assert [(len(p.token_ids or ()), p.max_new_tokens, p.text) for p in prompts] == [(input_len, output_len, None)] * n
    assert len({p.token_ids for p in prompts}) == n


def test_drawn_prompts_depend_on_their_seed_only() -> None:
    """The same seed draws the same ids, whatever else differs; another seed draws others; fewer are a prefix."""

    def drawn(seed: int, n: int = 3, **fields: Any) -> Any:
        return datasets.load_prompts(_config({"synthetic": {"input_len": 9, "seed": seed}}, n=n, **fields))

    assert drawn(1) == drawn(1, random_seed=7)
    assert drawn(1).sha256 != drawn(2).sha256
    assert drawn(1, n=2).prompts == drawn(1).prompts[:2]


def test_its_own_n_may_draw_more_than_are_used() -> None:
    """synthetic.n above n draws more, and the first n are used."""
    few = datasets.load_prompts(_config({"synthetic": {"input_len": 4}}, n=2))
    many = datasets.load_prompts(_config({"synthetic": {"input_len": 4, "n": 50}}, n=2))
    assert few.prompts == many.prompts
