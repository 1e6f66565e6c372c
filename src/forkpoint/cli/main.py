"""``forkpoint COMMAND``: the commands and what becomes of their errors."""

import os
import sys

from cyclopts import (
    App,
    CycloptsError,
    CycloptsPanel,
    MissingArgumentError,
    Token,
    UnknownOptionError,
)

import forkpoint
from forkpoint.cli.ablate import ablate
from forkpoint.cli.analyze import analyze
from forkpoint.cli.branch import branch
from forkpoint.cli.demo import demo
from forkpoint.cli.doctor import doctor
from forkpoint.cli.dynamics import dynamics
from forkpoint.cli.evaluate import evaluate
from forkpoint.cli.export import export
from forkpoint.cli.figures import figures
from forkpoint.cli.plan import plan
from forkpoint.cli.report import report
from forkpoint.cli.temperature import temperature
from forkpoint.cli.terminal import SafeConsole, visible
from forkpoint.cli.train import train
from forkpoint.cli.verify import verify
from forkpoint.errors import ForkpointError
from forkpoint.ranks import TOLD, speaks

USER_ERROR = 2
INTERRUPTED = 130

app = App(
    name="forkpoint",
    help="Reinforcement learning with verifiable rewards, seen through token entropy.",
    version=forkpoint.__version__,
    exit_on_error=False,
    print_error=False,
)
app.command(demo)
app.command(train)
app.command(ablate)
app.command(evaluate, name="eval")
app.command(analyze)
app.command(dynamics)
app.command(temperature)
app.command(branch)
app.command(figures)
app.command(export)
app.command(report)
app.command(verify)
app.command(plan)
app.command(doctor)


def main() -> None:
    """Run the command line; exit with 0, 2 for an error of the user's, 128 + n for a signal."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        sys.exit(app(sys.argv[1:]) or 0)
    except CycloptsError as error:
        text = visible(str(_misspelling(error) or error))
        SafeConsole(stderr=True).print(CycloptsPanel(CycloptsError(msg=text)))
        sys.exit(USER_ERROR)
    except ForkpointError as error:
        if TOLD not in getattr(error, "__notes__", ()):
            who = "" if speaks() else f"process {os.environ['RANK']}: "
            print(f"{who}error: {visible(str(error))}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _misspelling(error: CycloptsError) -> UnknownOptionError | None:
    """The option nobody knows, where another is missing: the one is likely meant for the other."""
    if not isinstance(error, MissingArgumentError) or error.app is None:
        return None
    known = error.app.assemble_argument_collection()
    names = {name for argument in known for name in argument.names}
    given = (token.split("=")[0] for token in error.unused_tokens or ())
    unknown = next((t for t in given if t.startswith("--") and t not in names), None)
    if unknown is None:
        return None
    token = Token(keyword=unknown, source="cli")
    return UnknownOptionError(token=token, argument_collection=known, verbose=False)
