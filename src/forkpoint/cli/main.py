"""``forkpoint COMMAND``: the commands and what becomes of their errors."""

import os
import sys

import cyclopts
from cyclopts import App

import forkpoint
from forkpoint.cli.analyze import analyze
from forkpoint.cli.branch import branch
from forkpoint.cli.demo import demo
from forkpoint.cli.doctor import doctor
from forkpoint.cli.dynamics import dynamics
from forkpoint.cli.evaluate import evaluate
from forkpoint.cli.figures import figures
from forkpoint.cli.report import report
from forkpoint.cli.temperature import temperature
from forkpoint.cli.train import train
from forkpoint.errors import ForkpointError

USER_ERROR = 2
INTERRUPTED = 130

app = App(
    name="forkpoint",
    help="Reinforcement learning with verifiable rewards, seen through token entropy.",
    version=forkpoint.__version__,
    exit_on_error=False,
)
app.command(demo)
app.command(train)
app.command(evaluate, name="eval")
app.command(analyze)
app.command(dynamics)
app.command(temperature)
app.command(branch)
app.command(figures)
app.command(report)
app.command(doctor)


def main() -> None:
    """Run the command line; exit with 0, 2 for an error of the user's, 128 + n for a signal."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        sys.exit(app(sys.argv[1:]) or 0)
    except cyclopts.CycloptsError:
        sys.exit(USER_ERROR)  # printed by cyclopts, with the nearest name for a typo
    except ForkpointError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
