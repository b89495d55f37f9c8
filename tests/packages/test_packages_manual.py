"""Manual page and completions say what ``--help`` says: each verb, and each of its options."""

from __future__ import annotations

import re
import sys
from functools import cache

from .building import ROOT, run

OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


@cache
def help_of(*words: str) -> str:
    return run("env", "COLUMNS=200", f"--chdir={ROOT}", sys.executable, "-m", "cloudinit_conntrack", *words, "--help")


@cache
def generated(*words: str) -> str:
    script, *shell = words
    return run(sys.executable, str(ROOT / "packages" / script), *shell)


def verbs() -> list[str]:
    return re.findall(r"(?m)^    ([a-z-]+) ", help_of())


def options(*verb: str) -> set[str]:
    """What the list of options names; in the words of help there may be others' options."""
    listed = re.findall(r"(?m)^  (-\S.*?)(?:  |$)", help_of(*verb))
    return {name for line in listed for name in OPTION.findall(line)}


def test_there_is_something_to_compare() -> None:
    assert {"status", "apply", "rewrite"} <= set(verbs())
    assert {"-c", "--config", "--confirm-within", "--help", "-v"} <= options("apply")
    assert options() == {"-h", "--help", "--version"}


def test_the_page_names_each_verb_with_its_options() -> None:
    page = generated("manual.py").replace("\\-", "-")
    told = dict(re.findall(r"(?ms)^\.SS (\S+)\n(.*?)(?=^\.S[SH])", page))
    assert sorted(told) == sorted(verbs())
    common = set(re.findall(r"\\fB(-\S+?)\\fP", page.partition("\n.SH OPTIONS\n")[2].partition("\n.SH ")[0]))
    assert common - {"--version"} == set.intersection(*(options(verb) for verb in verbs()))
    for verb, text in told.items():
        assert common - {"--version"} | set(re.findall(r"\\fB(-\S+?)\\fP", text)) == options(verb), verb


def test_the_page_has_what_no_parser_knows() -> None:
    page = generated("manual.py")
    for title in ("NAME", "SYNOPSIS", "MODES", "VERBS", "OPTIONS", "EXIT STATUS", "FILES", "EXAMPLES", "SEE ALSO"):
        assert f"\n.SH {title}\n" in page
    assert "@" not in page
    exits = page.partition("\n.SH EXIT STATUS\n")[2].partition("\n.SH ")[0]
    assert re.findall(r"(?m)^\.B (\d)$", exits) == re.findall(r"\b(\d) ", help_of().partition("exit codes:")[2])


def completed(*words: str) -> list[str]:
    """What bash offers for the last of *words*."""
    script = generated("completion.py", "bash") + (
        'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _cloudinit_conntrack; printf "%s\\n" "${COMPREPLY[@]}"')
    return run("bash", "--norc", "-c", script, "bash", "cloudinit-conntrack", *words).split()


def test_bash_completes_verbs_options_and_values() -> None:
    assert completed("") == ["-h", "--help", "--version", *verbs()]
    assert completed("re") == [verb for verb in verbs() if verb.startswith("re")]
    for verb in verbs():
        assert set(completed(verb, "-")) == options(verb), verb
    assert completed("status", "--format", "") == ["text", "json"]
    assert completed("rewrite", "--family", "ipv6") == ["ipv6"]
    assert "/etc/hostname" in completed("apply", "-c", "/etc/hostn")
    assert "/etc/hostname" in completed("rewrite", "/etc/hostn")
    assert "/etc/hostname" in completed("fleet-report", "/etc", "/etc/hostn")  # the second too
    assert completed("plan", "--root", "/etc/hostn") == []  # a file is no directory


def test_zsh_and_fish_name_each_verb_with_its_options() -> None:
    arguments = dict(re.findall(r"(?m)^    ([a-z-]+)\) _arguments (.*) && ret=0", generated("completion.py", "zsh")))
    lines = generated("completion.py", "fish")
    assert sorted(arguments) == sorted(verbs())
    assert arguments["fleet-report"].endswith(" '*:FILE:_files'") and arguments["rewrite"].endswith(" '1:FILE:_files'")
    for verb, text in arguments.items():
        names = set(re.findall(r"(?:^| |[{,])(--?[a-z][a-z-]*)(?='\[|[,}])", text))
        assert names == options(verb), verb
        mine = re.findall(rf"(?m)^complete .*_from {verb}' (.*?) -d", lines)
        spelt = {f"-{name}" if kind == "s" else f"--{name}"
                 for line in mine for kind, name in re.findall(r"(?:^| )-([sl]) (\S+)", line)}
        assert spelt == options(verb), verb
