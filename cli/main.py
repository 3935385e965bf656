"""The `interkd` command: mounts the subcommands and turns every error into one line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

from interkd import InterkdError, __version__

COMMANDS = {
    "prepare": ("interkd.cli.prepare:prepare_command", "Check a corpus and write its manifest."),
    "plan": ("interkd.cli.plan:plan_command", "Cost of a cache and its students, beforehand."),
    "train-teacher": (
        "interkd.cli.train:train_teacher_command",
        "Train a CTC teacher with the plain CTC recipe.",
    ),
    "cache-teacher": (
        "interkd.cli.cache_teacher:cache_teacher_command",
        "Run a teacher once and store its posteriors.",
    ),
    "train-student": (
        "interkd.cli.train:train_student_command",
        "Train a student from a teacher cache.",
    ),
    "score": (
        "interkd.cli.score:score_command",
        "Error rates of a checkpoint, or of two compared.",
    ),
    "sweep": ("interkd.cli.sweep:sweep_command", "Train and score a grid of settings."),
    "slurm": ("interkd.cli.slurm:slurm_command", "Batch scripts of all that, and their jobs."),
    "export": ("interkd.cli.export:export_command", "Write a checkpoint to ship, in float16."),
    "cache": (
        "interkd.cli.cache:cache_command",
        "Look into a teacher cache, check, compare and shrink it.",
    ),
}


class LazyGroup(click.Group):
    """Imports a subcommand when it is run, so that `interkd --help` starts at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order in which one uses them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The subcommand of that name, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module_name, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module_name), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the subcommands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, phrase) for name, (_, phrase) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="interkd")
def interkd() -> None:
    """Distil a big CTC speech recogniser into a small one, from a cache of its posteriors."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line: exit code 0, 2 for a mistake that the user can mend, 130 for ctrl-C.

    Args:
        arguments: Command-line arguments; the process's own by default.
    """
    try:
        interkd.main(
            args=None if arguments is None else list(arguments),
            prog_name="interkd",
            standalone_mode=False,
        )
    except InterkdError as error:
        click.echo(f"interkd: error: {error}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interkd: stopped", err=True)
        sys.exit(130)
