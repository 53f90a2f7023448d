"""Shows a study's progress on stderr: a bar on a terminal, a line per run elsewhere."""

import sys
from typing import Any

from tqdm import tqdm

from llenergymeasure.core.plan import Run
from llenergymeasure.core.result import ExperimentResult
from llenergymeasure.ranking import marked
from llenergymeasure.study_runner import Observer
from llenergymeasure.wording import counted, duration_text, number

LONG_S = 300.0  # above this, -v says what a shorter run would take


class Progress(Observer):
    """An observer of a study that draws; `verbose` also writes every event."""

    def __init__(self, total: int = 0, *, quiet: bool = False, verbose: bool = False) -> None:
        self._quiet, self._verbose = quiet, verbose
        self._finished, self._total = 0, total
        self._phase_share = 0.0
        on_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            disable=quiet or not on_terminal,
            file=sys.stderr,
            bar_format="{l_bar}{bar}| {n:.1f}/{total} [{elapsed}<{remaining}{postfix}]",
            leave=False,
            dynamic_ncols=True,
        )

    def planned(self, done: int, total: int, pauses_s: float) -> None:
        """Say what lies ahead: runs that are done already, all runs, and how long the pauses take."""
        self._finished, self._total = done, total
        self._bar.total, self._bar.n = total, done
        if done:
            self.note(f"{done} of {counted(total, 'run')} done before; {total - done} left")
        if pauses_s:
            self.note(f"pauses add {duration_text(pauses_s)}; --no-gaps leaves them out")

    def run_started(self, run: Run, summary: str, total: int) -> None:
        """Name the run that begins."""
        self._bar.set_postfix_str("", refresh=False)
        self._bar.set_description_str(summary, refresh=True)
        if total > 1:
            self._say(f"[{self._finished + 1}/{total}] {summary} (cycle {run.cycle})", only_plain=True)

    def event(self, event: dict[str, Any]) -> None:
        """Move the bar by phases and name the one that runs; an error is told when its run has finished."""
        if event.get("event") == "phase" and event.get("total"):
            self._phase_share = event["done"] / event["total"]
        self._bar.n = min(self._total, self._finished + self._phase_share)
        if event.get("phase"):
            self._bar.set_postfix_str(str(event["phase"]), refresh=False)
        self._bar.refresh()
        if event.get("event") == "expected":
            self._say_expected(float(event["seconds"]), event.get("n20_seconds"))
        elif event.get("event") == "warning":
            self.note(str(event.get("message")))
        elif self._verbose and "done" in event:
            self._say(f"  {event.get('t_s', 0):8.2f} s  {event.get('phase')} {event['done']}/{event.get('total')}")

    def _say_expected(self, seconds: float, n20_seconds: float | None) -> None:
        if self._verbose:
            hint = f"; with -n 20 about {duration_text(n20_seconds)}" if n20_seconds and seconds > LONG_S else ""
            self._say(f"  the window ends in about {duration_text(seconds)}{hint}")

    def run_finished(self, run: Run, summary: str, result: ExperimentResult | None, error: str | None) -> None:
        """Say what came of a run."""
        self._finished, self._phase_share = self._finished + 1, 0.0
        self._bar.n = self._finished
        self._bar.refresh()
        if result is not None:
            speed = f"{number(result.tokens_per_second)} tokens/s"
            energy = result.energy_per_output_token_j
            shown = f", {number(energy)} J/token" if energy is not None else ""
            verdict = marked(result.verdict.state, synthetic=result.synthetic)
            self._say(f"  {summary}: {speed}{shown}, {verdict}")
        else:
            self._say(f"  {summary}: FAILED: {error}")

    def waiting(self, seconds: float) -> None:
        """Name a gap."""
        self._say(f"  pause of {duration_text(seconds)}", only_plain=True)

    def remaining(self, seconds: float) -> None:
        """Count a gap down."""
        hint = " (Enter goes on)" if sys.stdin and sys.stdin.isatty() else ""
        self._bar.set_postfix_str("", refresh=False)
        self._bar.set_description_str(f"pause, {seconds:.0f} s left{hint}", refresh=True)

    def note(self, text: str) -> None:
        """Say something that the user should know."""
        self._say(f"note: {text}")

    def _say(self, text: str, *, only_plain: bool = False) -> None:
        """Write a line; `only_plain` lines are not needed where a bar shows the same."""
        if not (self._quiet or (only_plain and not self._bar.disable)):
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()
