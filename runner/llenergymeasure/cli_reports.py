"""The verbs that read results back from their files."""

import json
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("report")(report_of)


def report_of(
    places: Annotated[
        list[str], typer.Argument(help="Study folders of llem run, or URIs of a cluster's results (s3://…, file://…).")
    ],
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", help="Address of the store; else AWS_ENDPOINT_URL.")
    ] = None,
    region: Annotated[str | None, typer.Option("--region", help="Region of the bucket; else AWS_REGION.")] = None,
    export_csv: Annotated[Path | None, typer.Option("--export-csv", help="Also write a CSV, one row per run.")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", "-o", help="Also write one page with pictures, such as report.html.")
    ] = None,
    export_parquet: Annotated[
        Path | None,
        typer.Option("--export-parquet", help="Also write the same table as Parquet, with types and units."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Show the table of studies from their files alone: what was measured, what failed, what is missing."""
    from llenergymeasure import export, report
    from llenergymeasure.findings import Told
    from llenergymeasure.object_store import Access, open_place
    from llenergymeasure.stored_study import rebuild

    for target in (export_csv, export_parquet):
        if target is not None:
            export.check_target(target)
    found = [rebuild(open_place(place, Access(endpoint, region))) for place in places]
    if as_json:
        told = [json.loads(rebuilt.study.to_json()) for rebuilt in found]
        print(json.dumps(told[0] if len(told) == 1 else told, indent=2, ensure_ascii=False))
    else:
        print(report.studies_summary([Told(rebuilt.study, rebuilt.results) for rebuilt in found]))
        for rebuilt in found:
            why = [*report.stopped(rebuilt.study, rebuilt.manifest), *report.missing_runs(rebuilt.manifest)]
            print("\n".join([*why, f"results: {rebuilt.study.directory}"]))
    if export_csv is not None:
        export.export_csv(export_csv, export.run_rows(found))
    if export_parquet is not None:
        export.export_parquet(export_parquet, export.run_rows(found))
    if html is not None:
        from llenergymeasure.html_report import write_report

        write_report(html, found)
        if not as_json:
            print(f"report: {html}")
