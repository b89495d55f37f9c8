#!/usr/bin/env python3
"""Print the completion of ``cloudinit-conntrack`` for a shell: ``completion.py bash|zsh|fish``.

bash(1) "Programmable Completion", zshcompsys(1) "_arguments", fish complete(1).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from commandline import CommandLine, Option, Verb, command_line

_BASH_ACTIONS = {"file": "-f", "directory": "-d", "text": ""}
_ZSH_ACTIONS = {"file": "_files", "directory": "_files -/", "text": " "}
_FISH_ACTIONS = {"": "", "file": " -r -F", "directory": " -x -a '(__fish_complete_directories)'", "text": " -x"}


def bash(line: CommandLine) -> str:
    """The verb is the first word that is one; before it the program's own options are offered."""
    names = " ".join(verb.name for verb in line.verbs)
    return "\n".join((
        f"# bash completion of {line.program}, generated from its parser",
        "_cloudinit_conntrack()",
        "{",
        '    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} verb= each',
        '    for each in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
        f'        case $each in {"|".join(verb.name for verb in line.verbs)}) verb=$each; break ;; esac',
        "    done",
        "    compopt -o filenames 2>/dev/null",
        '    case $verb:$before in',
        *(_bash_value(verb, option) for verb in line.verbs for option in verb.options if option.takes),
        "    esac",
        "    case $verb in",
        *(f"        {verb.name}) {_bash_words(verb.options, verb.arguments)} ;;" for verb in line.verbs),
        f"        *) {_bash_words(line.options, ())}",
        f'           COMPREPLY+=($(compgen -W "{names}" -- "$word")) ;;',
        "    esac",
        "}",
        f"complete -F _cloudinit_conntrack {line.program}",
    )) + "\n"


def _bash_value(verb: Verb, option: Option) -> str:
    wanted = "|".join(f"{verb.name}:{name}" for name in option.names)
    action = f"-W '{' '.join(option.choices)}'" if option.choices else _BASH_ACTIONS[option.takes]
    found = f'COMPREPLY=($(compgen {action} -- "$word"))' if action else "COMPREPLY=()"
    return f"        {wanted}) {found}; return ;;"


def _bash_words(options: tuple[Option, ...], arguments: tuple[Option, ...]) -> str:
    names = " ".join(name for option in options for name in option.names)
    words = f'COMPREPLY=($(compgen -W "{names}" -- "$word"))'
    files = ' COMPREPLY+=($(compgen -f -- "$word"))' if any(a.takes == "file" for a in arguments) else ""
    return words + (";" + files if files else "")


def zsh(line: CommandLine) -> str:
    """One ``_arguments`` for the program, and one for each verb."""
    return "\n".join((
        f"#compdef {line.program}",
        f"# zsh completion of {line.program}, generated from its parser",
        "local context state state_descr ret=1",
        "typeset -A opt_args",
        f"_arguments -C {' '.join(_zsh_option(option) for option in line.options)} \\",
        "    '1: :->verb' '*:: :->rest' && ret=0",
        "case $state in",
        "verb)",
        "    local -a verbs=(",
        *(f"        {_quoted(verb.name + ':' + verb.help.replace(':', chr(92) + ':'))}" for verb in line.verbs),
        "    )",
        "    _describe -t verbs verb verbs && ret=0 ;;",
        "rest)",
        "    case $words[1] in",
        *(f"    {verb.name}) _arguments {_zsh_words(verb)} && ret=0 ;;" for verb in line.verbs),
        "    esac ;;",
        "esac",
        "return ret",
    )) + "\n"


def _zsh_words(verb: Verb) -> str:
    arguments = (f"'{'*' if a.many else number}:{a.value}:{_zsh_action(a)}'"
                 for number, a in enumerate(verb.arguments, 1))
    return " ".join((*map(_zsh_option, verb.options), *arguments))


def _zsh_option(option: Option) -> str:
    value = f":{option.value}:{_zsh_action(option)}" if option.takes else ""
    words = "".join("\\" + letter if letter in "[]:" else letter for letter in option.help)
    told = _quoted(f"[{words}]{value}")
    if len(option.names) == 1:
        return option.names[0] + told
    return f"'({' '.join(option.names)})'{{{','.join(option.names)}}}{told}"


def _zsh_action(option: Option) -> str:
    return f"({' '.join(option.choices)})" if option.choices else _ZSH_ACTIONS[option.takes]


def fish(line: CommandLine) -> str:
    """One ``complete`` for each verb and option."""
    names = " ".join(verb.name for verb in line.verbs)
    before = f"-n 'not __fish_seen_subcommand_from {names}'"
    return "\n".join((
        f"# fish completion of {line.program}, generated from its parser",
        f"complete -c {line.program} -f",
        *(_fish_option(line.program, before, option) for option in line.options),
        *(f"complete -c {line.program} {before} -a {verb.name} -d {_quoted(verb.help)}" for verb in line.verbs),
        *(text for verb in line.verbs for text in _fish_verb(line.program, verb)),
    )) + "\n"


def _fish_verb(program: str, verb: Verb) -> Iterator[str]:
    behind = f"-n '__fish_seen_subcommand_from {verb.name}'"
    for option in verb.options:
        yield _fish_option(program, behind, option)
    if any(argument.takes == "file" for argument in verb.arguments):
        yield f"complete -c {program} {behind} -F"


def _fish_option(program: str, condition: str, option: Option) -> str:
    names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
    values = f" -x -a {_quoted(' '.join(option.choices))}" if option.choices else _FISH_ACTIONS[option.takes]
    return f"complete -c {program} {condition} {names}{values} -d {_quoted(option.help)}"


def _quoted(text: str) -> str:
    """*text* in single quotes, as all three shells read it when the quote itself stands outside of them."""
    return "'" + text.replace("'", "'\\''") + "'"


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in SHELLS:
        sys.exit(f"usage: completion.py {'|'.join(SHELLS)}")
    sys.stdout.write(SHELLS[sys.argv[1]](command_line()))
