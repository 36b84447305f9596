"""The words of the command line: every command, its arguments and the module that runs it.

Only argparse is imported here, and only the parser of the command that was typed is built, so that `slipway --help`
is instant. A command's module is imported when it runs; it has `run(arguments, environment) -> exit status`.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from slipway_cli.errors import UsageError

Configure = Callable[[argparse.ArgumentParser], None]

TARGET_OPTIONS = ("--kubeconfig", "--context", "--namespace", "-n")


@dataclass(frozen=True)
class Command:
    """One command."""

    name: str
    group: str  # the heading that --help lists it under
    summary: str
    configure: Configure
    example: str
    remote: bool = True  # talks to a target, so it takes --kubeconfig and its kin

    @property
    def module(self) -> str:
        """The module that runs it."""
        return f"slipway_cli.commands.{self.name}"


class _Parser(argparse.ArgumentParser):
    """Raises instead of ending the process, so that usage errors look like all others."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"{self.prog} --help")


def _nothing(parser: argparse.ArgumentParser) -> None:
    """A command without arguments."""


# --- the arguments of each command --------------------------------------------------------------------------------


def _up(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cpus", type=_positive, metavar="N", help="CPUs that runs may use (default: all)")
    parser.add_argument(
        "--kube", action="store_true", help="a real etcd and kube-apiserver instead of the embedded API server"
    )
    parser.add_argument("--timeout", default="2m", metavar="TIME", help="give up when it is not ready by then (2m)")


def _down(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--purge", action="store_true", help="delete everything: objects, models, checkpoints, logs")


def _files(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument(
        "-f",
        "--filename",
        dest="files",
        action="append",
        default=[],
        required=required,
        metavar="FILE",
        help="manifest, directory of manifests, or - for standard input; may be repeated",
    )


def _apply(parser: argparse.ArgumentParser) -> None:
    _files(parser)
    parser.add_argument("--dry-run", action="store_true", help="let the server check it, and store nothing")
    parser.add_argument("--force-conflicts", action="store_true", help="take over fields that another tool manages")


def _get(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="+", metavar="TYPE[/NAME]", help="tj, tj/NAME, tj NAME ..., tj,rayjobs, slipway")
    parser.add_argument("-o", "--output", metavar="FORMAT", help="table, wide, yaml, json, name, jsonpath=TEMPLATE")
    parser.add_argument("-A", "--all-namespaces", action="store_true", help="in every namespace")
    parser.add_argument("-l", "--selector", metavar="LABELS", help="only objects with these labels: a=b,c!=d")
    parser.add_argument("-w", "--watch", action="store_true", help="go on with every change, until interrupted")
    parser.add_argument("--no-headers", action="store_true", help="leave out the header line")
    parser.add_argument("--ignore-not-found", action="store_true", help="an object that does not exist is no error")


def _describe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="+", metavar="TYPE[/NAME]", help="tj/NAME, or tj for all")


def _wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="+", metavar="TYPE/NAME", help="what to wait for")
    parser.add_argument(
        "--for",
        dest="goal",
        required=True,
        metavar="GOAL",
        help="condition=TYPE, condition=TYPE=STATUS or delete",
    )
    parser.add_argument(
        "--timeout", default="600s", metavar="TIME", help="give up then: 90s, 10m, 0 checks once (600s)"
    )


def _delete(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="*", metavar="TYPE/NAME", help="what to delete")
    _files(parser, required=False)
    parser.add_argument("--all", action="store_true", help="all objects of the type in the namespace")
    parser.add_argument("--ignore-not-found", action="store_true", help="an object that does not exist is no error")
    _boolean(parser, "--wait", "return when it is gone, with all that it ran (default), or at once: --wait=false")
    parser.add_argument("--timeout", default="600s", metavar="TIME", help="how long to wait for it to be gone (600s)")


def _patch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="+", metavar="TYPE/NAME", help="what to change")
    parser.add_argument("-p", "--patch", required=True, metavar="PATCH", help='\'{"spec": {"suspend": true}}\'')
    parser.add_argument("--type", choices=["merge"], default="merge", help="merge: JSON merge patch (RFC 7386)")


def _logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="+", metavar="TYPE/NAME", help="the TrainJob or EvalJob: tj/NAME, ej/NAME")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the job has finished")
    parser.add_argument("--attempt", type=_positive, metavar="N", help="this attempt (default: the newest)")
    parser.add_argument("--tail", type=_count, metavar="N", help="only the last N lines of what is there")


def _generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="*", metavar="tj/NAME", help="the TrainJob that trained the model")
    parser.add_argument("--model", metavar="DIR", help="a model directory instead")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what to continue")
    parser.add_argument("--max-new-tokens", type=_positive, default=64, metavar="N", help="tokens to add at most (64)")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="T", help="1: as trained; lower: safer (0.8)")
    parser.add_argument("--top-k", type=_count, default=50, metavar="K", help="the K likeliest tokens, 0: all (50)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="the likeliest tokens up to P (1.0)")
    parser.add_argument("--seed", type=_count, default=0, metavar="N", help="the same seed gives the same text (0)")
    parser.add_argument("--greedy", action="store_true", help="always the likeliest token")


def _report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="+", metavar="ej/NAME", help="the EvalJob")
    parser.add_argument("--no-open", action="store_true", help="only print where it is")


def _chat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="+", metavar="sdeploy/NAME", help="the Deployment to talk to")
    parser.add_argument("-m", "--message", metavar="TEXT", help="one message and its answer, instead of a conversation")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before everything else")
    parser.add_argument("--max-tokens", type=_positive, metavar="N", help="tokens of an answer (the Deployment's own)")
    parser.add_argument("--temperature", type=float, metavar="T", help="0: always the likeliest token")
    parser.add_argument("--seed", type=_count, metavar="N", help="the same seed gives the same answer")
    parser.add_argument("--url", metavar="URL", help="base URL, where the Deployment's own cannot be reached from here")


def _rollout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="+", metavar="sdeploy/NAME", help="the Deployment")


def _lineage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="+", metavar="sdeploy/NAME", help="the Deployment, or a TrainJob: tj/NAME")
    parser.add_argument(
        "-o",
        "--output",
        choices=["tree", "dot", "json", "html"],
        default="tree",
        help="tree (default), dot, json, html",
    )


def _validate(parser: argparse.ArgumentParser) -> None:
    _files(parser)


def _version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--client", action="store_true", help="do not ask the server")


def _completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=["bash", "zsh"])


COMMANDS: tuple[Command, ...] = (
    Command("up", "This machine", "start the local control plane, the operator and Ray", _up, "up", remote=False),
    Command("status", "This machine", "what of it is running", _nothing, "status", remote=False),
    Command("down", "This machine", "stop it; what was stored stays", _down, "down", remote=False),
    Command("kubeconfig", "This machine", "print the path of its kubeconfig", _nothing, "kubeconfig", remote=False),
    Command("apply", "Objects", "create or change what manifests describe", _apply, "apply -f trainjob.yaml"),
    Command("get", "Objects", "list objects", _get, "get tj -w"),
    Command("describe", "Objects", "everything about an object, with its events", _describe, "describe tj/NAME"),
    Command("patch", "Objects", "change some fields", _patch, 'patch tj/NAME -p \'{"spec": {"suspend": true}}\''),
    Command("delete", "Objects", "delete objects, stopping what they run", _delete, "delete tj/NAME"),
    Command("wait", "Runs", "wait, with a progress bar", _wait, "wait tj/NAME --for=condition=Succeeded"),
    Command("logs", "Runs", "a run's output, also long after its end", _logs, "logs tj/NAME -f"),
    Command("generate", "Runs", "let a trained model continue a text", _generate, 'generate tj/NAME --prompt "def "'),
    Command("report", "Runs", "the report of an evaluation", _report, "report ej/NAME"),
    Command("chat", "Endpoints", "talk to a Deployment", _chat, 'chat sdeploy/NAME -m "Hello"'),
    Command("promote", "Endpoints", "let a Deployment's candidate take over now", _rollout, "promote sdeploy/NAME"),
    Command("abort", "Endpoints", "roll a Deployment's candidate back now", _rollout, "abort sdeploy/NAME"),
    Command("lineage", "Endpoints", "where a model comes from, back to the data", _lineage, "lineage sdeploy/NAME"),
    Command("validate", "Manifests", "check manifests without a server", _validate, "validate -f FILE", remote=False),
    Command("crds", "Manifests", "print the CustomResourceDefinitions", _nothing, "crds", remote=False),
    Command("version", "Other", "versions of this command and of the server", _version, "version"),
    Command("completion", "Other", "print a completion script", _completion, "completion bash", remote=False),
)


# --- types of arguments -------------------------------------------------------------------------------------------


def _positive(text: str) -> int:
    return _at_least(text, 1)


def _count(text: str) -> int:
    return _at_least(text, 0)


def _at_least(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"{value} is below {least}")
    return value


_BOOLEAN_OPTIONS = ("--wait",)


def _boolean(parser: argparse.ArgumentParser, option: str, text: str) -> None:
    """`--wait`, `--wait=true` and `--wait=false`, as kubectl has them."""
    parser.add_argument(option, choices=["true", "false"], default="true", help=text, metavar="BOOL")


# --- parsing ------------------------------------------------------------------------------------------------------


def find_command(name: str) -> Command:
    """The command of that name. Raises UsageError with the one that was probably meant."""
    for command in COMMANDS:
        if command.name == name:
            return command
    close = difflib.get_close_matches(name, [command.name for command in COMMANDS], n=1)
    raise UsageError(f"{name!r} is not a command", hint=f"slipway {close[0]}" if close else "slipway --help")


def split(argv: Sequence[str]) -> tuple[list[str], str | None, list[str]]:
    """(options before the command, the command or None, what follows it)."""
    index = 0
    while index < len(argv) and argv[index].startswith("-"):
        index += 2 if argv[index] in TARGET_OPTIONS else 1
    if index >= len(argv):
        return list(argv), None, []
    return list(argv[:index]), argv[index], list(argv[index + 1 :])


def command_parser(command: Command, program: str) -> argparse.ArgumentParser:
    """The parser of one command."""
    parser = _Parser(
        prog=f"{program} {command.name}",
        description=command.summary[:1].upper() + command.summary[1:] + ".",
        epilog=f"Example: {program} {command.example}",
        allow_abbrev=False,
    )
    command.configure(parser)
    if command.remote:
        target = parser.add_argument_group("target (default: as kubectl, else the local control plane)")
        target.add_argument("--kubeconfig", metavar="FILE", help="the kubeconfig to use")
        target.add_argument("--context", metavar="NAME", help="the context in it")
        target.add_argument("-n", "--namespace", metavar="NAME", help="the namespace")
    return parser


def parse(argv: Sequence[str], program: str) -> tuple[Command, argparse.Namespace]:
    """The command and its arguments. Raises UsageError; ends the process after printing help, as argparse does."""
    before, name, after = split(argv)
    if name is None:
        raise UsageError(f"no command after {' '.join(before)}", hint=f"{program} --help")
    command = find_command(name)
    if before and not command.remote:
        raise UsageError(f"{command.name} takes no {before[0]}: it is about this machine", hint=f"{program} {name}")
    words = [f"{word}=true" if word in _BOOLEAN_OPTIONS else word for word in [*before, *after]]
    return command, command_parser(command, program).parse_intermixed_args(words)


def overview(program: str) -> str:
    """What `slipway --help` prints."""
    lines = [
        f"{program}: train language models on Kubernetes, or on this machine.",
        "",
        f"Usage: {program} COMMAND [ARGUMENTS]      {program} COMMAND --help says more",
    ]
    groups = dict.fromkeys(command.group for command in COMMANDS)
    for group in groups:
        lines += ["", f"{group}:"]
        lines += [f"  {c.name:<12}{c.summary:<58}" for c in COMMANDS if c.group == group]
    lines += [
        "",
        "Start here:",
        f"  {program} up && {program} apply -f examples/trainjob.yaml && "
        f"{program} wait tj/stdlib-lm --for=condition=Succeeded",
        "",
        "The target is found as kubectl finds it (--kubeconfig, $KUBECONFIG, --context); when none is given, it is the",
        "local control plane if that is up, else ~/.kube/config.",
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"
