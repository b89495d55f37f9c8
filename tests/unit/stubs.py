"""A fake host that answers as a kernel does: rules, modules and their users, kept in files.

:class:`LiveHost` puts one small shell script behind every command that apply and revert
call.  The script keeps tables and modules, counts users, loads what a rule needs unless
modprobe.d blocks it, and refuses to unload what is in use, so that success shows in files
and not in exit statuses alone.  It can also be told to fail, or to lie, at its Nth change.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from fakehost import KNOWN, FakeHost

from cloudinit_conntrack.host.root import Root

AWK = os.path.realpath("/usr/bin/awk")  # the link behind it is lost where the tests hide /etc
STATE_DIR = "/var/lib/cloudinit-conntrack"
RULES = ("legacy-ipv4", "legacy-ipv6", "nft-ipv4", "nft-ipv6")
Snapshot = dict[str, tuple[object, ...]]

_DEPENDENCIES = """\
xt_conntrack nf_conntrack
xt_CT nf_conntrack
nf_conntrack nf_defrag_ipv4
nf_conntrack_netbios_ns nf_conntrack_broadcast nf_conntrack
nf_conntrack_broadcast nf_conntrack
nf_nat nf_conntrack
iptable_nat nf_nat
ip_vs nf_conntrack
"""

_SCRIPT = r"""#!/bin/sh
K=%(kernel)s ROOT=%(tree)s
me=${0##*/}
case $me in *-legacy*) backend=legacy ;; *-nft*) backend=nft ;; *) backend=%(backend)s ;; esac
case $me in ip6*) family=ipv6 ;; *) family=ipv4 ;; esac

# /proc/modules and /proc/net/ip_tables_names, from what is loaded and what the rules use.
show() {
    [ -e "$K/loaded" ] && %(awk)s '
        FILENAME ~ /needs$/ { for (i = 2; i <= NF; i++) needs[$1] = needs[$1] " " $i; next }
        FILENAME ~ /users$/ { users[$1] += $2; next }
        FILENAME ~ /loaded$/ { order[++n] = $1; next }
        /-m (state|conntrack) / { users["xt_conntrack"]++ }
        /-j (CT|NOTRACK)/ { users["xt_CT"]++ }
        END {
            for (i = 1; i <= n; i++) {
                many = split(needs[order[i]], on, " ")
                for (k = 1; k <= many; k++) { holders[on[k]] = holders[on[k]] order[i] ","; users[on[k]]++ }
            }
            for (i = 1; i <= n; i++)
                print order[i], 16384, users[order[i]] + 0, (holders[order[i]] ? holders[order[i]] : "-"), "Live 0x0"
        }' "$K/needs" "$K/users" "$K/loaded" "$K"/rules/*/* >"$ROOT/proc/modules"
    for pair in ipv4:ip ipv6:ip6; do
        for table in "$K/rules/legacy-${pair%%:*}"/*; do
            case $table in *\*) ;; *) echo "${table##*/}" ;; esac
        done >"$ROOT/proc/net/${pair#*:}_tables_names"
    done
}

is_loaded() { /bin/grep -qx "$1" "$K/loaded"; }

load() {  # a module with what it needs; fails when modprobe.d blocks one of them
    [ -e "$K/loaded" ] || return 0
    is_loaded "$1" && return 0
    /bin/grep -qs "^install $1 /bin/false" "$ROOT"/etc/modprobe.d/*.conf && return 1
    for one in $(/bin/sed -n "s/^$1 //p" "$K/needs"); do (load "$one") || return 1; done
    echo "$1" | /bin/cat - "$K/loaded" >"$K/loaded.new"
    /bin/mv "$K/loaded.new" "$K/loaded"
    if [ "$1" = nf_conntrack ]; then
        : >"$ROOT/proc/net/nf_conntrack"
        echo 65536 >"$ROOT/proc/sys/net/netfilter/nf_conntrack_max"
    fi
}

change() {  # every command that changes the kernel comes through here
    read -r count <"$K/count"
    count=$((count + 1))
    echo $count >"$K/count"
    echo "$me $*" >>"$K/changes"
    read -r at kind <"$K/fault"
    [ "$at" = "$count" ] || return 0
    case $kind in
    fail) echo "$me: injected failure" >&2; exit 1 ;;
    lie) exit 0 ;;
    grumble) trap 'exit 1' EXIT ;;
    esac
}

save() {
    set -- "$K/rules/$backend-$family"/*
    [ ! -e "$1" ] || exec /bin/cat "$@"
}

restore() {
    case " $* " in *" --test "*) exit 0 ;; esac  # no proof, as with the real ones
    change "$@"
    /bin/cat >"$K/in.$me"
    want=$(%(awk)s '
        /-m broken/ { print "broken", NR; exit }
        /-m (state|conntrack) / { want["xt_conntrack"] }
        /-j (CT|NOTRACK)/ { want["xt_CT"] }
        /^\*nat/ { want["iptable_nat"] }
        END { for (one in want) print one }' "$K/in.$me")
    case $want in broken*) echo "$me: line ${want#* } failed" >&2; exit 1 ;; esac
    for one in $want; do
        load "$one" || { echo "$me: line 1 failed" >&2; show; exit 1; }
    done
    if [ ! -e /proc/$PPID/ns/net ] || [ /proc/self/ns/net -ef /proc/$PPID/ns/net ]; then
        %(awk)s -v place="$K/rules/$backend-$family/" '
            /^#/ { next }
            /^\*/ { file = place substr($1, 2); printf "" >file }
            /^-/ { $0 = "[0:0] " $0 }
            { print >file }' "$K/in.$me"
    fi
    show
}

case "$me $*" in
unshare\ * | nsenter\ *) exec "/usr/bin/$me" "$@" ;;
*" --version") [ $backend = nft ] && echo "iptables v1.8.9 (nf_tables)" || echo "iptables v1.8.9 (legacy)" ;;
*" --help") echo " --wait -w [seconds]" ;;
*-save\ *) save ;;
*-restore\ *) restore "$@" ;;
"modprobe -n -v -D "*)
    [ -e "$ROOT/etc/modprobe.d/00-cloudinit-conntrack.conf" ] &&
        echo "install /bin/false" || echo "insmod /lib/modules/$4.ko" ;;
modprobe\ *)
    change "$@"
    load "$1" || { echo "modprobe: FATAL: $1 is blocked" >&2; exit 1; }
    show ;;
rmmod\ *)
    change "$@"
    case $1 in -f) shift; [ -e "$K/force" ] || exit 1; used=0 ;;
    *) used=$(/bin/sed -n "s/^$1 16384 \([0-9]*\) .*/\1/p" "$ROOT/proc/modules") ;; esac
    [ "$used" = 0 ] || { echo "rmmod: ERROR: Module $1 is in use" >&2; exit 1; }
    /bin/sed -i "/^$1\$/d" "$K/loaded"
    [ "$1" = iptable_nat ] && /bin/rm -f "$K/rules/legacy-ipv4/nat"
    if [ "$1" = nf_conntrack ]; then
        /bin/rm -f "$ROOT/proc/net/nf_conntrack" "$ROOT"/proc/sys/net/netfilter/nf_conntrack_*
    fi
    show ;;
"nft -j list tables" | "nft -j list ruleset") echo '{"nftables": []}' ;;
"nft -j list table "*) echo '{"nftables": []}' ;;
"nft delete table "*) change "$@"; /bin/rm -f "$K/rules/nft-$([ "$3" = ip ] && echo ipv4 || echo ipv6)/$4" ;;

cat\ *|cat) exec /bin/cat "$@" ;;
*) echo "$me $*" >>"$K/strange"; exit 127 ;;
esac
"""


@dataclass(frozen=True)
class HostTree(Root):
    """A tree in a temporary directory that stands for the running host."""

    @property
    def is_host(self) -> bool:
        """Yes: its /proc is the kernel's."""
        return True


class LiveHost(FakeHost):
    """A fake host with a kernel.  *modules* are loaded, newest first; ``None`` builds conntrack in."""

    def __init__(self, base: Path, modules: tuple[str, ...] | None = (), backend: str = "legacy") -> None:
        base.mkdir(exist_ok=True)
        super().__init__(base)
        self.root = HostTree(str(self.tree))
        self.kernel = base / "kernel"
        for place in RULES:
            (self.kernel / "rules" / place).mkdir(parents=True)
        (self.kernel / "rules/none/none").parent.mkdir()
        (self.kernel / "rules/none/none").touch()  # so that there is always a file for awk to read
        for name, content in (("needs", _DEPENDENCIES), ("users", ""), ("count", "0\n"), ("fault", "0 none\n")):
            (self.kernel / name).write_text(content)
        if modules is not None:
            (self.kernel / "loaded").write_text("".join(f"{name}\n" for name in modules))
        script = self.kernel / "script"
        script.write_text(_SCRIPT % {"kernel": self.kernel, "tree": self.tree, "backend": backend, "awk": AWK})
        script.chmod(0o755)
        for name in KNOWN:
            (Path(self.path) / name).unlink()
            (Path(self.path) / name).symlink_to(script)
        self.boot(None if modules is None else "", conntrack_builtin=modules is None)
        for name in ("ip_tables_names", "ip6_tables_names"):
            self.write(f"/proc/net/{name}")
        self.write("/proc/sys/kernel/random/boot_id", "boot-1\n")
        for name in modules or ():
            self.write(f"/sys/module/{name}/initstate", "live\n")
        if "nf_conntrack" in (modules or ()):
            self.write("/proc/net/nf_conntrack")
            self.write("/proc/sys/net/netfilter/nf_conntrack_max", "65536\n")
            self.write("/sys/module/nf_conntrack/parameters/hashsize", "4096\n")
        for place in ("/etc/modprobe.d/", "/run/", "/var/lib/", "/proc/sys/net/netfilter/"):
            (self.tree / place.strip("/")).mkdir(parents=True, exist_ok=True)
        self._show(backend)

    def _show(self, backend: str) -> None:
        """Let the kernel write its files, by a restore of nothing."""
        self.run(f"iptables-{backend}-restore", "-c", stdin="")
        self.clear_changes()

    def run(self, name: str, *args: str, stdin: str = "") -> int:
        """Call a stub, as an administrator would."""
        import subprocess

        done = subprocess.run([f"{self.path}/{name}", *args], input=stdin.encode(), timeout=30, check=False)
        return done.returncode

    def rules(self, backend: str, family: str, text: str) -> None:
        """Load rules."""
        assert self.run(f"{'iptables' if family == 'ipv4' else 'ip6tables'}-{backend}-restore", "-c", stdin=text) == 0
        self.clear_changes()

    def live(self, backend: str, family: str) -> str:
        """The rules that are loaded now."""
        return "".join(f.read_text() for f in sorted((self.kernel / "rules" / f"{backend}-{family}").iterdir()))

    def loaded(self) -> set[str]:
        """The modules that are loaded now."""
        return set((self.kernel / "loaded").read_text().split())

    def hold(self, module: str, users: int = 1) -> None:
        """Somebody who cannot be seen uses *module*."""
        (self.kernel / "users").write_text(f"{module} {users}\n")
        self._show("legacy")

    def fault(self, at: int, kind: str) -> None:
        """Let the *at*-th change from now on ``fail``, ``lie`` (say it is done) or ``grumble`` (say it failed)."""
        self.clear_changes()
        (self.kernel / "fault").write_text(f"{at} {kind}\n")

    def clear_changes(self) -> None:
        """Forget what was changed; no fault any more."""
        (self.kernel / "count").write_text("0\n")
        (self.kernel / "fault").write_text("0 none\n")
        (self.kernel / "changes").unlink(missing_ok=True)

    def changes(self) -> list[str]:
        """The commands that changed the kernel, in order."""
        file = self.kernel / "changes"
        return file.read_text().splitlines() if file.exists() else []

    def strange(self) -> str:
        """Commands that the kernel does not know."""
        file = self.kernel / "strange"
        return file.read_text() if file.exists() else ""

    def snapshot(self) -> Snapshot:
        """Everything that revert has to give back: files, rules, modules."""
        found = snapshot(self.tree, STATE_DIR, "/proc", "/sys", "/run/cloudinit-conntrack")
        found.update((place, (in_use(self.live(*place.split("-"))),)) for place in RULES)
        if (self.kernel / "loaded").exists():
            lines = (self.tree / "proc/modules").read_text().splitlines()
            found["modules"] = tuple(sorted(" ".join(sorted(line.replace(",", " ").split())) for line in lines))
        return found


def in_use(rules: str) -> str:
    """*rules* without the tables that do nothing: a legacy table goes with its module only."""
    tables = re.findall(r"^\*.*?^COMMIT\n", rules, re.MULTILINE | re.DOTALL)
    return "".join(table for table in tables if "-A " in table or " DROP " in table)


def snapshot(tree: Path, *without: str) -> Snapshot:
    """path -> kind, mode, owner and, of files, content, mtime and extended attributes."""
    found: Snapshot = {}
    for path in sorted(tree.rglob("*")):
        name = "/" + str(path.relative_to(tree))
        if any(name == one or name.startswith(one + "/") for one in without):
            continue
        stat = path.lstat()
        facts: tuple[object, ...] = (stat.st_mode, stat.st_uid, stat.st_gid)
        if path.is_symlink():
            facts += (os.readlink(path),)
        elif path.is_file():
            xattrs = tuple((x, os.getxattr(path, x)) for x in sorted(os.listxattr(path)))
            facts += (path.read_bytes(), stat.st_mtime_ns, xattrs)
        found[name] = facts
    return found


# --- processes that die, and file systems that fail ------------------------------------


@contextmanager
def _collected(pid: int) -> Iterator[Callable[[], int]]:
    """Wait for *pid*, whatever happens."""
    state: list[int] = []

    def wait() -> int:
        if not state:
            state.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        return state[0]

    try:
        yield wait
    finally:
        wait()


def forked(function: Callable[[], Any], network: bool = False) -> Any:
    """Call *function* in a process of its own; gives what it returns, or the signal that killed it (negative).

    With *network*, in a network namespace of its own.  What it raises fails the test.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reading)
            if network and ctypes.CDLL(None, use_errno=True).unshare(0x40000000):  # CLONE_NEWNET
                raise OSError(ctypes.get_errno(), "unshare")
            with os.fdopen(writing, "wb") as out:
                out.write(pickle.dumps(function()))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with _collected(pid) as wait, os.fdopen(reading, "rb") as answer:
        content = answer.read()
        status = wait()
    assert status <= 0, "the process ended with an exception, see its traceback"
    return status if status < 0 else pickle.loads(content)


def touching(event: str, args: tuple[Any, ...]) -> bool:
    """Whether an audit event (docs.python.org, "Audit events table") is about to change the host."""
    if event == "open":
        return isinstance(args[2], int) and bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    if event == "subprocess.Popen":
        name, words = os.path.basename(str(args[0])), [str(word) for word in args[1]]
        return (name.endswith("-restore") and "--test" not in words) or name == "rmmod" or words[:1] + words[1:2] == [
            "modprobe", "nf_conntrack"]  # fmt: skip
    return event in (
        "os.rename",
        "os.remove",
        "os.mkdir",
        "os.rmdir",
        "os.chmod",
        "os.chown",
        "os.utime",
        "os.setxattr",
    )


def touches(function: Callable[[], object]) -> int:
    """How often *function* touches the host; it is called, in a process of its own."""

    def counted() -> int:
        seen = [0]

        def hook(event: str, args: tuple[Any, ...]) -> None:
            seen[0] += touching(event, args)

        sys.addaudithook(hook)
        function()
        return seen[0]

    number = forked(counted)
    assert isinstance(number, int) and number > 5
    return number


def killed_at(number: int, function: Callable[[], object]) -> None:
    """Call *function* in a process of its own that is killed just before its *number*-th touch."""

    def doomed() -> None:
        seen = [0]

        def hook(event: str, args: tuple[Any, ...]) -> None:
            if touching(event, args):
                seen[0] += 1
                if seen[0] == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        function()

    assert forked(doomed) == -signal.SIGKILL, f"it ended before touch {number}"


def fail_at(number: int, for_good: bool = False) -> None:
    """Let the *number*-th touch fail as on a full disk, and with *for_good* all later ones."""
    seen = [0]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if touching(event, args):
            seen[0] += 1
            if seen[0] == number or (for_good and seen[0] > number):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sys.addaudithook(hook)
