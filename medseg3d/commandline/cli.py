"""The command line: arguments → a verb → what is printed. Environment and arguments are read in this package and nowhere else."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from medseg3d.commandline.arguments import VERB, build_parser, taken
from medseg3d.commandline.examples import USAGES
from medseg3d.commandline.terminal import Once, make_printable, wrapped
from medseg3d.commandline.verbs import COMMANDS
from medseg3d.errors import CasesFailedError, InputError, InterruptedBySignalError, MedsegError
from medseg3d.extensions import failure_of, use_extension
from medseg3d.options import OutputOptions
from medseg3d.processes import is_one_of_several
from medseg3d.signals import STOPPED, Stopped, ending_on_signals
from medseg3d.wording import counted

logger = logging.getLogger(__name__)
EXIT_DONE = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 1 our defect, 2 wrong input, 3 some cases failed, 130/143 stopped)."""
    make_printable(sys.stdout, sys.stderr)
    parser = build_parser(COMMANDS)
    namespace = parser.parse_args(_as_flags(sys.argv[1:] if arguments is None else arguments))
    verb = getattr(namespace, VERB, None)
    if verb is None:
        parser.print_help()
        return EXIT_DONE
    is_several = verb == "train" and is_one_of_several(os.environ)
    if is_several and os.environ["RANK"] != "0":  # the first one speaks
        namespace.quiet, namespace.json = True, False
    output = taken(OutputOptions, namespace)
    _set_up_logging(output)
    stopped = _Stopped(as_json=output.json, is_several=is_several)
    with nullcontext() if verb == "serve" else ending_on_signals(stopped):  # a server lets the job at hand end
        return _run_command(verb, namespace, stopped, as_json=output.json, is_several=is_several)


def _as_flags(arguments: Sequence[str]) -> list[str]:
    """``help``, ``help VERB`` and ``version`` as people type them elsewhere.

    >>> _as_flags(["help", "run"]), _as_flags(["version"]), _as_flags(["run", "help"])
    (['run', '--help'], ['--version'], ['run', 'help'])
    """
    first, *rest = arguments or [""]
    return [*rest, "--help"] if first == "help" else ["--version"] if first == "version" else list(arguments)


def _run_command(verb: str, namespace: argparse.Namespace, stopped: _Stopped, *, as_json: bool, is_several: bool) -> int:
    command = COMMANDS[verb]
    try:
        from medseg3d.commandline.console import Console

        options = taken(command.record, namespace)
        for file in options.extensions:
            use_extension(file)
        console = Console(options)
        code = command.run(options, console) or EXIT_DONE
        if code == EXIT_DONE and console.lost:  # of verbs that train among other things
            raise CasesFailedError(f"The work is done without {counted(len(console.lost), 'case')}:", tuple(console.lost.values()))
        return code
    except InterruptedBySignalError as error:
        stopped(error.signal_number, str(error))
        return error.exit_code
    except MedsegError as error:
        if not is_several or _speaks_first():
            _print_error(error, as_json=as_json, page="" if namespace.quiet else _page_about(error, verb))
        return error.exit_code
    except KeyboardInterrupt as error:
        number = error.signal_number if isinstance(error, Stopped) else signal.SIGINT
        stopped(number)
        return 128 + number
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:  # a path that was named, met where nobody thought of it
        reason = f"{error.filename or error}: {error.strerror}. Choose another file or folder, or change its permissions."
        _print_error(InputError(reason), as_json=as_json)
        return InputError.exit_code
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output left; nothing more can be said
        return EXIT_DONE
    except Exception as error:  # the code of others may raise whatever it likes; what is ours is raised on, as a defect
        failure = failure_of(error)
        if failure is None:
            if is_several and not _speaks_first():
                return MedsegError.exit_code
            raise
        logger.info("The extension's error:", exc_info=error)
        _print_error(InputError(failure), as_json=as_json)
        return InputError.exit_code


def _set_up_logging(options: OutputOptions) -> None:
    level = logging.INFO if options.verbose else logging.ERROR if options.quiet else logging.WARNING
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(Once())
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("medseg3d").setLevel(level)


def _print_error(error: MedsegError, *, as_json: bool, page: str = "") -> None:
    if as_json and not isinstance(error, CasesFailedError):  # its cases stand in the document that is printed already
        print(json.dumps({"error": type(error).__name__, "message": str(error), "exit_code": error.exit_code}), flush=True)
        return
    print(wrapped(f"medseg3d: {error}", sys.stderr), file=sys.stderr)
    if page:
        print(wrapped(f"More about this: {_place(page)}", sys.stderr), file=sys.stderr)


def _page_about(error: MedsegError, verb: str) -> str:
    """The page about errors of a kind; of any wrong input that about the command."""
    return USAGES[verb].page if type(error) is InputError and verb in USAGES else error.page


def _place(page: str) -> str:
    """Where a section of the documentation is read: the command that shows it, and its file."""
    from medseg3d.pages import docs_folder

    folder, short = docs_folder(), page.replace(".md", "").rpartition("/")[2]
    return f"medseg3d docs {short}" + ("" if folder is None else f"  ({folder / page.partition('#')[0]})")


def _speaks_first() -> bool:
    """Of several processes that train together the first that fails says why."""
    from medseg3d.team import speaks_first

    return speaks_first()


class _Stopped:
    """Says once that a signal stopped the command, whichever thread ends it."""

    def __init__(self, *, as_json: bool, is_several: bool) -> None:
        self._as_json, self._is_said, self._is_several = as_json, False, is_several

    def __call__(self, number: int, message: str = f"\n{STOPPED}") -> None:
        if self._is_said:
            return
        self._is_said = True
        if self._is_several and not _speaks_first():
            return
        if self._as_json:
            _print_error(InterruptedBySignalError(number, message.strip()), as_json=True)
        else:
            print(message, file=sys.stderr, flush=True)
