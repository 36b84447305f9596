"""`slipway completion`: a script that completes commands, options, types and names of TrainJobs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from slipway_cli.parser import COMMANDS, TARGET_OPTIONS, command_parser

_SCRIPT = """\
# Completion for slipway. Use: source <(slipway completion {shell})
{prelude}_slipway() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} command="" word value=""
  COMPREPLY=()
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    if [ -n "$value" ]; then value=""; continue; fi
    case $word in {target_options}) value=next ;; -*) ;; *) command=$word; break ;; esac
  done
  case $current in
    -*)
      case $command in
{options}
      esac
      return ;;
    tj/*)
      local names
      names=$(slipway get tj -o name 2>/dev/null)
      COMPREPLY=($(compgen -W "${{names//trainjob.slipway.dev/tj}}" -- "$current"))
      return ;;
  esac
  case $command in
    "") COMPREPLY=($(compgen -W "{commands}" -- "$current")) ;;
    report) COMPREPLY=($(compgen -W "ej/" -- "$current")); compopt -o nospace ;;
    get|describe|wait|delete|patch|logs|generate)
      COMPREPLY=($(compgen -W "tj/ ej/" -- "$current")); compopt -o nospace ;;
    chat|promote|abort) COMPREPLY=($(compgen -W "sdeploy/" -- "$current")); compopt -o nospace ;;
  esac
}}
complete -o default -F _slipway slipway
"""


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Prints the script for a shell."""
    cases = []
    for command in COMMANDS:
        parser = command_parser(command, "slipway")
        options = [option for action in parser._actions for option in action.option_strings]
        cases.append(f'        {command.name}) COMPREPLY=($(compgen -W "{" ".join(options)}" -- "$current")) ;;')
    sys.stdout.write(
        _SCRIPT.format(
            shell=arguments.shell,
            prelude="autoload -U +X bashcompinit && bashcompinit\n" if arguments.shell == "zsh" else "",
            target_options="|".join(TARGET_OPTIONS),
            commands=" ".join(command.name for command in COMMANDS),
            options="\n".join(cases),
        )
    )
    return 0
