"""Files, commands and the journal: the only part that changes anything."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
from typing import Any

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NAME = "cloudinit-conntrack"
STATE = f"/var/lib/{NAME}"
JOURNAL = f"{STATE}/journal"
SECONDS = 300
FILTER_MODULE = r"(x|ip|ip6)_tables|ip6?table_\w+|(xt|ipt|ip6t|nf|nft|nfnetlink)_\w+|nfnetlink|libcrc32c"

Action = dict[str, Any]


class Failed(Exception):
    """What is wrong, where, and what to do, in one line."""


def read(path: str) -> str:
    """The text of *path*; empty when it is not there or is not to be read."""
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "surrogateescape")
    except OSError:
        return ""


def names(path: str) -> list[str]:
    """The sorted names in the directory *path*."""
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def find(name: str) -> str | None:
    """The path of the command *name*."""
    return shutil.which(name, path=PATH)


def run(argv: list[str], given: str = "", check: bool = True) -> str:
    """What *argv* prints; :class:`Failed` where it does not end well."""
    try:
        done = subprocess.run(argv, input=encoded(given), capture_output=True, timeout=SECONDS, cwd="/",
                              env={"PATH": PATH, "LC_ALL": "C"}, start_new_session=True)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"{argv[0]}: {error}") from None
    if check and done.returncode:
        said = done.stderr.decode("utf-8", "replace")[-400:]
        raise Failed(f"{' '.join(argv)}: exit status {done.returncode}: {said}")
    return done.stdout.decode("utf-8", "surrogateescape")


def encoded(text: str) -> bytes:
    """*text* as bytes, those that were no UTF-8 included."""
    return text.encode("utf-8", "surrogateescape")


def packed(content: bytes) -> str:
    """Bytes as the journal holds them."""
    return base64.b64encode(content).decode()


# --- files -----------------------------------------------------------------------------


def image(path: str) -> Any:
    """The whole regular file *path* with all that it is; ``None`` when there is none."""
    if not os.path.lexists(path):
        return None
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        raise Failed(f"{path}: is not a regular file: put one there, or remove it")
    return {"content": packed(encoded(read(path))), "mode": stat.S_IMODE(found.st_mode), "uid": found.st_uid,
            "gid": found.st_gid, "atime_ns": found.st_atime_ns, "mtime_ns": found.st_mtime_ns,
            "xattrs": [(n, packed(os.getxattr(path, n))) for n in sorted(os.listxattr(path))]}


def put(path: str, new: Any) -> None:
    """Make *path* the file *new*, written beside it, synced, renamed; or remove it."""
    place, name = os.path.split(path)
    if new is None:
        if os.path.lexists(path):
            os.unlink(path)
            sync(place)
        return
    os.makedirs(place, exist_ok=True)
    beside = f"{place}/.{name}.{NAME}-{os.urandom(8).hex()}"
    opened = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(opened, "wb") as file:
            file.write(base64.b64decode(new["content"]))
            file.flush()
            os.fchown(opened, new["uid"], new["gid"])
            for key, value in new["xattrs"]:
                os.setxattr(opened, key, base64.b64decode(value))
            os.fchmod(opened, new["mode"])
            if new["mtime_ns"]:
                os.utime(opened, ns=(new["atime_ns"], new["mtime_ns"]))
            os.fsync(opened)
        os.rename(beside, path)
    except BaseException:
        os.unlink(beside)
        raise
    sync(place)


def sync(place: str) -> None:
    """Make what happened in the directory *place* survive a power cut."""
    opened = os.open(place, os.O_RDONLY)
    os.fsync(opened)
    os.close(opened)


def same(one: Any, two: Any) -> bool:
    """Whether two images are alike in what others can change."""
    return one is two or bool(one and two and all(one[k] == two[k] for k in ("content", "mode", "uid", "gid")))


def written(path: str, before: Any, text: str, reason: str) -> Action:
    """The action that makes *path*, which is *before* now, hold *text*."""
    after = dict(before or {"mode": 0o644, "uid": 0, "gid": 0, "xattrs": []}, content=packed(encoded(text)),
                 atime_ns=0, mtime_ns=0)
    return {"action": "WriteFile", "path": path, "before": before, "after": after, "reason": reason}


# --- rules and modules -----------------------------------------------------------------


def tool(backend: str, family: str, verb: str) -> str | None:
    """``iptables-legacy-save`` and so on, or the plain name where that is the one meant."""
    plain = "ip6tables" if family == "ipv6" else "iptables"
    path = find(f"{plain}-{verb}")
    plainly = path and ("nft" in os.path.realpath(path)) == (backend == "nft")
    return find(f"{plain}-{backend}-{verb}") or (path if plainly else None)


def restore(backend: str, family: str, text: str) -> None:
    """Replace the tables in *text*, each in one transaction; tested first."""
    command = tool(backend, family, "restore")
    if text and command is None:
        raise Failed(f"no {backend} iptables-restore for {family}: install iptables")
    for more in (["--test"], []) if text else ():
        run([str(command), "-w", "10", "-c", *more], text)


def drop(backend: str, family: str, table: str) -> None:
    """Take *table* away; a legacy table can only be emptied, and goes with its module."""
    if backend == "nft" and find("nft"):
        run(["nft", "delete", "table", "ip6" if family == "ipv6" else "ip", table], check=False)
    else:
        chains = {"nat": "PREROUTING INPUT OUTPUT POSTROUTING", "raw": "PREROUTING OUTPUT"}.get(
            table, "PREROUTING INPUT FORWARD OUTPUT POSTROUTING").split()
        restore(backend, family, "".join((f"*{table}\n", *(f":{c} ACCEPT [0:0]\n" for c in chains), "COMMIT\n")))


def modules() -> dict[str, tuple[int, list[str]]]:
    """The loaded modules: how many use each, and which modules among them."""
    rows = (line.split() for line in read("/proc/modules").splitlines())
    return {r[0]: (int(r[2]) if r[2].isdigit() else 0, [h for h in r[3].split(",") if h[:1].isalnum()]) for r in rows}


def unload_strays(before: list[str]) -> None:
    """Unload netfilter's modules that were not there *before* and that nothing uses."""
    for _ in range(32):
        strays = [n for n, (users, _) in modules().items()
                  if not users and n not in before and re.fullmatch(FILTER_MODULE, n)]
        if not strays:
            return
        for name in strays:
            run(["rmmod", name], check=False)


# --- actions ---------------------------------------------------------------------------


def perform(action: Action) -> None:
    """Do *action*; :class:`Failed` when the host will not."""
    kind = action["action"]
    if kind == "WriteFile":
        put(action["path"], action["after"])
    elif kind == "LoadRules":
        restore(action["backend"], action["family"], action["after"])
        for table in action["dropped"]:
            drop(action["backend"], action["family"], table)
    elif kind == "UnloadModule":
        run(["rmmod", action["name"]], check=False)
        if action["name"] in modules():
            raise Failed(f"module {action['name']} is in use: a rule, another network namespace or a program holds it")
    else:
        prove(action)


def prove(action: Action) -> None:
    """Load a saved rule-set in a network namespace of its own; conntrack must stay away."""
    plain = "ip6tables" if action["family"] == "ipv6" else "iptables"
    run(["unshare", "-n", str(find(f"{plain}-restore")), "-w", "10"], action["text"])
    if "nf_conntrack" in modules():
        raise Failed(f"{action['path']}: loading it loads nf_conntrack: some rule in it still needs it")


def undo(action: Action) -> str:
    """Undo *action* over whatever is there now; gives a note, or nothing."""
    kind, note = action["action"], ""
    if kind == "WriteFile":
        path, found = action["path"], image(action["path"])
        if found and not same(found, action["before"]) and not same(found, action["after"]):
            aside = f"{STATE}/kept/{path.strip('/').replace('/', '_')}"
            put(aside, found)
            note = f"{path} was changed since; that version is kept as {aside}"
        if not same(found, action["before"]) or (found and found["mtime_ns"] != action["before"]["mtime_ns"]):
            put(path, action["before"])
    elif kind == "LoadRules":
        restore(action["backend"], action["family"], action["before"])
        for table in action["created"]:
            drop(action["backend"], action["family"], table)
    elif kind == "UnloadModule":
        if action["name"] not in modules():
            run(["modprobe", action["name"], *(f"{k}={v}" for k, v in action["parameters"])])
        for key, value in action["sysctls"]:
            run(["sysctl", "-qw", f"{key}={value}"], check=False)
    return note


# --- the journal -----------------------------------------------------------------------


def boot() -> str:
    """The kernel's boot id."""
    return read("/proc/sys/kernel/random/boot_id").strip()


def checksum(text: str) -> str:
    """What ends each line."""
    return hashlib.sha256(encoded(text)).hexdigest()[:16]


def record(kind: str, number: int, **fields: Any) -> None:
    """Add a line to the journal, synced; a line that a crash tore off goes first."""
    text = json.dumps({"journal": 2, "kind": kind, "number": number, **fields}, sort_keys=True, separators=(",", ":"))
    os.makedirs(STATE, 0o700, exist_ok=True)
    os.chmod(STATE, 0o700)
    opened = os.open(JOURNAL, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    os.ftruncate(opened, encoded(read(JOURNAL)).rfind(b"\n") + 1)
    with open(opened, "ab") as file:
        file.write(encoded(f"{text}\t{checksum(text)}\n"))
        file.flush()
        os.fsync(opened)
    sync(STATE)


def entries() -> list[Action]:
    """The applies that are not undone, oldest first; :class:`Failed` for a journal that is damaged."""
    found: dict[int, Action] = {}
    text = read(JOURNAL)
    for line in text[: text.rfind("\n") + 1].splitlines():
        body, _, given = line.rpartition("\t")
        if given != checksum(body) or '"journal":2' not in body:
            raise Failed(f"{JOURNAL}: is damaged or not ours: look at it, restore what it names, and move it away")
        value = json.loads(body)
        number = value["number"]
        if value["kind"] == "begin":
            found[number] = dict(value, done=0, closed=False, undoing=False)
        elif value["kind"] == "undone":
            del found[number]
        else:
            key = {"act": "done", "commit": "closed"}.get(value["kind"], "undoing")
            found[number][key] = value["at"] + 1 if key == "done" else True
    return list(found.values())


def forget_undone() -> None:
    """A journal in which nothing is left to undo goes."""
    if not entries():
        put(JOURNAL, None)


def undo_entry(entry: Action) -> list[str]:
    """Undo an apply, its last act first; gives notes.  One failure never stops the rest; then :class:`Failed`."""
    acts, rest = entry["plan"][: entry["done"]], entry["plan"][entry["done"] :]
    if acts and not entry["closed"] and entry["boot"] != boot():  # the boot loaded files that were rewritten already
        acts = acts + [a for a in rest if a["action"] in ("LoadRules", "UnloadModule")]
    if entry["closed"] and not entry["undoing"]:
        record("undoing", entry["number"])
    notes, problems = [], []
    for action in reversed(acts):
        try:
            notes.append(undo(action))
        except (Failed, OSError) as error:
            problems.append(str(error))
    if problems:
        raise Failed(f"undoing failed in part: {'; '.join(problems)}: mend it and run '{NAME} revert'")
    unload_strays(entry["modules"])
    record("undone", entry["number"])
    return [n for n in notes if n]
