"""Put the tables of runs into the page of the tables of the benchmark.

    captum-lrpx evaluate --output runs/embedded
    captum-lrpx evaluate --ablate --sentences 200 --output runs/ablation
    python benchmarks/benchmark_page.py embedded=runs/embedded/table.md
    python benchmarks/benchmark_page.py "ablation=runs/ablation/table.md:contributes"

Each ``NAME=FILE`` replaces what stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` in
``docs/benchmark-tables.md`` by the tables of a run, and leaves the rest of the page as it is. With
``:TEXT``, only the tables with this text in their title are taken.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from captum_lrpx.files import write_text

PAGE = Path(__file__).parents[1] / "docs" / "benchmark-tables.md"


def main() -> None:
    """Replace the sections that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="+", metavar="NAME=FILE[:TEXT]")
    text = PAGE.read_text(encoding="utf-8")
    for section in parser.parse_args().sections:
        name, equals, place = section.partition("=")
        file, _, title = place.partition(":")
        if not equals:
            parser.error(f"a section is NAME=FILE, not {section!r}")
        pattern = rf"(<!-- begin {re.escape(name)} -->\n).*?(<!-- end {re.escape(name)} -->)"
        if not re.search(pattern, text, re.DOTALL):
            parser.error(f"{PAGE.name} has no section {name!r}")
        body = tables(Path(file), title)
        text = re.sub(pattern, lambda found: found[1] + body + found[2], text, flags=re.DOTALL)  # noqa: B023
    write_text(PAGE, text)


def tables(file: Path, title: str) -> str:
    """The tables of a run with a text in their title, and the versions it was made with."""
    manifest = json.loads((file.parent / "manifest.json").read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())
    table = file.read_text(encoding="utf-8")
    *grids, notes = re.split(r"\n\n(?=\*\*|Means with)", table)
    chosen = "\n\n".join(grid for grid in grids if title in grid.partition("\n")[0])
    return f"\n{chosen}\n\n{notes}\nMade with {versions}.\n\n"


if __name__ == "__main__":
    main()
