"""Verbs that tell or fetch: ``schema``, ``data inspect``, ``data download``, ``data phantom``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medkd.cli.terminal import AsJson, note, say, say_json, table
from medkd.errors import UserError

if TYPE_CHECKING:
    from medkd.data.facts import Fingerprint

data = typer.Typer(name="data", help="Look at, fetch or simulate a dataset.", rich_markup_mode=None)


def schema() -> int:
    """Print the JSON schema of the YAML, for editors."""
    from medkd.pipeline.config import schema as of_run

    say_json(of_run())
    return 0


@data.command()
def inspect(
    source: Annotated[
        str, typer.Argument(metavar="DATA", help="A folder, a .json or .csv file, or a known name.", show_default=False)
    ],
    root: Annotated[Path | None, typer.Option(metavar="DIR", help="Look for names here first.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Cases at a time.")] = 1,
    as_json: AsJson = False,
) -> int:
    """Tell what a dataset holds.

    Shapes, spacings, intensities, class volumes, and what is suspicious. The exit code is 2 when something is broken.
    """
    from medkd.cli.watch import advance, counted
    from medkd.data.dataset import load_dataset
    from medkd.data.fingerprint import fingerprint

    dataset = load_dataset(source, root)
    with counted("inspect") as bar:
        facts = fingerprint(dataset, progress=lambda done, of: advance(bar, done, of), jobs=jobs)
    if as_json:
        say_json(facts.summary())
    else:
        _tell(facts)
    return 2 if facts.broken else 0


def _tell(facts: Fingerprint) -> None:
    told = facts.summary()
    say(f"{told['name']}: {told['labelled']} labelled and {told['unlabelled']} unlabelled cases")
    for key, unit in (("shape", "voxels"), ("spacing_mm", "mm")):
        if (spread := told[key]) is not None:
            text = ", ".join(f"{name} {' x '.join(f'{x:g}' for x in values)}" for name, values in spread.items())
            say(f"{key.removesuffix('_mm')} ({unit}): {text}")
    if told["intensity"]:
        columns = list(next(iter(told["intensity"].values())))
        body = [(name, *[f"{value:.5g}" for value in one.values()]) for name, one in told["intensity"].items()]
        table(("channel", *columns), body, numbers=range(1, len(columns) + 1))
    body = [
        (name, one["cases"], *[f"{one[key]:.1f}" if key in one else "-" for key in ("median_ml", "min_ml", "max_ml")])
        for name, one in told["classes"].items()
    ]
    table(("class", "cases", "median ml", "smallest", "largest"), body, numbers=range(1, 5))
    for problem in told["problems"]:
        where = f"{problem['case']}: " if problem["case"] and problem["case"] not in problem["text"] else ""
        say(f"{problem['severity']}: {where}{problem['text']}")
    if not told["problems"]:
        say("nothing suspicious")


@data.command()
def download(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As msd/Task04_Hippocampus.", show_default=False)],
    into: Annotated[Path, typer.Option(metavar="DIR", help="Folder that gets the dataset's folder.")] = Path("data"),
) -> int:
    """Fetch a dataset of the MSD.

    The Medical Segmentation Decathlon, from where MONAI keeps it. Broken off, the same command goes on.
    """
    from medkd.cli.watch import advance, counted
    from medkd.data.download import download as fetch

    with counted("megabytes") as bar:
        folder = fetch(name, into, lambda done, of: advance(bar, done // 1_000_000, of // 1_000_000))
    say(str(folder))
    return 0


@data.command()
def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.", show_default=False)],
    cases: Annotated[int, typer.Option(min=1, help="Labelled patients.")] = 24,
    modality: Annotated[str, typer.Option(help="ct or mr.")] = "ct",
    seed: Annotated[int, typer.Option(help="Other seed, other patients.")] = 0,
    unlabelled: Annotated[int, typer.Option(min=0, help="Patients without a label.")] = 0,
    lesions: Annotated[bool, typer.Option("--lesions", help="With lesions in the liver.")] = False,
) -> int:
    """Write simulated abdominal scans."""
    from medkd.cli.watch import advance, counted
    from medkd.data.phantom import write_phantoms
    from medkd.pipeline.folder import disk_errors

    if modality not in ("ct", "mr"):
        raise UserError(f"--modality {modality}: no such modality; give ct or mr")
    with counted("simulate") as bar, disk_errors(out):
        folder = write_phantoms(
            out,
            cases=cases,
            modality=modality,
            seed=seed,
            unlabelled=unlabelled,
            lesions=lesions,
            progress=lambda done, of: advance(bar, done, of),
        )
    note("simulated, and good for trying things out only")
    say(str(folder))
    return 0
