"""Keys of a file before any value is looked at: unknown, removed, misplaced; credentials; suggestions."""

from typing import Any

import pytest

from llenergymeasure.core import keys
from llenergymeasure.core.errors import ConfigError
from llenergymeasure.core.sweep import expand

REMOVED = [  # requirements §2
    "model_name", "fp_precision", "num_input_prompts", "extra", "schedule", "io", "query_rate", "streaming",
    "save_outputs", "config_name", "gpus", "min_output_tokens",
]  # fmt: skip


def problems(body: dict[str, Any]) -> list[str]:
    return [*keys.experiment_problems(body), *keys.credential_problems(body)]


@pytest.mark.parametrize("name", REMOVED)
def test_removed_name_is_refused_with_a_hint(name: str) -> None:
    """A user of an older file learns what to write instead."""
    (problem,) = problems({"model": "m", name: "x"})
    assert problem.startswith(f"{name}: removed in 2.0; ")
    assert len(problem) > len(f"{name}: removed in 2.0; ") + 4


SUGGESTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("top", {"presicion": "bf16"}, "presicion: unknown key; did you mean precision?"),
    ("case", {"Precision": "bf16"}, "Precision: unknown key; did you mean precision?"),
    ("nested", {"decoder": {"temprature": 1}}, "decoder.temprature: unknown key; did you mean temperature?"),
    ("section", {"pytorch": {"batchsize": 1}}, "pytorch.batchsize: unknown key; did you mean batch_size?"),
    ("deep", {"dataset": {"synthetic": {"seeds": 1}}}, "dataset.synthetic.seeds: unknown key; did you mean seed?"),
    ("deeper", {"traffic": {"goodput": {"ttft_s": 1}}}, "traffic.goodput.ttft_s: unknown key; did you mean ttft_ms?"),
    ("energy", {"energy": {"simulated": {"tick_m": 1}}}, "energy.simulated.tick_m: unknown key; did you mean tick_ms?"),
    ("nothing-near", {"zzzzzzzz": 1}, "zzzzzzzz: unknown key"),
    ("unscoped", {"batch_size": 8}, "batch_size: belongs to a backend's section; write pytorch.batch_size or "),
    ("unscoped-vllm", {"max_num_seqs": 8}, "max_num_seqs: belongs to a backend's section; write synthetic.max_num_seqs or vllm.max_num_seqs"),
    ("study-key", {"sweep": {}}, "sweep: belongs to a study"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), [r[1:] for r in SUGGESTIONS], ids=[r[0] for r in SUGGESTIONS])
def test_unknown_key_is_named_with_its_path_and_the_nearest_known_one(body: dict[str, Any], expected: str) -> None:
    """The error says where the key is and, if one is near, what was meant."""
    (problem,) = problems({"model": "m", **body})
    assert problem.startswith(expected)
    assert ("did you mean" in problem) == ("did you mean" in expected)


def test_all_wrong_keys_of_a_study_are_reported_at_once() -> None:
    """One run of the command shows every wrong key, wherever it is written."""
    body = {
        "model": "m", "backend": ["pytorch", "vllm"], "presicion": "bf16", "model_name": "old",
        "decoder": {"temprature": 1, "topp": 1}, "pytorch": {"batchsize": 1},
        "sweep": {"pytorch.batchsize": [1], "max_num_seqs": [1], "tensorrt.max_batch_size": [1]},
        "experiments": [{"backend": "vllm", "vllm": {"blocksize": 1}}],
        "execution": {"cycles": 3}, "runners": {"vlm": "docker"}, "images": {"pytorhc": "x"},
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        expand(body, source="study.yaml")
    message = str(caught.value)
    assert message.startswith("study.yaml: 12 problems\n  - ")
    for name in (
        "presicion", "model_name", "decoder.temprature", "decoder.topp", "pytorch.batchsize", "sweep.pytorch.batchsize",
        "sweep.max_num_seqs", "sweep.tensorrt.max_batch_size", "experiments[0].vllm.blocksize", "execution.cycles",
        "runners.vlm", "images.pytorhc",
    ):  # fmt: skip
        assert f"\n  - {name}: " in message


def test_known_keys_raise_nothing() -> None:
    """A file without a wrong key has no problem, in any backend's section."""
    body = {
        "version": 2, "model": "m", "revision": "main", "n": 1, "dataset": {"synthetic": {"seed": 1}},
        "pytorch": {"batch_size": 1, "max_memory": {"0": "1GiB"}}, "passthrough_kwargs": {"anything": {"goes": 1}},
        "tensorrt": {"kv_cache_config": {"enable_block_reuse": True, "free_gpu_memory_fraction": 0.8}},
    }  # fmt: skip
    assert problems(body) == []


def test_boolean_key_is_reported_not_crashed_on() -> None:
    """A key that YAML made a boolean is one more line of the list."""
    (problem,) = problems({"model": "m", "decoder": {False: 1}})
    assert "quotes" in problem


DISTANCES = [
    ("", "", 0),
    ("abc", "abc", 0),
    ("abc", "abd", 1),
    ("kitten", "sitting", 3),
    ("", "abc", 3),
    ("ab", "ba", 2),
]


@pytest.mark.parametrize(("a", "b", "distance"), DISTANCES)
def test_edit_distance_is_levenshteins(a: str, b: str, distance: int) -> None:
    """Suggestions rest on the textbook distance."""
    assert keys.edit_distance(a, b) == keys.edit_distance(b, a) == distance


def test_suggestion_stops_at_distance_three() -> None:
    """A far-fetched suggestion is worse than none."""
    assert keys.did_you_mean("temperaabc", ["temperature"]) == ""
    assert keys.did_you_mean("temperatabc", ["temperature"]) == "; did you mean temperature?"


SECRET = "s3cr3t-v4lue-that-nobody-may-see"
HUB_TOKEN = "hf_" + "a1B2" * 8
CREDENTIALS: list[tuple[str, dict[str, Any], str]] = [
    ("token", {"passthrough_kwargs": {"token": SECRET}}, "passthrough_kwargs.token"),
    ("hf-token", {"hf_token": SECRET}, "hf_token"),
    ("upper-case", {"HF_TOKEN": SECRET}, "HF_TOKEN"),
    ("use-auth-token", {"passthrough_kwargs": {"use_auth_token": SECRET}}, "use_auth_token"),
    ("api-key", {"passthrough_kwargs": {"openai_api_key": SECRET}}, "openai_api_key"),
    ("camel-case", {"passthrough_kwargs": {"apiKey": SECRET}}, "apiKey"),
    ("password", {"passthrough_kwargs": {"db": {"password": SECRET}}}, "db.password"),
    ("secret", {"passthrough_kwargs": {"client_secret": SECRET}}, "client_secret"),
    ("secret-key", {"passthrough_kwargs": {"aws_secret_access_key": SECRET}}, "aws_secret_access_key"),
    ("value-hub", {"model": HUB_TOKEN}, "model"),
    ("value-in-list", {"passthrough_kwargs": {"a": ["x", HUB_TOKEN]}}, "passthrough_kwargs.a[1]"),
    ("value-github", {"revision": "ghp_" + "x" * 36}, "revision"),
    ("value-openai", {"revision": "sk-" + "x" * 40}, "revision"),
    ("value-aws", {"revision": "AKIA" + "Q" * 16}, "revision"),
    ("value-key-file", {"revision": "-----BEGIN RSA PRIVATE KEY-----\nabc"}, "revision"),
    ("value-url", {"dataset": "https://user:" + SECRET + "@host/x.jsonl"}, "dataset"),
]


@pytest.mark.parametrize(("body", "where"), [r[1:] for r in CREDENTIALS], ids=[r[0] for r in CREDENTIALS])
def test_credential_is_refused_by_place_and_never_repeated(body: dict[str, Any], where: str) -> None:
    """A secret in a file is an error that points to the environment and does not put the secret into a log."""
    found = keys.credential_problems({"model": "m", **body})
    assert len(found) == 1
    assert where in found[0]
    assert "environment" in found[0]
    secrets = [SECRET, HUB_TOKEN, "x" * 36, "Q" * 16, "abc"]
    assert not any(s in found[0] for s in secrets)


def test_credential_in_a_study_stops_it_without_being_echoed() -> None:
    """The check covers sweeps and entries, and the whole error message is free of the secret."""
    body = {
        "model": "m", "backend": "pytorch", "sweep": {"revision": ["main", HUB_TOKEN]},
        "experiments": [{"passthrough_kwargs": {"token": SECRET}}],
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        expand(body)
    assert "sweep.revision[1]" in str(caught.value)
    assert "experiments[0].passthrough_kwargs.token" in str(caught.value)
    assert HUB_TOKEN not in str(caught.value)
    assert SECRET not in str(caught.value)


HARMLESS: list[tuple[str, dict[str, Any]]] = [
    ("eos", {"passthrough_kwargs": {"eos_token": "</s>", "pad_token": "<pad>", "bos_token_id": 1}}),
    ("batched-tokens", {"vllm": {"max_num_batched_tokens": 8192}}),
    ("lengths", {"max_input_tokens": 1, "max_output_tokens": 2}),
    ("lookup", {"pytorch": {"prompt_lookup_num_tokens": 3}}),
    ("tokenizer", {"passthrough_kwargs": {"tokenizer": "org/name", "tokenizer_mode": "auto", "skip_tokens": "x"}}),
    ("short-hf", {"model": "hf_internal/tiny"}),
    ("url", {"dataset": "https://host/path/x.jsonl"}),
    ("empty-token", {"passthrough_kwargs": {"token": ""}}),
    ("sk-name", {"model": "sk-learn/model"}),
]


@pytest.mark.parametrize("body", [r[1] for r in HARMLESS], ids=[r[0] for r in HARMLESS])
def test_honest_setting_is_no_credential(body: dict[str, Any]) -> None:
    """Words that merely contain `token` or `key` are not refused."""
    assert keys.credential_problems({"model": "m", **body}) == []
