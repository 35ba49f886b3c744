"""Compare finished runs: the accuracy of each group of runs, and which differences are significant.

    python -m fashion.compare logs/grid                          every run below a folder
    python -m fashion.compare logs/best logs/cnn --split test    on the test set
    python -m fashion.compare logs/grid --baseline cnn --format csv --output grid.csv
    python -m fashion.compare logs/grid --report grid.html --figures slides/

Runs that differ only in seed, or only in fold, form a group, which is a row. All runs must have
predicted the same images.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fashion.errors import cli_errors
from fashion.runs.files import atomic_write, refuse_existing
from fashion.runs.run import VIEWS


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fashion.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="RUN_OR_FOLDER", help="a folder: the runs below it"
    )
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument(
        "--tta", choices=VIEWS, default="none", help="as fashion.evaluate made them"
    )
    parser.add_argument("--baseline", metavar="NAME", help="a row's name (default: the best row)")
    parser.add_argument("--format", choices=("markdown", "csv", "json"), default="markdown")
    parser.add_argument("--output", type=Path, metavar="FILE", help="instead of the terminal")
    parser.add_argument(
        "--report", type=Path, metavar="FILE.html", help="also a page, with figures"
    )
    parser.add_argument("--figures", type=Path, metavar="DIR", help="16:9 figures for slides")
    parser.add_argument("--force", action="store_true", help="overwrite existing files")
    parser.add_argument("--skip-unfinished", action="store_true", help="leave unfinished runs out")
    options = parser.parse_args(arguments)
    with cli_errors():
        from fashion.report import table

        refuse_existing([options.output, options.report], force=options.force)
        runs = table.finished_runs(options.paths, skip_unfinished=options.skip_unfinished)
        groups = table.groups(runs, options.split, options.tta)
        found = table.tabulate(groups, options.split, options.baseline, options.tta)
        text = table.RENDERERS[options.format](found)
        if options.output is None:
            print(text, end="")
        else:
            with atomic_write(options.output) as file:
                file.write(text.encode())
        if options.report:
            from fashion.report.comparison_page import comparison_page

            with atomic_write(options.report) as file:
                file.write(comparison_page(found, groups).encode())
        if options.figures:
            from fashion.report.slides import write_comparison

            write_comparison(found, options.figures, force=options.force)


if __name__ == "__main__":
    main()
