"""A pretended engine with known truth: work takes exactly the time its settings say, tokens come from SHA-256.

For tests of everything around an engine and for first steps on a cluster; its results carry `synthetic: true`.
"""

import hashlib
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from llenergymeasure.core.contracts import Clock, Finished, Generation, ModelFacts, Prompt, Request, Weights
from llenergymeasure.core.errors import BackendError, LLEMError
from llenergymeasure.core.sections import Float, Int, Part

if TYPE_CHECKING:
    from llenergymeasure.core.config import ExperimentConfig

NAME = "synthetic"
PRECISIONS = ("fp32", "fp16", "bf16", "fp8", "int8", "int4")
DECODING = ("greedy", "sampling", "beam")
BATCH_SIZE_KEY = "batch_size"
REAL = False
NEEDS_WEIGHTS = False
INSTALL_HINT = ""
VOCABULARY = 32_000
DEFAULT_SEQS = 8


class Settings(Part):
    """How long the pretended work takes."""

    batching: Literal["static", "continuous"] | None = Field(
        None,
        description="static: whole batches, one after the other; continuous: a request starts as soon as another "
        "ends. Unset: static.",
    )
    batch_size: Int | None = Field(None, ge=1, description="Requests per batch; unset: 1.")
    max_num_seqs: Int | None = Field(
        None, ge=1, le=4096, description="Requests that run at once with batching: continuous; unset: 8."
    )
    batch_overhead_ms: Float = Field(1.0, ge=0, description="Fixed time of a batch, ms.")
    prefill_ms_per_token: Float = Field(0.01, ge=0, description="Time of each prompt token in a batch, ms.")
    decode_ms_per_step: Float = Field(0.5, ge=0, description="Time of each decode step of a batch, ms.")
    fail_after_batches: Int | None = Field(
        None,
        ge=0,
        description="Fail like a crashed engine after this many batches, to test failure handling.",
    )


def gpu_count(_section: BaseModel | None) -> int:
    """No GPU."""
    return 0


def continuous(section: BaseModel | None) -> bool:
    """As the settings say."""
    return isinstance(section, Settings) and section.batching == "continuous"


def completed(section: Settings, *, precision: str, lora: bool) -> Settings:
    """Fill in the default batch size, so that leaving it out says what writing it says."""
    del precision, lora
    return section.model_copy(update={"batch_size": 1}) if section.batch_size is None else section


def installed() -> bool:
    """Always there."""
    return True


@dataclass
class _Running:
    """A request in the running batch and how far it is."""

    request: Request
    started_s: float
    first_token_s: float | None = None
    done: int = 0


class Engine:
    """The pretended engine; see the module's docstring."""

    NAME: ClassVar[str] = NAME

    def __init__(self, clock: Clock | None = None) -> None:
        self._given_clock = clock
        self._queue: deque[Request] = deque()
        self._batch: list[_Running] = []
        self._decoded = 0
        self._settings = Settings()
        self._seed = 0
        self._done = 0

    def check(self, config: "ExperimentConfig") -> list[LLEMError]:
        """Nothing can be missing."""
        del config
        return []

    def load(self, config: "ExperimentConfig", weights: Weights) -> ModelFacts:
        """Take the settings; there is no model."""
        assert isinstance(config.section, Settings)
        self._settings = config.section
        self._seed = config.random_seed
        self._name = weights.name
        return ModelFacts(parameters=None, embedding_parameters=None, dtype=config.precision)

    def seed(self, value: int) -> None:
        """Tokens depend on this seed and the request only."""
        self._seed = value

    def tokenise(self, prompts: Sequence[Prompt], *, max_input_tokens: int) -> list[tuple[int, ...]]:
        """One token per word, its id from the word's hash."""
        limit = max_input_tokens or None
        return [(p.token_ids or tuple(_token(w) for w in (p.text or "").split()))[:limit] for p in prompts]

    def batches(self, requests: Sequence[Request]) -> list[tuple[Request, ...]]:
        """Full batches, reading the requests in a circle."""
        size = self._settings.batch_size or 1
        count = -(-len(requests) // size)
        return [tuple(requests[(b * size + i) % len(requests)] for i in range(size)) for b in range(count)]

    def generate(self, batch: Sequence[Request]) -> Generation:
        """Sleep for the time that the settings say, then give tokens that depend on seed and request only."""
        s = self._settings
        if s.fail_after_batches is not None and self._done >= s.fail_after_batches:
            raise BackendError(f"synthetic engine failed after {self._done} batches, as fail_after_batches asks")
        self._done += 1
        start_s = self._clock.monotonic()
        prefill_ms = s.prefill_ms_per_token * sum(len(r.token_ids) for r in batch)
        decode_ms = s.decode_ms_per_step * max(r.max_new_tokens for r in batch)
        end_s = start_s + (s.batch_overhead_ms + prefill_ms + decode_ms) / 1e3
        self._wait_until(end_s)
        tokens = tuple(self._tokens(r) for r in batch)
        first_s = start_s + (s.batch_overhead_ms + prefill_ms + s.decode_ms_per_step) / 1e3
        return Generation(tuple(batch), tokens, start_s, self._clock.monotonic(), first_s)

    def generate_timed(self, batch: Sequence[Request]) -> Generation:
        """The same: its script tells when the first step ends."""
        return self.generate(batch)

    def capacity(self) -> int:
        """As many as the settings say."""
        return self._settings.max_num_seqs or DEFAULT_SEQS

    def submit(self, request: Request) -> None:
        """Put it at the end of the queue."""
        self._queue.append(request)

    def step(self) -> list[Finished]:
        """Admit what fits, prefill it, decode one token of everything that runs."""
        start_s, s = self._clock.monotonic(), self._settings
        if s.fail_after_batches is not None and self._done >= s.fail_after_batches:
            raise BackendError(f"synthetic engine failed after {self._done} steps, as fail_after_batches asks")
        self._done += 1
        admitted = []
        while self._queue and len(self._batch) < self.capacity():
            admitted.append(_Running(self._queue.popleft(), start_s))
            self._batch.append(admitted[-1])
        if not self._batch:
            return []
        prefill_ms = s.prefill_ms_per_token * sum(len(r.request.token_ids) for r in admitted)
        self._wait_until(start_s + (prefill_ms + s.decode_ms_per_step) / 1e3)
        return self._count(self._clock.monotonic())

    def _count(self, now_s: float) -> list[Finished]:
        """Give everything that runs its token; take out what has its last."""
        self._decoded += len(self._batch)
        for each in self._batch:
            each.done += 1
            each.first_token_s = now_s if each.first_token_s is None else each.first_token_s
        ended = [r for r in self._batch if r.done >= r.request.max_new_tokens]
        self._batch = [r for r in self._batch if r.done < r.request.max_new_tokens]
        return [
            Finished(r.request, self._tokens(r.request), r.started_s, r.first_token_s or now_s, now_s) for r in ended
        ]

    def running(self) -> int:
        """Requests in the batch."""
        return len(self._batch)

    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def decoded(self) -> int | None:
        """As its script counts them."""
        return self._decoded

    def preemptions(self) -> int:
        """None: its memory is pretended, too."""
        return 0

    @property
    def _clock(self) -> Clock:
        return self._given_clock or time

    def _wait_until(self, end_s: float) -> None:
        while (left := end_s - self._clock.monotonic()) > 0:
            self._clock.sleep(left)

    def _tokens(self, request: Request) -> tuple[int, ...]:
        return tuple(_token(f"{self._seed}/{request.index}/{i}") for i in range(request.max_new_tokens))

    def detokenise(self, token_ids: Sequence[int]) -> str:
        """Token ids as text."""
        return " ".join(f"<{i}>" for i in token_ids)

    def memory_peak_mb(self) -> float | None:
        """No device."""
        return None

    def reset_memory_peak(self) -> None:
        """No device."""

    def effective(self) -> dict[str, Any]:
        """The settings in force."""
        return {**self._settings.model_dump(), "batch_size": self._settings.batch_size or 1}

    def version(self) -> str:
        """Version of the pretended engine."""
        return "1"

    def close(self) -> None:
        """Nothing to free."""


def _token(word: str) -> int:
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") % VOCABULARY
