"""Every mistake gives one clear error at once: what, which value, what to do; right exit code, nothing left behind."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cli.process import FAST, Ended, llem, over, tree
from fakes.hub import Hub

SECRET = "hf_" + "q7Zk" * 8


@dataclass(frozen=True)
class Case:
    """A mistake: files by name (text, or a mapping laid over FAST), the words after `llem`, what must be said."""

    says: tuple[str, ...]
    files: dict[str, str | dict[str, Any]] = field(default_factory=dict)
    words: tuple[str, ...] = ("run", "c.yaml", "-o", "out")
    code: int = 2


def only(body: dict[str, Any]) -> dict[str, str]:
    """One file with this body and nothing of FAST."""
    return {"c.yaml": json.dumps(body)}


def bomb() -> str:
    """Twelve levels of ten aliases each: 10^12 values in a kilobyte."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    return "\n".join(lines)


CASES = {
    "unknown keys at every depth, all at once": Case(
        files={
            "c.yaml": {
                "modle": "x",
                "decoder": {"temprature": 1},
                "synthetic": {"bach_size": 2},
                "dataset": {"synthetic": {"imput_len": 5}},
            }
        },
        says=(
            "4 problems",
            "modle: unknown key; did you mean model?",
            "decoder.temprature: unknown key; did you mean temperature?",
            "synthetic.bach_size: unknown key; did you mean batch_size?",
            "dataset.synthetic.imput_len: unknown key; did you mean input_len?",
        ),
    ),
    "unknown keys in entries and execution": Case(
        files={"c.yaml": {"experiments": [{}, {"warmup": {"n_warmpu": 1}}], "execution": {"n_cylces": 2}}},
        says=(
            "2 problems",
            "experiments[1].warmup.n_warmpu: unknown key; did you mean n_warmup?",
            "n_cylces",
            "did you mean n_cycles?",
        ),
    ),
    "a word that resembles nothing": Case(
        files={"c.yaml": {"zzzzzzzz": 1}}, says=("1 problem", "zzzzzzzz: unknown key")
    ),
    "section of another backend": Case(
        files={"c.yaml": {"pytorch": {"batch_size": 2}}},
        says=("section pytorch", "backend is synthetic", "remove the section"),
    ),
    "section of a backend that is not in the study": Case(
        files={"c.yaml": {"vllm": {"max_num_seqs": 2}, "sweep": {"n": [1]}}}, says=("vllm", "this study runs synthetic")
    ),
    "removed field": Case(
        files={"c.yaml": {"fp_precision": "fp16", "num_input_prompts": 3, "gpus": [0]}},
        says=(
            "3 problems",
            "fp_precision: removed in 2.0; use precision",
            "num_input_prompts: removed in 2.0; use n",
            "gpus: removed",
        ),
    ),
    "scoped sweep key of an absent backend": Case(
        files={"c.yaml": {"sweep": {"vllm.max_num_seqs": [1, 2]}}},
        says=("sweep.vllm.max_num_seqs", "runs synthetic, not vllm"),
    ),
    "unknown scoped sweep key": Case(
        files={"c.yaml": {"sweep": {"synthetic.batch_siez": [1]}}},
        says=("sweep.synthetic.batch_siez", "did you mean synthetic.batch_size?"),
    ),
    "sweep key without values": Case(files={"c.yaml": {"sweep": {"n": []}}}, says=("sweep.n: has no values",)),
    "batch_size without its section": Case(
        files={"c.yaml": {"batch_size": 8}}, says=("batch_size: belongs to a backend's section", "pytorch.batch_size")
    ),
    "batch_size without its section, in a sweep": Case(
        files={"c.yaml": {"sweep": {"batch_size": [1, 8]}}}, says=("sweep.batch_size", "synthetic.batch_size")
    ),
    "every combination invalid": Case(
        files={"c.yaml": {"sweep": {"precision": ["fp99", "fp98"]}}},
        says=("all 2 combinations are invalid", "fp99", "fp98", "bf16"),
    ),
    "tab": Case(files={"c.yaml": "model: m\n\tbackend: synthetic\n"}, says=("c.yaml:2", "tabs", "use spaces")),
    "duplicate key": Case(
        files={"c.yaml": "model: a\nbackend: synthetic\nmodel: b\n"}, says=("c.yaml:3", "duplicate key 'model'")
    ),
    "syntax": Case(files={"c.yaml": "model: m\nbackend: [synthetic\n"}, says=("c.yaml:",)),
    "anchors bomb": Case(files={"c.yaml": bomb()}, says=("c.yaml", "aliases", "200,000")),
    "10 MB": Case(files={"c.yaml": "model: m\n#" + "x" * 10_000_000}, says=("10,000,010 bytes", "1,000,000")),
    "root is a list": Case(files={"c.yaml": "- model: m\n"}, says=("c.yaml", "mapping", "not list")),
    "empty file": Case(files={"c.yaml": ""}, says=("c.yaml", "mapping", "nothing")),
    "a boolean as a key": Case(files={"c.yaml": "model: m\nwarmup: {yes: 1}\n"}, says=("boolean", "quotes")),
    "million-point sweep": Case(
        files={
            "c.yaml": {
                "sweep": {"n": [*range(1, 101)], "random_seed": [*range(100)], "max_output_tokens": [*range(1, 101)]}
            }
        },
        says=("1000000 combinations", "10000"),
    ),
    "n above the dataset": Case(files={"c.yaml": {"n": 5000}}, says=("n: 5000", "builtin has 240", "lower n")),
    "n above a file": Case(
        files={"c.yaml": {"n": 3, "dataset": "p.jsonl"}, "p.jsonl": '{"prompt": "a"}\n{"prompt": "b"}\n'},
        says=("n: 3", "p.jsonl has 2"),
    ),
    "missing file": Case(words=("run", "absent.yaml", "-o", "out"), says=("absent.yaml: no such file",)),
    "folder instead of a file": Case(words=("run", ".", "-o", "out"), says=(".: is a folder",)),
    "missing dataset file": Case(files={"c.yaml": {"dataset": "gone.jsonl"}}, says=("gone.jsonl: no such file",)),
    "unknown dataset": Case(
        files={"c.yaml": {"dataset": "aienergyscoer"}},
        says=("'aienergyscoer' is unknown", "did you mean aienergyscore?", "builtin"),
    ),
    "broken dataset line": Case(
        files={"c.yaml": {"dataset": "p.jsonl"}, "p.jsonl": '{"prompt": "a"}\nprompt: b\n'},
        says=("p.jsonl:2", "not JSON"),
    ),
    "dataset without a prompt column": Case(
        files={"c.yaml": {"dataset": "p.jsonl"}, "p.jsonl": '{"prmpt": "a"}\n'},
        says=("p.jsonl:1", "prompt, text, instruction"),
    ),
    "credential by its key": Case(files={"c.yaml": {"hf_token": "abc"}}, says=("hf_token", "credential", "HF_TOKEN")),
    "credential by its value": Case(
        files={"c.yaml": {"passthrough_kwargs": {"x": [SECRET]}}},
        says=("passthrough_kwargs.x[0]", "credential", "HF_TOKEN"),
    ),
    "credential in a sweep": Case(
        files={"c.yaml": {"sweep": {"model": ["m", SECRET]}}}, says=("sweep.model[1]", "credential")
    ),
    "credential by --set": Case(
        files={"c.yaml": {}},
        words=("run", "c.yaml", "--set", f"model={SECRET}", "-o", "out"),
        says=("model", "credential"),
    ),
    "precision that the backend lacks": Case(
        files=only({"model": "m", "backend": "pytorch", "precision": "fp8"}),
        says=("precision fp8", "backend pytorch", "fp32, fp16, bf16"),
    ),
    "decoding that the backend lacks": Case(
        files=only({"model": "m", "backend": "tensorrt", "decoder": {"decoding_strategy": "beam", "num_beams": 2}}),
        says=("beam", "tensorrt", "greedy, sampling"),
    ),
    "several wrong values": Case(
        files={"c.yaml": {"n": 0, "decoder": {"top_p": 2}, "warmup": {"n_warmup": "three"}}},
        says=("n:", "decoder.top_p:", "warmup.n_warmup:", "'three'"),
    ),
    "text for a number": Case(files={"c.yaml": {"n": "8"}}, says=("n: must be a number, not '8'",)),
    "no model": Case(files=only({"backend": "synthetic"}), says=("model", "required")),
    "unknown backend": Case(
        words=("run", "-m", "m", "-b", "pytroch", "-o", "out"),
        says=("backend", "'pytroch'", "pytorch, synthetic, tensorrt, vllm"),
    ),
    "a sweep without a key": Case(
        files={"c.yaml": {"sweep": {}}}, says=("sweep: is empty", "write key: [values] below it")
    ),
    "a sweep of nothing": Case(
        files={"c.yaml": {"sweep": None}}, says=("sweep: is empty", "write key: [values] below it")
    ),
    "a namespace without a cluster": Case(
        files={"c.yaml": {}},
        words=("run", "c.yaml", "--namespace", "bench"),
        says=("--namespace bench is for a cluster", "--runner kubernetes"),
    ),
    "nothing to run": Case(words=("run", "-o", "out"), says=("nothing to run", "llem run -m builtin:smollm2-135m")),
    "unknown --set key": Case(
        files={"c.yaml": {}},
        words=("run", "c.yaml", "--set", "decoder.tpo_p=1", "-o", "out"),
        says=("decoder.tpo_p: unknown key; did you mean top_p?",),
    ),
    "--set without =": Case(
        files={"c.yaml": {}}, words=("run", "c.yaml", "--set", "n", "-o", "out"), says=("--set 'n'", "key=value")
    ),
    "unknown --order": Case(
        files={"c.yaml": {}},
        words=("run", "c.yaml", "--order", "random", "-o", "out"),
        says=("cycle_order", "'random'", "latin_square"),
    ),
    "--cycles 0": Case(
        files={"c.yaml": {}}, words=("run", "c.yaml", "--cycles", "0", "-o", "out"), says=("n_cycles", "got 0")
    ),
    "unknown --runner": Case(
        files={"c.yaml": {}},
        words=("run", "c.yaml", "--runner", "moon", "-o", "out"),
        says=("--runner", "'moon'", "local, docker"),
    ),
    "unknown flag": Case(words=("run", "--modle", "m"), says=("No such option: --modle", "--model")),
    "flag without a number": Case(words=("run", "-m", "m", "-n", "many"), says=("'-n'", "integer")),
    "unknown command": Case(words=("rnu",), says=("No such command 'rnu'",)),
    "unknown schema": Case(words=("schema", "studdy"), says=("'studdy' is unknown", "experiment, study, result")),
    "plan of a missing file": Case(words=("plan", "absent.yaml"), says=("absent.yaml: no such file",)),
    "unknown energy source": Case(
        files={"c.yaml": {"energy": {"backend": "rapl"}}}, says=("energy.backend", "'rapl'", "nvml")
    ),
    # not usage, but the machine: exit 1
    "output folder is a file": Case(
        files={"c.yaml": {}, "out": "a file"}, says=("output folder out", "is a file", "-o"), code=1
    ),
    "output below a file": Case(
        files={"c.yaml": {}, "out": "a file"},
        words=("run", "c.yaml", "-o", "out/deep/er"),
        says=("output folder out/deep/er", "-o"),
        code=1,
    ),
    "study into a file": Case(
        files={"c.yaml": {"sweep": {"n": [1]}}, "out": "a file"}, says=("output folder out", "-o"), code=1
    ),
    "backend that cannot run": Case(
        words=("run", "-m", "m", "-b", "vllm", "-o", "out"), says=("backend vllm", "pytorch, synthetic"), code=1
    ),
    "two real backends in one study": Case(
        files=only({"model": "m", "backend": ["pytorch", "vllm"], "sweep": {"precision": ["bf16"]}}),
        says=("pytorch, vllm", "container", "one study per backend"),
        code=1,
    ),
    "runner that this version lacks": Case(
        files={"c.yaml": {}},
        words=("run", "c.yaml", "--runner", "docker:img", "-o", "out"),
        says=("--runner docker:img", "--runner local"),
        code=1,
    ),
    "missing model folder": Case(
        words=("run", "-m", "./no-model", "-o", "out"), says=("./no-model", "no such folder"), code=1
    ),
    "folder without a model": Case(
        words=("run", "-m", ".", "-d", "builtin", "-o", "out"), says=("no config.json",), code=1
    ),
    "energy source that cannot measure here": Case(
        files={"c.yaml": {"energy": {"backend": "nvml"}}}, says=("energy.backend: nvml", "NVIDIA"), code=1
    ),
    "several things missing": Case(
        files=only({"model": "./no-model", "backend": "pytorch", "dataset": "builtin", "energy": {"backend": "nvml"}}),
        says=("not ready to run", "no such folder", "energy.backend: nvml"),
        code=1,
    ),
}


def must_be_clear(ended: Ended, case: Case) -> None:
    """One error, the promised words, the promised code, nothing on stdout, no traceback."""
    assert ended.code == case.code, ended.err
    assert ended.out == ""
    assert len(ended.errors) == 1, ended.err
    assert "Traceback" not in ended.err
    assert [text for text in case.says if text not in ended.err] == [], ended.err


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_mistake_gives_one_clear_error(
    tmp_path: Path, quick_llem: Callable[..., Ended], heavy_imports: Callable[[], list[str]], case: Case
) -> None:
    """The error names what is wrong; no engine is loaded for it and nothing is left in the output folder."""
    for name, content in case.files.items():
        text = content if isinstance(content, str) else json.dumps(over(FAST, content))
        (tmp_path / name).write_text(text, encoding="utf-8")
    before = tree(tmp_path)

    ended = quick_llem(*case.words)

    print(f"{ended.seconds:.2f} s")
    must_be_clear(ended, case)
    assert SECRET not in ended.err
    assert heavy_imports() == []
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        pytest.param("gated", ("acme/model", "gated", "accept its terms", "HF_TOKEN"), id="gated"),
        pytest.param("unauthorised", ("acme/model", "not found, or not readable", "HF_TOKEN"), id="401"),
        pytest.param("forbidden", ("acme/model", "HF_TOKEN"), id="403"),
        pytest.param("missing", ("acme/model", "not found", "spelling"), id="404"),
    ],
)
@pytest.mark.parametrize("study", [False, True], ids=["experiment", "study"])
def test_model_that_the_hub_refuses(
    tmp_path: Path,
    quick_llem: Callable[..., Ended],
    heavy_imports: Callable[[], list[str]],
    answer: Any,
    says: tuple[str, ...],
    study: bool,
) -> None:
    """A model that may not be read is found out before anything is loaded, with advice about the token."""
    words = ("run", "-m", "acme/model", "-d", "builtin", "-o", "out", *(("--cycles", "2") if study else ()))
    with Hub() as hub:
        hub.add("acme/model", {"config.json": b"{}"}, answer=answer)

        ended = quick_llem(*words, env=hub.environment())

    print(f"{ended.seconds:.2f} s")
    must_be_clear(ended, Case(says=says, code=1))
    assert heavy_imports() == []
    assert tree(tmp_path) == set()


def test_token_is_not_echoed_when_the_hub_refuses_it(tmp_path: Path) -> None:
    """The error about a token never shows the token."""
    with Hub() as hub:
        hub.add("acme/model", {"config.json": b"{}"}, token="another")

        ended = llem(
            "run", "-m", "acme/model", "-d", "builtin", "-v", cwd=tmp_path, env=hub.environment(HF_TOKEN=SECRET)
        )

    assert ended.code == 1
    assert "HF_TOKEN" in ended.err
    assert SECRET not in ended.err


def test_mistake_prints_no_json(tmp_path: Path) -> None:
    """With --json an error leaves stdout empty: a program sees the exit code, not half a document."""
    ended = llem("run", "-m", "m", "-p", "fp99", "--json", cwd=tmp_path)

    assert ended.out == ""
    must_be_clear(ended, Case(says=("fp99",)))
