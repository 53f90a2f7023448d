"""`llem compare A B`: whether B is better, by how much and how sure, from the files of real studies."""

import json
from pathlib import Path

import pytest

from cli.process import Ended, llem, write

SIMULATED = {
    "energy": {"backend": "simulated", "simulated": {"load_power_w": 300, "idle_power_w": 80}},
    "measurement": {"min_duration_seconds": 5.5},
    "baseline": {"enabled": False},
    "synthetic": {"batch_overhead_ms": 50},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two batch sizes in two cycles, with pretended joules of known truth."""
    where = tmp_path_factory.mktemp("compare")
    body = {
        **SIMULATED,
        "n": 8,
        "sweep": {"synthetic.batch_size": [1, 8]},
        "execution": {"n_cycles": 2, "cycle_order": "interleaved"},
    }
    ended = llem("run", write(where, body), "-q", cwd=where)
    assert ended.code == 0, ended.err
    (folder,) = (where / "results").iterdir()
    return folder


def hashes(study: Path) -> dict[int, str]:
    """Hash of each configuration by its batch size."""
    found = {}
    for path in study.glob("runs/*/config.json"):
        found[json.loads(path.read_text())["synthetic"]["batch_size"]] = path.parent.name[-8:]
    return found


def compared(study: Path, a: str, b: str, *flags: str) -> Ended:
    """The comparison of two configurations of the study."""
    return llem("compare", f"{study}#{a}", f"{study}#{b}", *flags, cwd=study.parent)


def test_first_sentence_answers(study: Path) -> None:
    """Less energy per token, by how much, with its interval and the cycles on each side; turned round it is more."""
    by_batch = hashes(study)

    better, worse = compared(study, by_batch[1], by_batch[8]), compared(study, by_batch[8], by_batch[1])

    assert better.code == worse.code == 0, better.err
    assert better.out.startswith("B needs ")
    first = better.out.splitlines()[0]
    assert "fewer joules per output token than A" in first
    assert "95 % interval" in first
    assert "2 cycles each" in first
    assert "more joules per output token than A" in worse.out.splitlines()[0]


def test_ratio_is_that_of_the_results(study: Path) -> None:
    """The ratio is the geometric mean of the cycles' ratios, as the files give it; A pretended study says so."""
    by_batch = hashes(study)
    energy = {
        (path.parent.name[-8:], path.parent.name.split("_")[1]): json.loads(path.read_text())[
            "energy_per_output_token_j"
        ]
        for path in study.glob("runs/*/result.json")
    }
    product = 1.0
    for cycle in ("c1", "c2"):
        product *= energy[by_batch[8], cycle] / energy[by_batch[1], cycle]

    ended = compared(study, by_batch[1], by_batch[8])

    (line,) = [row for row in ended.out.splitlines() if row.startswith("J/output token")]
    assert float(line.split()[4]) == pytest.approx(product**0.5, rel=1e-3)
    assert "pretended" in ended.out


def test_one_study_twice_asks_which_configurations(study: Path) -> None:
    """Without hashes nothing is guessed: the error lists them."""
    ended = llem("compare", study, study, cwd=study.parent)

    assert ended.code != 0
    assert all(digest in ended.err for digest in hashes(study).values())
