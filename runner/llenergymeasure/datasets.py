"""Prompts: the built-in set, a JSONL file, generated token ids, or the AI Energy Score set from the hub."""

import hashlib
import importlib.util
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from llenergymeasure.core.config import BUILTIN_DATASET, DEFAULT_DATASET, ExperimentConfig
from llenergymeasure.core.contracts import Prompt
from llenergymeasure.core.errors import BackendMissingError, ConfigError
from llenergymeasure.core.keys import did_you_mean
from llenergymeasure.core.sections import SyntheticDataset, SyntheticPrompts
from llenergymeasure.models import HUB_TIMEOUT_S, hub_errors

PROMPT_COLUMNS = ("prompt", "text", "instruction", "input", "question")
AIENERGYSCORE_REPO = "AIEnergyScore/text_generation"
AIENERGYSCORE_COMMIT = "2dc92b2ee2cd9776a51ccf08c6c2ab04138370c3"
DRAWN_IDS = 2**31
"""Generated token ids lie below this; the engine maps them into its vocabulary."""


@dataclass(frozen=True)
class PromptSet:
    """The prompts of one experiment; `sha256` covers their content, `constant` says they are all equal."""

    prompts: tuple[Prompt, ...]
    sha256: str
    name: str

    @property
    def constant(self) -> bool:
        """True if there are several prompts and all are the same: not a realistic load."""
        return len(self.prompts) > 1 and len({(p.text, p.token_ids) for p in self.prompts}) == 1


def load_prompts(config: ExperimentConfig) -> PromptSet:
    """Give the first `n` prompts of an experiment's dataset.

    Raises:
        ConfigError: Unknown dataset, missing or broken file, fewer prompts than `n`.
        ModelNotFoundError, UnreachableError: The hub's set cannot be read.

    """
    dataset = config.dataset
    if isinstance(dataset, SyntheticDataset):
        return _set(_drawn(dataset.synthetic, config.n), "synthetic")
    if dataset == BUILTIN_DATASET:
        lines = resources.files("llenergymeasure.data").joinpath("prompts.jsonl").read_text(encoding="utf-8")
        found = _prompts(_records(lines, "builtin"), "builtin")
    elif dataset == DEFAULT_DATASET:
        found = _aienergyscore()
    else:
        found = _file(dataset)
    prompts = tuple(islice(found, config.n))
    if len(prompts) < config.n:
        raise ConfigError(f"n: {config.n} prompts are wanted, but dataset {dataset} has {len(prompts)}; lower n")
    return _set(prompts, dataset)


def check(config: ExperimentConfig) -> None:
    """Raise ConfigError for what can be known without a network; the hub's set is not touched."""
    if config.dataset != DEFAULT_DATASET:
        load_prompts(config)


def _set(prompts: Sequence[Prompt], name: str) -> PromptSet:
    content = json.dumps([[p.text, p.token_ids, p.max_new_tokens] for p in prompts], ensure_ascii=True)
    return PromptSet(tuple(prompts), hashlib.sha256(content.encode()).hexdigest(), name)


def _drawn(spec: SyntheticPrompts, n: int) -> list[Prompt]:
    draw = random.Random(spec.seed)  # noqa: S311  (reproducible on purpose)
    return [
        Prompt(
            token_ids=tuple(draw.randrange(DRAWN_IDS) for _ in range(spec.input_len)),
            max_new_tokens=spec.output_len,
        )
        for _ in range(spec.n or n)
    ][:n]


def _file(dataset: str) -> Iterator[Prompt]:
    path = Path(dataset).expanduser()
    if not dataset.endswith(".jsonl"):
        known = (BUILTIN_DATASET, DEFAULT_DATASET)
        raise ConfigError(
            f"dataset {dataset!r} is unknown; valid: {', '.join(known)}, a path to a .jsonl file, or "
            f"{{synthetic: {{...}}}}{did_you_mean(dataset, known)}"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"dataset {dataset}: no such file") from None
    except UnicodeDecodeError as err:
        raise ConfigError(f"dataset {dataset}: not UTF-8 text (byte {err.start})") from None
    except OSError as err:
        raise ConfigError(f"dataset {dataset}: cannot be read: {err.strerror}") from err
    return _prompts(_records(text, dataset), dataset)


def _records(text: str, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as err:
            raise ConfigError(f"dataset {name}:{number}: not JSON: {err}") from None
        if not isinstance(record, dict):
            raise ConfigError(f'dataset {name}:{number}: must be an object like {{"prompt": ...}}')
        yield number, record


def _prompts(records: Iterator[tuple[int, dict[str, Any]]], name: str) -> Iterator[Prompt]:
    for number, record in records:
        if record and all(str(k).startswith("_") for k in record):
            continue  # a note about the file
        column = next((c for c in PROMPT_COLUMNS if c in record), None)
        if column is None:
            raise ConfigError(f"dataset {name}:{number}: has none of the columns {', '.join(PROMPT_COLUMNS)}")
        text, limit = record[column], record.get("max_new_tokens")
        if not isinstance(text, str):
            raise ConfigError(f"dataset {name}:{number}: {column} must be text, not {type(text).__name__}")
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            raise ConfigError(f"dataset {name}:{number}: max_new_tokens must be a whole number >= 1, not {limit!r}")
        yield Prompt(text=text, max_new_tokens=limit)


def _aienergyscore() -> Iterator[Prompt]:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise BackendMissingError(f"dataset {DEFAULT_DATASET} needs huggingface_hub; install it or use -d builtin")
    with hub_errors(f"dataset {DEFAULT_DATASET}", advice="use -d builtin, which needs no network"):
        folder = _snapshot()
    return _prompts(_table(folder), DEFAULT_DATASET)


def _snapshot() -> Path:
    """The folder of the set. The hub is asked once first: a download asks one that is gone for 25 s, and says so."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = partial(
        snapshot_download,
        AIENERGYSCORE_REPO,
        repo_type="dataset",
        revision=AIENERGYSCORE_COMMIT,
        allow_patterns=["*.parquet", "*.jsonl", "*.csv"],
    )
    try:
        HfApi().dataset_info(AIENERGYSCORE_REPO, revision=AIENERGYSCORE_COMMIT, timeout=HUB_TIMEOUT_S)
    except Exception as err:
        if getattr(getattr(err, "response", None), "status_code", None) in (401, 403, 404):
            raise
        try:
            return Path(wanted(local_files_only=True))
        except LocalEntryNotFoundError:
            raise err from None
    return Path(wanted())


def _table(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow.csv as pc
    import pyarrow.parquet as pq

    files = sorted(p for p in folder.rglob("*") if p.suffix in (".parquet", ".jsonl", ".csv"))
    parquet = [p for p in files if p.suffix == ".parquet"]
    if not files:
        raise ConfigError(f"dataset {DEFAULT_DATASET}: its snapshot holds no table ({folder}); use -d builtin")
    for path in parquet or files:
        if path.suffix == ".jsonl":
            yield from _records(path.read_text(encoding="utf-8"), DEFAULT_DATASET)
        else:
            table = pq.read_table(path) if path.suffix == ".parquet" else pc.read_csv(path)
            yield from enumerate(table.to_pylist(), 1)
