"""The page that a person sends to a colleague: complete, alone, escaped, in one order with the terminal's table."""

import itertools
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from llenergymeasure import report
from llenergymeasure.core.errors import BackendMissingError
from llenergymeasure.html_report import html_text, write_report
from llenergymeasure.stored_study import Rebuilt
from llenergymeasure.wording import number
from report.pages import Element, downloaded, parsed, ranking
from report.studies import HOSTILE, NOW, UNICODE, joules, no_energy, read, study_config, written


def page_of(*studies: Rebuilt) -> Element:
    return parsed(html_text(studies, now=NOW))


def headings(page: Element) -> list[str]:
    return [e.text for e in page.everything() if e.tag in ("h1", "h2", "h3")]


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Rebuilt:
    """Three configurations, three cycles, energy measured."""
    return read(written(tmp_path_factory.mktemp("usual") / "s", study_config(3, 3)))


def test_title_says_study_date_model_and_gpu(usual: Rebuilt) -> None:
    """The head names what was measured, when, and on what."""
    page = page_of(usual)
    facts = [li.text for li in page.all("ul", "facts")[0].all("li")]
    assert page.all("h1")[0].text == "known"
    assert facts == ["2026-03-04 05:06 UTC, 9 min", "m", "H100 80GB HBM3", "9 of 9 runs completed"]


def test_headline_is_the_best_configuration_with_its_interval(usual: Rebuilt) -> None:
    """The mean over cycles, its 95 % interval, and the ratio to the next one."""
    (box,) = page_of(usual).all("section", "headline")
    mean = sum(joules(0, c) for c in (1, 2, 3)) / 3
    statistic = usual.study.experiments[0].statistics["energy_per_output_token_j"]
    assert box.text.startswith(
        f"Best: synthetic batch_size=1 {number(mean)} ± {number(statistic.half_width_95, 2)} "
        "J per output token 95 % interval over 3 cycles"
    )
    assert "The next, synthetic batch_size=2, has, compared cycle by cycle, 1." in box.text


def test_order_and_figures_are_those_of_the_terminal(tmp_path: Path) -> None:
    """Both tables rank alike, and show the same means and verdicts."""

    def change(position: int, cycle: int) -> dict[str, Any]:
        reason = {"code": "throttled", "sentence": "Hot.", "fix": "Cool."}
        verdict = {"state": "invalid", "reasons": [reason]} if position == 1 else {"state": "valid"}
        return {"energy_per_output_token_j": 9.0 - position, "verdict": verdict}

    rebuilt = read(written(tmp_path / "s", study_config(5, 2), change=change))
    terminal = report.comparison(rebuilt.study.experiments, rebuilt.results).splitlines()[2:7]
    rows = ranking(page_of(rebuilt))
    assert [r["rank"] for r in rows] == ["1", "2", "3", "4", "5"]
    for shown, line in zip(rows, terminal, strict=True):
        name, speed, _, latency, energy, verdict = re.split(r" {2,}", line.strip())
        assert (shown["configuration"], shown["tokens/s"], shown["J/token"], shown["verdict"]) == (
            name,
            speed,
            energy,
            verdict,
        )
        assert shown["batch p50, ms"].split(" ")[0] == latency
    assert rows[-1]["verdict"] == "invalid"
    assert rows[-1]["J/token"] == "-"


def test_latencies_of_requests_are_called_so(tmp_path: Path) -> None:
    """The column and the axis of a study of saturated windows."""
    figures = dict.fromkeys(("mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "min_ms", "max_ms"), 7.0)
    latency = {"mode": "per_request", "samples": 9, **figures}
    page = page_of(read(written(tmp_path / "s", study_config(2, 1), change=lambda _p, _c: {"latency": latency})))
    assert ranking(page)[0]["request p50, ms"] == "7"
    assert "J per output token against request latency, median, ms" in [t.text for t in page.all("title")]


def test_without_energy_speed_ranks_and_the_reason_is_given(tmp_path: Path) -> None:
    """No joules: why, and what to do; latency against throughput instead of energy; no empty columns."""
    page = page_of(read(written(tmp_path / "s", study_config(3, 1), change=no_energy)))
    (box,) = page.all("section", "headline")
    assert box.text.startswith("Fastest: synthetic batch_size=1 1000 output tokens/s")
    assert "No energy source (nvml: no driver) run on an NVIDIA GPU" in box.text
    assert "J/token" not in ranking(page)[0]
    titles = [t.text for t in page.all("title")]
    assert "Batch latency, median, ms against output tokens/s" in titles
    assert not any("J per" in t for t in titles)


@pytest.mark.parametrize(
    ("fields", "banner"),
    [
        ({"synthetic": True}, "Synthetic: not a measurement. All 2 runs come from"),
        ({"random_weights": True}, "Random weights. All 2 runs: speed and energy hold"),
        ({"verdict": {"state": "invalid", "reasons": [{"code": "c", "sentence": "Too hot.", "fix": "Cool."}]}},
         "Invalid energy. All 2 runs: Too hot."),
        ({"verdict": {"state": "estimated", "reasons": [{"code": "c", "sentence": "A model.", "fix": "Count."}]}},
         "Estimated energy. All 2 runs: A model."),
    ],
    ids=["synthetic", "random weights", "invalid", "estimated"],
)  # fmt: skip
def test_what_disqualifies_the_numbers_stands_before_them(fields: dict[str, Any], banner: str, tmp_path: Path) -> None:
    """A banner above the headline."""
    text = html_text([read(written(tmp_path / "s", study_config(2, 1), change=lambda _p, _c: fields))], now=NOW)
    (box,) = parsed(text).all("div", "alert")
    assert box.text.startswith(banner)
    assert text.index('class="alert"') < text.index('class="headline"')


def test_estimates_are_shown_and_not_ranked(tmp_path: Path) -> None:
    """The fewest joules by a model come after the counted ones, labelled, without a ratio, a bar or a point."""

    def change(position: int, cycle: int) -> dict[str, Any]:
        guessed = position == 0 or (position == 1 and cycle == 3)
        why = [{"code": "no_counter", "sentence": "A model.", "fix": "Count."}]
        return {"verdict": {"state": "estimated", "reasons": why}} if guessed else {}

    page = page_of(read(written(tmp_path / "s", study_config(3, 3), change=change)))
    last, titles = ranking(page)[-1], [t.text for t in page.all("title")]

    assert page.all("section", "headline")[0].text.startswith("Best: synthetic batch_size=2 ")
    assert [last[column].endswith("(estimate)") for column in ("J/token", "power, W")] == [True, True]
    assert last["rel. J/token"] == "-"
    assert "estimates beside valid runs: 1 of 3 runs of synthetic batch_size=2." in page.all("div", "alert")[0].text
    assert "Ranks 1 to 2: J per output token" in titles


def test_pretended_joules_of_a_real_engine_are_marked(usual: Rebuilt, tmp_path: Path) -> None:
    """Every row of a pretended sensor says so; beside measured ones it is last, without a ratio, in no picture."""

    def change(_position: int, _cycle: int) -> dict[str, Any]:
        return {"synthetic": True, "backend": "pytorch", "energy_per_output_token_j": 0.001}

    other = read(written(tmp_path / "o", study_config(2, 1, name="other", models=("other",)), change=change))
    assert {r["verdict"] for r in ranking(page_of(other))} == {"valid (synthetic)"}

    page = page_of(other, usual)
    (table,) = page.all("table", "restack")
    rows, marked = ranking(page), [c.text for c in table.all("td", "doubtful")]
    assert [(r["study"], r["verdict"]) for r in rows] == [("known", "valid")] * 3 + [("other", "valid (synthetic)")] * 2
    assert [r["rel. J/token"] for r in rows[3:]] == ["-", "-"]
    assert marked == ["valid (synthetic)"] * 2
    assert "Ranks 1 to 3: J per output token" in [t.text for t in page.all("title")]


def test_a_reason_that_not_all_runs_have_says_so(tmp_path: Path) -> None:
    """Two of two were too short, one was hot: ranges and counts in the banner and under the missing joules."""

    def change(position: int, cycle: int) -> dict[str, Any]:
        short = {"code": "short", "sentence": f"It lasted {cycle} s.", "fix": "Longer."}
        hot = {"code": "hot", "sentence": "Too hot.", "fix": "Cool."}
        verdict = {"state": "invalid", "reasons": [short, hot] if cycle == 1 else [short]}
        return {**no_energy(position, cycle), "verdict": verdict}

    page = page_of(read(written(tmp_path / "s", study_config(1, 2), change=change)))
    (banner,) = page.all("div", "alert")
    assert banner.text == "Invalid energy. All 2 runs: It lasted 1 to 2 s. Too hot. (1 of 2 runs)"
    (headline,) = page.all("section", "headline")
    assert "It lasted 1 to 2 s. Longer." in headline.text
    assert "Too hot. (1 of 2 runs) Cool." in headline.text


def test_a_sentence_that_begins_with_a_key_keeps_it_as_it_is_written(tmp_path: Path) -> None:
    """One row is one row, and keys have no capitals."""
    why = {"code": "no_energy", "sentence": "energy.backend is none", "fix": "choose one"}
    change = {"verdict": {"state": "unmeasured", "reasons": [why]}}
    page = page_of(read(written(tmp_path / "s", study_config(1, 1), change=lambda p, c: no_energy(p, c) | change)))
    assert "energy.backend is none choose one" in page.all("section", "headline")[0].text
    assert page.all("p", "download")[0].text.endswith("(1 row, one per run)")
    assert ranking(page)[0]["rel. speed"] == "1×"


def test_valid_measurement_has_no_banner(usual: Rebuilt) -> None:
    """Nothing to warn of, nothing said."""
    assert page_of(usual).all("div", "alert") == []


def test_sections_come_in_the_order_in_which_one_asks(usual: Rebuilt) -> None:
    """Best one, ranking, what it costs, power, drift, warnings, method."""
    assert headings(page_of(usual)) == [
        "known", "Ranking", "Energy per token, and what it costs", "Power during each window",
        "Drift over the study", "Warnings", "Method and environment",
    ]  # fmt: skip


def test_warnings_have_their_fix_and_extent(usual: Rebuilt) -> None:
    """Grouped by code, with what to do."""
    (item,) = page_of(usual).all("ul", "findings")[0].all("li")
    assert item.text == "short_window the window was short (9 of 9 runs) use at least 10 s"


def test_method_and_environment_are_told(usual: Rebuilt) -> None:
    """How it was measured and on what, without an empty line."""
    page = page_of(usual)
    told: dict[str, str] = {}
    for dl in page.all("dl"):
        told |= dict(zip([e.text for e in dl.all("dt")], [e.text for e in dl.all("dd")], strict=True))
    assert told["cycles"] == "3"
    assert told["order of runs"] == "shuffled"
    assert told["window"].startswith("20.5 s (steady state, passes)")
    assert told["settling"].startswith("settled after 21 s under load; at its end power +0.2 %")
    assert told["energy from"] == "nvml (counter)"
    assert told["idle power"].startswith("77 W")
    assert "±2 % (95 %)" in told["uncertainty"]
    assert told["GPU"] == "H100 80GB HBM3"
    assert told["driver"] == "580.1"
    assert told["kernel"] == "6.1"
    assert told["libraries"] == "torch 2.9.1"
    assert told["design hash"] == usual.study.study_design_hash
    assert "-" not in told.values()


def test_traces_of_the_first_cycle_are_open_and_the_others_folded(usual: Rebuilt) -> None:
    """One picture per configuration at once, in order of rank; repetitions on demand."""
    (shown, folded) = page_of(usual).all("div", "traces")
    captions = [f.text for f in shown.all("figcaption")]
    assert [c.split(":")[0] for c in captions] == [f"{i} batch_size={i}, cycle 1" for i in (1, 2, 3)]
    assert len(folded.all("figure")) == 6


def test_damaged_series_leave_the_rest_of_the_report(tmp_path: Path) -> None:
    """A broken file costs its picture, and is mentioned."""
    folder = written(tmp_path / "s", study_config(2, 1))
    next((folder / "runs").glob("00000*/timeseries.parquet")).write_bytes(b"PAR1 no more")
    page = page_of(read(folder))
    (shown,) = page.all("div", "traces")
    assert len(shown.all("figure")) == 1
    assert "1 timeseries.parquet cannot be read." in page.text


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("interrupted", "the study was interrupted"),
        ("circuit_breaker", "too many failures in a row"),
        ("running", "has not ended"),
    ],
)
def test_study_that_did_not_end_says_so(status: str, said: str, usual: Rebuilt) -> None:
    """Numbers of a part are not shown as those of the whole."""
    stopped = Rebuilt(**{**vars(usual), "manifest": usual.manifest.model_copy(update={"status": status})})
    facts = page_of(stopped).all("ul", "facts")[0]
    assert said in facts.text


def test_download_holds_a_row_per_run(usual: Rebuilt) -> None:
    """The CSV is inside the page, named after the design, one row per run."""
    name, rows = downloaded(page_of(usual))
    assert name == f"{usual.study.study_design_hash}.csv"
    assert sorted((r["configuration"], int(r["cycle"])) for r in rows) == sorted(
        (f"synthetic batch_size={i}", c) for i in (1, 2, 3) for c in (1, 2, 3)
    )


def test_nothing_completed_still_gives_a_page(tmp_path: Path) -> None:
    """Every run is missing: the page says so, has the plan's rows to download, and no empty pictures."""
    page = page_of(read(written(tmp_path / "s", study_config(2, 2), change=lambda _p, _c: None)))
    (box,) = page.all("section", "headline")
    assert box.text == "Nothing was measured yet: none of 4 runs has a result."
    assert "Failed, missing and skipped" in headings(page)
    assert page.all("svg") == []
    assert "synthetic batch_size=1 (cycles 1, 2) pending" in page.text
    assert len(downloaded(page)[1]) == 4


def test_failed_runs_and_skipped_combinations_have_their_reasons(usual: Rebuilt) -> None:
    """What has no numbers is named, equal failures of one configuration together."""
    failed = [
        {
            "index": c,
            "cycle": c,
            "config_hash": "h",
            "summary": "x",
            "error_type": "OutOfMemory",
            "error_message": "2 GB",
        }
        for c in (1, 2)
    ]
    skipped = [{"config": {"precision": "fp99"}, "reason": "no such precision"}]
    study = usual.study.model_validate({**usual.study.model_dump(), "failed": failed, "skipped": skipped})
    rebuilt = Rebuilt(**{**vars(usual), "study": study})
    tables = [t.text for t in page_of(rebuilt).all("table") if t["class"] is None]
    assert "x (cycles 1, 2) OutOfMemory: 2 GB" in tables[0]
    assert "precision=fp99 no such precision" in tables[1]


def test_several_studies_share_a_table_and_keep_their_details(usual: Rebuilt, tmp_path: Path) -> None:
    """One ranking with the study's name in a column; a section for each; one CSV."""
    other = read(written(tmp_path / "o", study_config(2, 1, name="other", models=("other",))))
    page = page_of(usual, other)
    rows = ranking(page)
    assert [r["study"] for r in rows] == ["known", "other", "other", "known", "known"]
    assert [r["rank"] for r in rows] == ["1", "2", "3", "4", "5"]
    assert {"known", "other"} <= set(headings(page))
    assert headings(page).count("Method and environment") == 2
    assert len(downloaded(page)[1]) == 11
    text = report.studies_summary([report.Told(r.study, r.results) for r in (usual, other)])
    assert [re.split(r" {2,}", line)[:2] for line in text.splitlines()[2:7]] == [
        [r["configuration"], r["study"]] for r in rows
    ]


@pytest.mark.parametrize(("count", "cycles"), [(1, 1), (1, 10), (2, 1), (12, 3), (100, 10)], ids=str)
def test_every_size_of_study_has_a_page(count: int, cycles: int, tmp_path: Path) -> None:
    """From one run to a thousand: all configurations are in the table and in the dots, traces within bounds."""
    page = page_of(read(written(tmp_path / "s", study_config(count, cycles), series=count < 100)))
    assert len(ranking(page)) == count
    dots = [e["id"] or "" for e in page.everything() if re.fullmatch(r"dots-\d+-dot-\d+", e["id"] or "")]
    assert len(dots) == count
    assert len(page.all("div", "traces")[0].all("figure") if count < 100 else []) <= 12
    assert len(downloaded(page)[1]) == count * cycles


def test_page_is_self_contained(usual: Rebuilt) -> None:
    """Nothing is loaded: no script, no address in a loading attribute, no import or url in the style."""
    text = html_text([usual], now=NOW)
    page = parsed(text)
    for element in page.everything():
        for attribute in ("src", "href", "srcset", "action", "poster", "xlink:href"):
            value = element[attribute] or ""
            assert not re.match(r"(?i)\s*(https?:|//|file:|ftp:)", value), (element.tag, value)
            assert not value or value.startswith(("data:", "#")), value
    assert page.all("script") == []
    assert [link["href"] for link in page.all("link")] == ["data:,"]
    (style,) = page.all("head")[0].all("style")
    assert "@import" not in style.text
    assert "url(" not in style.text
    (policy,) = [m["content"] for m in page.all("meta") if m["http-equiv"] == "Content-Security-Policy"]
    assert str(policy).startswith("default-src 'none';")


def test_page_has_the_bones_that_readers_need(usual: Rebuilt) -> None:
    """Language, width of the device, captions, scopes, one h1, no jump of levels, unique ids, names of pictures."""
    page = page_of(usual)
    everything = page.everything()
    assert page.all("html")[0]["lang"] == "en"
    assert any(m["name"] == "viewport" for m in page.all("meta"))
    for table in page.all("table"):
        assert table.all("caption")[0].text
        assert all(th["scope"] in ("col", "row") for th in table.all("th"))
    levels = [int(e.tag[1]) for e in everything if re.fullmatch(r"h[1-6]", e.tag)]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    ids = [e["id"] for e in everything if e["id"]]
    assert len(ids) == len(set(ids))
    for picture in page.all("svg"):
        assert picture["role"] == "img"
        assert set(str(picture["aria-labelledby"]).split()) <= set(ids)


@pytest.mark.parametrize("name", [HOSTILE, UNICODE, "x" * 200, "a" * 40 + " " + "b" * 40], ids=ascii)
def test_no_name_gets_out_of_its_place(name: str, tmp_path: Path) -> None:
    """Names are text everywhere: in the title, tables, pictures and the CSV."""
    rebuilt = read(written(tmp_path / "s", study_config(2, 2, name=name, models=(name, "other"))))
    page = page_of(rebuilt)
    shown = name.replace("\u202e", "\N{REPLACEMENT CHARACTER}")
    assert page.all("script") == []
    assert page.all("h1")[0].text == shown
    assert any(shown in r["configuration"] for r in ranking(page))
    assert {r["study"] for r in downloaded(page)[1]} <= {name, f"'{name}"}
    assert not any(key.startswith("on") for e in page.everything() for key in e.attributes)


@pytest.mark.parametrize("library", ["jinja2", "matplotlib"])
def test_missing_extra_is_named_with_its_command(library: str, usual: Rebuilt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the error says what to install."""
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(BackendMissingError, match=re.escape('pip install "llenergymeasure[report]"')):
        html_text([usual], now=NOW)


def test_report_is_written_whole(usual: Rebuilt, tmp_path: Path) -> None:
    """The file is complete UTF-8."""
    path = tmp_path / "report.html"
    write_report(path, [usual])
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
