"""Apply, verify, revert: what user-data does at every boot, and what a person may ask for."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
from typing import Any

from .door import (
    NAME,
    STATE,
    Failed,
    boot,
    entries,
    forget_undone,
    modules,
    perform,
    put,
    read,
    record,
    run,
    undo_entry,
    written,
)
from .planning import BLOCK, CORE, FAMILIES, SAVED, Plan, is_lost, load_lost, make_plan
from .rules import Blocked

CONFIG: dict[str, Any] = {}  # what userdata puts in its place
PROC = "/proc/net/nf_conntrack"
WIDER = "accepted without a connection now: TCP segments with ACK or RST set, echo replies, ICMP errors, UDP replies"


# --- the kernel's own word -------------------------------------------------------------


def against(plan: Plan, config: dict[str, Any]) -> list[str]:
    """What the kernel says that speaks against the mode."""
    found = []
    if plan.mode == "unload":
        found += [f"{n} is loaded" for n in CORE if n in modules()] + [f"{PROC} is there"] * os.path.exists(PROC)
        for name in (*CORE[:1], "xt_conntrack", "nft-expr-ct") if config["block"] else ():
            told = run(["modprobe", "-n", "-v", "-D", name], check=False)
            found += [f"modprobe {name} would load it"] if "insmod" in told and "/bin/false" not in told else []
    elif plan.mode == "stateless":
        found += [f"a datagram over {family} is tracked" for family in FAMILIES if tracked(family)]
    found += [f"{host}:{port} does not answer" for host, port in config["probes"] if not answers(host, port)]
    return found


def tracked(family: str) -> bool:
    """Whether a datagram over loopback leaves an entry."""
    if not os.path.exists(PROC):
        return False
    with socket.socket(socket.AF_INET6 if family == "ipv6" else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("::1" if family == "ipv6" else "127.0.0.1", 9))
            probe.send(b"")
        except OSError:
            return False
        return f"sport={probe.getsockname()[1]} dport=9 " in read(PROC)


def answers(host: str, port: int) -> bool:
    """Whether something takes a TCP connection there."""
    try:
        socket.create_connection((host, port), 4).close()
    except OSError:
        return False
    return True


# --- verbs -----------------------------------------------------------------------------


def apply(config: dict[str, Any]) -> int:
    """Do the plan as one transaction: whole, or undone whole."""
    for entry in entries():
        if not entry["closed"] or entry["undoing"]:
            undo_entry(entry)
    forget_undone()
    before = list(modules())
    plan = make_plan(config)
    if plan.blockers and read(BLOCK):
        lost = [path for path, family in SAVED if is_lost(path, family)]
        put(BLOCK, None)
        load_lost(lost)
        return report(plan, "failed", 1, "the block is taken away: under it a boot could have no firewall")
    if plan.blockers:
        return report(plan, "blocked", 3)
    if not plan.actions:
        wrong = against(plan, config)
        return report(plan, "failed" if wrong else "nothing-to-do", 1 if wrong else 0, "; ".join(wrong))
    number = max((e["number"] for e in entries()), default=0) + 1
    record("begin", number, boot=boot(), mode=plan.mode, modules=before, plan=plan.actions)
    try:
        for at, action in enumerate(plan.actions):
            record("act", number, at=at)
            perform(action)
        left = make_plan(config)
        wrong = [f"{a['action']} is left to do" for a in left.actions] + left.blockers + against(plan, config)
        if wrong:
            raise Failed("; ".join(wrong))
        record("commit", number, loaded=list(modules()))
    except BaseException as error:
        undo_entry(next(e for e in entries() if e["number"] == number))
        forget_undone()
        if not isinstance(error, Exception):
            raise
        return report(plan, "failed", 1, f"{error}; rolled back")
    return report(plan, "done", 0, plan.note)


def verify(config: dict[str, Any]) -> int:
    """Look again: nothing left to do, and nothing speaks against it."""
    plan = make_plan(config)
    wrong = against(plan, config)
    drift = bool(plan.actions or plan.blockers or wrong)
    return report(plan, "drift" if drift else "verified", 4 if drift else 0, "; ".join(wrong), looking=True)


def show(config: dict[str, Any]) -> int:
    """What apply would do."""
    plan = make_plan(config)
    outcome = "blocked" if plan.blockers else ("changes" if plan.actions else "nothing-to-do")
    return report(plan, outcome, {"blocked": 3, "changes": 4}.get(outcome, 0), looking=True)


def revert(config: dict[str, Any]) -> int:
    """Undo every apply, newest first."""
    plan = Plan(config["mode"])
    notes = [note for entry in reversed(entries()) for note in undo_entry(entry)]
    forget_undone()
    notes.append(f"user-data applies it again at the next boot, unless {STATE}/off is there")
    return report(plan, "reverted", 0, "; ".join(notes))


def report(plan: Plan, outcome: str, code: int, message: str = "", looking: bool = False) -> int:
    """Say what was done, for a person and, unless only *looking*, in /run; gives *code*."""
    lists = [[{"id": str(n), "where": a.get("path") or a.get("name") or f"live {a.get('backend')} {a.get('family')}",
               "reason": a["reason"]} for n, a in enumerate(plan.actions)],
             [{"id": str(n), "where": "host", "reason": why} for n, why in enumerate(plan.blockers)],
             [{"id": "0", "where": "rules", "reason": WIDER}] if plan.rules + plan.files and not plan.blockers else []]
    found = {"schema": 1, "mode": plan.mode, "outcome": outcome, "actions": lists[0], "blockers": lists[1],
             "widenings": lists[2], "findings": [], "message": message}
    print(f"{NAME}: {outcome}  mode {plan.mode}")
    for item in (message, *(f"{i['where']}: {i['reason']}" for items in lists for i in items)):
        print(f"  {item}" if item else "", end="\n" if item else "")
    if not looking:
        with open(f"/run/{NAME}/result.json", "w") as file:
            json.dump(found, file)
    return code


def at_boot(config: dict[str, Any]) -> int:
    """Leave this program as a command, ask again in cloud-init's last stage, and apply.

    A package that is installed does it all, and better.
    """
    command, again = f"/usr/local/sbin/{NAME}", f"/var/lib/cloud/scripts/per-boot/{NAME}"
    for package in (f"/usr/bin/{NAME}", f"/usr/local/bin/{NAME}"):
        if os.path.exists(package):
            print(run([package, "apply", "-c", "-"], json.dumps({"conntrack": config["section"]})))
            return 0
    own = read(os.path.abspath(sys.argv[0]))
    for path, text in ((command, own), (again, f"#!/bin/sh\nexec {command} boot\n")):
        if read(path) != text:
            put(path, dict(written(path, None, text, "")["after"], mode=0o755))
    return apply(config)


def main() -> int:
    """The verb that is asked for; a boot asks for none."""
    verbs = {"apply": apply, "verify": verify, "plan": show, "revert": revert, "boot": at_boot}
    verb = " ".join(sys.argv[1:]) or ("" if "/sbin/" in sys.argv[0] else "boot")
    if verb not in verbs or os.geteuid():
        print(f"usage, as root: {NAME} {'|'.join(verbs)}   (the package does more)", file=sys.stderr)
        return 2
    if verb == "boot" and os.path.exists(f"{STATE}/off"):
        return 0
    try:
        if verb in ("plan", "verify"):
            return verbs[verb](CONFIG)
        os.makedirs(f"/run/{NAME}", exist_ok=True)
        with open(f"/run/{NAME}/lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return verbs[verb](CONFIG)
    except Exception as error:  # whatever it is, it is one line: a boot has nobody to read a traceback
        print(f"{NAME}: {error!r}" if not isinstance(error, (Failed, Blocked)) else f"{NAME}: {error}", file=sys.stderr)
        return 1
