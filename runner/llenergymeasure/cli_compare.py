"""The verb that answers whether B is better than A."""

from typing import Annotated

import typer

SIDE = "a study's folder or URI, or that of a single run; with #HASH one configuration of it"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("compare")(compare)


def compare(
    a: Annotated[str, typer.Argument(help=f"What to compare with: {SIDE}.")],
    b: Annotated[str, typer.Argument(help="What to compare: likewise.")],
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", help="Address of the store; else AWS_ENDPOINT_URL.")
    ] = None,
    region: Annotated[str | None, typer.Option("--region", help="Region of the bucket; else AWS_REGION.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Say whether B is better than A, by how much, and how sure that is."""
    from llenergymeasure import comparing, sides
    from llenergymeasure.comparison_text import comparison_json, comparison_text
    from llenergymeasure.object_store import Access

    access = Access(endpoint, region)
    found = comparing.compare(sides.read_side(a, access), sides.read_side(b, access))
    print(comparison_json(found) if as_json else comparison_text(found))
