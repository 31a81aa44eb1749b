"""Print a script that completes vortex's commands, verbs, options and their values in a shell.

It goes where the shell looks: ~/.local/share/bash-completion/completions/vortex for bash, _vortex in a folder of $fpath
for zsh, ~/.config/fish/completions/vortex.fish for fish.

examples:
  vortex completion bash
  vortex completion zsh
  vortex completion fish
"""

from __future__ import annotations

import argparse
import importlib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field

from vortex.cli.main import COMMANDS, Parser, module_of


@dataclass(frozen=True, slots=True)
class Option:
    """An option with what may come after it; no ``values`` where that is not listed."""

    names: tuple[str, ...]
    about: str
    takes_value: bool
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Command:
    """A command, or a verb of one, as its parser declares it; ``values`` are what its arguments are chosen from."""

    name: str
    about: str
    options: tuple[Option, ...]
    values: tuple[str, ...] = ()
    verbs: tuple[Command, ...] = field(default=())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("shell", metavar="SHELL", choices=tuple(SCRIPTS), help=", ".join(SCRIPTS))


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    print("\n".join(SCRIPTS[args.shell](list(commands()))))
    return 0


def commands() -> Iterator[Command]:
    """All commands, read off their parsers."""
    for name, about in COMMANDS.items():
        module = importlib.import_module(module_of(name))
        parser = Parser(name, module.__doc__ or "")
        module.add_arguments(parser)
        yield _command(name, about, parser)


def _command(name: str, about: str, parser: argparse.ArgumentParser) -> Command:
    options: list[Option] = []
    values: list[str] = []
    verbs: list[Command] = []
    for a in parser._actions:
        listed = tuple(map(str, a.choices or ()))
        if isinstance(a, argparse._SubParsersAction):
            said = {c.dest: c.help or "" for c in a._choices_actions}
            verbs += [_command(verb, said.get(verb, ""), p) for verb, p in a.choices.items()]
        elif a.option_strings:
            options.append(Option(tuple(a.option_strings), a.help or "", a.nargs != 0, listed))
        else:
            values += listed
    return Command(name, about, tuple(options), tuple(values), tuple(verbs))


def _names(c: Command) -> list[str]:
    return [name for o in c.options for name in o.names]


# --- bash ----------------------------------------------------------------------------------------------------------


def bash(found: list[Command]) -> Iterator[str]:
    """Words by command and verb; files where none is listed."""
    yield "# completion of vortex for bash, printed by 'vortex completion bash'"
    yield "_vortex() {"
    yield "  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} words="
    yield "  local command=${COMP_WORDS[1]} verb="
    yield "  (( COMP_CWORD > 2 )) && verb=${COMP_WORDS[2]}"
    yield "  if (( COMP_CWORD == 1 )); then"
    yield f"    words={shlex.quote(' '.join(c.name for c in found))}"
    yield "  else"
    yield '    case "$command $verb" in'
    for c in found:
        for verb in c.verbs:
            yield f"      {shlex.quote(f'{c.name} {verb.name}')}) {_bash_words(verb)} ;;"
        yield f"      {shlex.quote(c.name + ' ')}*) {_bash_words(c)} ;;"
    yield "    esac"
    yield "  fi"
    yield '  COMPREPLY=($(compgen -W "$words" -- "$word"))'
    yield "}"
    yield "complete -o default -F _vortex vortex"


def _bash_words(c: Command) -> str:
    """Sets ``words``: the values of the option before, else options where a dash was typed, else verbs and values."""
    cases = [f"{'|'.join(o.names)}) words={shlex.quote(' '.join(o.values))}" for o in c.options if o.takes_value]
    bare = " ".join([*(v.name for v in c.verbs), *c.values])
    otherwise = f"*) [[ $word == -* ]] && words={shlex.quote(' '.join(_names(c)))} || words={shlex.quote(bare)}"
    return f"case $before in {' ;; '.join([*cases, otherwise])} ;; esac"


# --- zsh -----------------------------------------------------------------------------------------------------------


def zsh(found: list[Command]) -> Iterator[str]:
    """The same with what each command and option is for."""
    yield "#compdef vortex"
    yield "# completion of vortex for zsh, printed by 'vortex completion zsh'"
    yield "_vortex() {"
    yield "  local -a listed options"
    yield "  if (( CURRENT == 2 )); then"
    yield f"    listed=({_described((c.name, c.about) for c in found)})"
    yield "    _describe command listed; return"
    yield "  fi"
    yield '  case "$words[2] ${words[3]-}" in'
    for c in found:
        for verb in c.verbs:
            yield f"    {shlex.quote(f'{c.name} {verb.name}')}) {_zsh_words(verb)} ;;"
        yield f"    {shlex.quote(c.name + ' ')}*) {_zsh_words(c)} ;;"
    yield "  esac"
    yield "  if [[ $words[CURRENT] == -* ]]; then _describe option options"
    yield "  elif (( $#listed )); then _describe value listed"
    yield "  else _files; fi"
    yield "}"
    yield '[[ $funcstack[1] == _vortex ]] && _vortex "$@" || compdef _vortex vortex'


def _zsh_words(c: Command) -> str:
    options = _described((name, o.about) for o in c.options for name in o.names)
    values = _described([*((v.name, v.about) for v in c.verbs), *((value, "") for value in c.values)])
    of = [f"{'|'.join(o.names)}) listed=({_described((v, '') for v in o.values)})" for o in c.options if o.takes_value]
    return f"options=({options}); case $words[CURRENT-1] in {' ;; '.join([*of, f'*) listed=({values})'])} ;; esac"


def _described(pairs: Iterator[tuple[str, str]] | list[tuple[str, str]]) -> str:
    return " ".join(shlex.quote(f"{name}:{about}" if about else name) for name, about in pairs)


# --- fish ----------------------------------------------------------------------------------------------------------


def fish(found: list[Command]) -> Iterator[str]:
    """A line for each command, verb and option."""
    yield "# completion of vortex for fish, printed by 'vortex completion fish'"
    for c in found:
        yield f"complete -c vortex -n __fish_use_subcommand -f -a {c.name} -d {_fish(c.about)}"
    for c in found:
        here = f"__fish_seen_subcommand_from {c.name}"
        yield from _fish_options(c, here)
        for verb in c.verbs:
            other = " ".join(v.name for v in c.verbs)
            unsaid = _fish(f"{here}; and not __fish_seen_subcommand_from {other}")
            yield f"complete -c vortex -n {unsaid} -f -a {verb.name} -d {_fish(verb.about)}"
            yield from _fish_options(verb, f"{here}; and __fish_seen_subcommand_from {verb.name}")


def _fish_options(c: Command, here: str) -> Iterator[str]:
    if c.values:
        yield f"complete -c vortex -n {_fish(here)} -f -a {_fish(' '.join(c.values))}"
    for o in c.options:
        names = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in o.names)
        takes = f" -x -a {_fish(' '.join(o.values))}" if o.values else " -r" if o.takes_value else ""
        yield f"complete -c vortex -n {_fish(here)} {names}{takes} -d {_fish(o.about)}"


def _fish(text: str) -> str:
    """Quoted as fish reads it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SCRIPTS = {"bash": bash, "zsh": zsh, "fish": fish}
