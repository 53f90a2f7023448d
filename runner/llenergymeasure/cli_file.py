"""What a command line says of the work: its options, and the file or model with them laid over it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llenergymeasure.core.errors import ConfigError

if TYPE_CHECKING:
    from llenergymeasure.core.config import ExperimentConfig, StudyConfig
    from llenergymeasure.loaders import Document

ConfigArgument = Annotated[
    Path | None, typer.Argument(help="Experiment or study file (YAML), or a manifest.", show_default=False)
]
ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="Model: hub id, folder, or builtin:smollm2-135m.")
]
RevisionOption = Annotated[str | None, typer.Option("--revision", help="Hub revision of the model.")]
BackendOption = Annotated[str | None, typer.Option("--backend", "-b", help="Inference engine.")]
DatasetOption = Annotated[str | None, typer.Option("--dataset", "-d", help="aienergyscore, builtin, or a .jsonl file.")]
CountOption = Annotated[int | None, typer.Option("-n", help="Number of prompts.")]
BatchOption = Annotated[int | None, typer.Option("--batch-size", help="The backend's own batch parameter.")]
PrecisionOption = Annotated[str | None, typer.Option("--precision", "-p", help="fp32, fp16, bf16, fp8, int8 or int4.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="key=value for any field, e.g. decoder.top_p=0.9.")]
CyclesOption = Annotated[int | None, typer.Option("--cycles", help="Repetitions of the whole set.")]
OrderOption = Annotated[str | None, typer.Option("--order", help="sequential, interleaved, shuffled or latin_square.")]


@dataclass(frozen=True)
class Said:
    """What stands on the command line beside the file; None where it says nothing."""

    model: str | None = None
    revision: str | None = None
    dataset: str | None = None
    n: int | None = None
    precision: str | None = None
    backend: str | None = None
    batch_size: int | None = None
    cycles: int | None = None
    order: str | None = None
    assignments: tuple[str, ...] = ()

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of the configuration that have a flag of their own, but the backend's."""
        names = ("model", "revision", "dataset", "n", "precision")
        return {name: v for name in names if (v := getattr(self, name)) is not None}

    @property
    def execution(self) -> dict[str, Any]:
        """How a study repeats its runs."""
        found = {"execution.n_cycles": self.cycles, "execution.cycle_order": self.order}
        return {k: v for k, v in found.items() if v is not None}

    @property
    def anything(self) -> bool:
        """Whether it changes the work; cycles may also be added to a study that is gone on with."""
        return any((*self.fields.values(), self.backend, self.batch_size, self.order, self.assignments))


def document(path: Path | None, said: Said) -> "Document":
    """The file with the command line laid over it.

    Raises:
        ConfigError: There is neither a file nor a model, or one of them is wrong.

    """
    from llenergymeasure.loaders import Document, apply_overrides, parse_set, read_document

    if path is None and said.model is None:
        raise ConfigError(
            "nothing to run: name a file (llem run study.yaml) or a model (llem run -m builtin:smollm2-135m)"
        )
    read = read_document(path) if path is not None else Document({}, study=False, source="command line")
    overrides = said.fields
    if said.backend is not None:
        overrides["backend"] = said.backend
    overrides |= _batch_sizes(read, said) | parse_set(list(said.assignments))
    if said.execution and not read.study:  # repetitions make a study of one
        body = {**read.body, "experiments": [{}]}
        read = Document(body, study=True, source=read.source, notices=read.notices)
    return apply_overrides(read, overrides | said.execution)


def _batch_sizes(document: "Document", said: Said) -> dict[str, int]:
    """The batch size under the name that each backend of the file has for it."""
    from llenergymeasure.core.config import ExperimentConfig
    from llenergymeasure.core.registry import backend_names, batch_size_key

    if said.batch_size is None:
        return {}
    swept = {str(k).partition(".")[0] for k in document.body.get("sweep") or ()}
    implied = [b for b in backend_names() if b in swept]
    default = ExperimentConfig.model_fields["backend"].default
    written = said.backend or document.body.get("backend") or implied or default
    names = written if isinstance(written, list) else [written]
    keys = {name: batch_size_key(name) if name in backend_names() else None for name in names}
    return {f"{name}.{key}": said.batch_size for name, key in keys.items() if key is not None}


def target(document: "Document", runner: str | None) -> "ExperimentConfig | StudyConfig":
    """The configuration that a document means.

    Raises:
        ConfigError: The document or the runner is wrong.
        PreFlightError: This version has no such runner.

    """
    from llenergymeasure.core.config import check_runner
    from llenergymeasure.core.errors import BackendMissingError, PreFlightError
    from llenergymeasure.loaders import experiment_from, study_from

    if runner is not None:
        try:
            check_runner(runner)
        except ValueError as err:
            raise ConfigError(f"--runner: {err}") from None
        if runner not in ("local", "auto"):
            text = f"--runner {runner}: this version starts no containers; use --runner local or kubernetes"
            raise PreFlightError([BackendMissingError(text)])
    return study_from(document) if document.study else experiment_from(document)
