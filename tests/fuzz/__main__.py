"""``python -m fuzz``: mutated files of every format through the readers and the verbs; a table of what became of them."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from fuzz.run import reading_tasks, run, table, verb_tasks
from fuzz.seeds import make_models, make_seeds

VERB_SHARE = 0.12
"""Of the inputs meet whole verbs, which take a hundred times as long as reading."""
PAGE = """# Mutated files

Made by `scripts/fuzz`. Valid files of every format are damaged in {ways} ways (bits, cut, grown, header fields and numbers at
extremes, keys and lines without end, other encodings, deep nesting; seed {seed}) and met by the software in a process of its own,
which may take {limit} MiB more than before its first file, and {seconds:g} seconds for each. Right is a message, or reading it: not
every flipped bit is a damage that shows. "Whole verbs" are datasets with one such file as image or label, through `doctor`,
`doctor --fix`, `plan` and `predict`. Warnings of libraries count as errors here.

{count} inputs in {minutes:.0f} minutes on two cores; crashes, tracebacks, hangs and inputs over the limit of memory: {wrong}.

{table}"""


def main() -> int:
    """Returns 1 where an input was neither read nor refused."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000, help="how many (2000)")
    parser.add_argument("--seed", type=int, default=0, help="another number gives other inputs (0)")
    parser.add_argument("--output", type=Path, help="write the table here, docs/fuzz.md")
    parser.add_argument("--keep", type=Path, help="a folder for the inputs that went wrong")
    parser.add_argument("--quick", action="store_true", help="readers only, without models and verbs")
    parser.add_argument("--format", action="append", help="only this format; may be repeated")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        root = Path(folder)
        seeds = make_seeds(root / "seeds")
        dataset, model = seeds["dataset.json"].folder, None
        if not options.quick:
            models = make_models(root / "models", dataset)
            seeds |= models
            model = models["model.medseg3d"].folder / models["model.medseg3d"].file
        formats = [name for name in seeds if not options.format or name in options.format]
        num_verbs = 0 if options.quick else int(VERB_SHARE * options.inputs)
        tasks = [*reading_tasks(formats, options.inputs - num_verbs), *verb_tasks(formats, num_verbs)]
        counts, wrong = run(
            tasks,
            seeds,
            seed=options.seed,
            scratch=root,
            dataset=dataset,
            model=model,
            keep=options.keep,
            tell=_tell,
        )
    text = table(counts)
    print(text)
    if options.output:
        options.output.write_text(_page(text, options, len(wrong), (time.monotonic() - began) / 60), encoding="utf-8")
    return 1 if wrong else 0


def _tell(line: str) -> None:
    print(line, end="\n\n")


def _page(text: str, options: argparse.Namespace, wrong: int, minutes: float) -> str:
    from fuzz import mutations
    from fuzz.run import LIMIT_MIB, SECONDS

    ways = len({*mutations._BINARY, *mutations._NIFTI, *mutations._TEXT, *mutations._TEXT_HEADER})
    facts = {"ways": ways, "seed": options.seed, "limit": LIMIT_MIB, "seconds": SECONDS, "count": options.inputs}
    return PAGE.format(**facts, minutes=max(1.0, minutes), wrong=wrong, table=text)


if __name__ == "__main__":
    sys.exit(main())
