"""What the host is like, and what is left to do on it."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from .door import NAME, Action, find, image, modules, names, read, run, tool, written
from .rules import Blocked, bypassed, joined, lines_of, stateless

BLOCK = f"/etc/modprobe.d/00-{NAME}.conf"
CORE = ("nf_conntrack", "nf_conntrack_ipv4", "nf_conntrack_ipv6", "ip_conntrack")
FAMILIES = ("ipv4", "ipv6")
SAVED = (("/etc/sysconfig/iptables", "ipv4"), ("/etc/sysconfig/ip6tables", "ipv6"),
         ("/etc/iptables/rules.v4", "ipv4"), ("/etc/iptables/rules.v6", "ipv6"))
LOADERS = {"/etc/sysconfig/iptables": "iptables.service", "/etc/sysconfig/ip6tables": "ip6tables.service"}
NATIVE_SAVED = ("/etc/nftables.conf", "/etc/sysconfig/nftables.conf")
NATIVE = re.compile(r'"(ct|ct \w+|masquerade|[sd]nat|redirect|flow|synproxy)"|"type": ?"nat"')
NATIVE_WORD = re.compile(r"^[^#]*\b(ct|masquerade|[sd]nat|redirect|flowtable|synproxy)\b", re.MULTILINE)


class Plan:
    """What is left to do, and what keeps us from it."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.files: list[Action] = []
        self.rules: list[Action] = []
        self.rest: list[Action] = []
        self.proofs: list[Action] = []
        self.blockers: list[str] = []
        self.note = ""

    @property
    def actions(self) -> list[Action]:
        """In the order in which they are done: files, the rules in the kernel, modules, the block."""
        return self.files + self.rules + self.rest


# --- what the host is like -------------------------------------------------------------


def builtin(name: str) -> bool:
    """Whether *name* is compiled into this kernel."""
    if not os.path.exists("/proc/modules"):
        return True
    return f"/{name}.ko" in read(f"/lib/modules/{os.uname().release}/modules.builtin")


def conntrack() -> str:
    """``absent``, ``loaded`` or ``builtin``."""
    if set(CORE) & set(modules()):
        return "loaded"
    return "builtin" if builtin("nf_conntrack") else "absent"


def live(backend: str, family: str) -> str:
    """The rules in the kernel; nothing is asked that could load a module."""
    if backend == "legacy":
        if not read(f"/proc/net/ip{'6' if family == 'ipv6' else ''}_tables_names").strip():
            return ""
    elif not builtin("nf_tables") and "nf_tables" not in modules():
        return ""
    command = tool(backend, family, "save")
    if command is None and backend == "nft":
        return ""
    if command is None:
        raise Blocked("there are legacy tables and no iptables-legacy-save: install iptables")
    return run([command, "-c"])


def refuse_natives(plan: Plan) -> None:
    """Native nftables rules that depend on conntrack, live and saved: the package rewrites them, this does not."""
    remedy = f"the package {NAME} rewrites native nftables rules, user-data alone does not"
    if find("nft") and (builtin("nf_tables") or "nf_tables" in modules()):
        for item in json.loads(run(["nft", "-j", "list", "ruleset"]) or "{}").get("nftables", []):
            rule = item.get("rule") or item.get("chain") or item.get("flowtable") or {}
            own = rule.get("family") in ("ip", "ip6") and rule.get("table") in "filter nat mangle raw security".split()
            if not own and (NATIVE.search(json.dumps(rule)) or "flowtable" in item):
                plan.blockers.append(f"nft table {rule['family']} {rule['table']} depends on conntrack: {remedy}")
                return
    more = [f"{place}/{n}" for place in ("/etc/nftables", "/etc/nftables.d") for n in names(place)]
    for path in (*NATIVE_SAVED, *more):
        if enabled("nftables.service") and NATIVE_WORD.search(read(path)):
            plan.blockers.append(f"{path}: it depends on conntrack: {remedy}")


def is_lost(path: str, family: str) -> bool:
    """Whether a boot should have loaded *path*, and a table of it is empty: the block refuses a stateful one."""
    loader = LOADERS.get(path, "netfilter-persistent.service")
    there = filled(live("legacy", family)) | filled(live("nft", family))
    return bool(read(BLOCK)) and enabled(loader) and bool(filled(read(path)) - there)


def filled(text: str) -> set[str]:
    """The tables of a save that have rules."""
    return {table for table, rules in re.findall(r"(?ms)^\*(\w+)$(.*?)^COMMIT", text) if "-A " in rules}


def load_lost(lost: list[str]) -> None:
    """What a boot could not load under the block, which is gone now: the files *lost*, and nftables'."""
    for path, family in SAVED:
        if path in lost:
            run([str(find("ip6tables-restore" if family == "ipv6" else "iptables-restore"))], read(path), check=False)
    for path in NATIVE_SAVED:
        if enabled("nftables.service") and find("nft") and not run(["nft", "list", "ruleset"]).strip():
            run(["nft", "-f", path], check=False)


def enabled(unit: str) -> bool:
    """Whether systemd starts *unit* at boot."""
    place = "/etc/systemd/system"
    return any(os.path.lexists(f"{place}/{want}/{unit}") for want in names(place) if want.endswith(".wants"))


# --- plan ------------------------------------------------------------------------------


def make_plan(config: dict[str, Any]) -> Plan:
    """What is left to do; where the modules cannot go, what ``fallback`` settles for."""
    plan = planned(config, config["mode"])
    if plan.blockers and config["mode"] == "unload" and config["fallback"] != "none":
        second = planned(config, config["fallback"])
        second.note = f"settled for {second.mode}: {plan.blockers[0]}"
        return plan if second.blockers else second
    return plan


def planned(config: dict[str, Any], mode: str) -> Plan:
    """The plan for *mode*."""
    plan = Plan(mode)
    for unit in config["refused"][mode]:
        if enabled(unit) and (unit != "ufw.service" or "ENABLED=yes" in read("/etc/ufw/ufw.conf")):
            plan.blockers.append(f"{unit} writes rules of its own: disable it, or install the package {NAME}")
    refuse_natives(plan)
    try:
        for path, family in SAVED:
            plan_saved(plan, config, path, family)
        for backend in ("legacy", "nft"):
            for family in FAMILIES:
                plan_live(plan, config, backend, family)
    except Blocked as why:
        plan.blockers.append(str(why))
    plan_lists(plan)
    if mode == "unload":
        plan_unload(plan, config)
    plan_block(plan, config)
    return plan


def changed(plan: Plan, config: dict[str, Any], text: str, family: str) -> str:
    """What becomes of a rule-set."""
    if plan.mode == "notrack":
        return bypassed(text, family, config)
    first, last = (read("/proc/sys/net/ipv4/ip_local_port_range").split() or ["32768", "60999"])[:2]
    whole = builtin("xt_socket") or "/xt_socket.ko" in read(f"/lib/modules/{os.uname().release}/modules.dep")
    return stateless(text, family, config, f"{first}:{last}", whole)


def plan_saved(plan: Plan, config: dict[str, Any], path: str, family: str) -> None:
    """A saved rule-set; an empty nat table goes, since loading it would bring conntrack."""
    found, text = image(path), read(path)
    if found is None:
        return
    try:
        new = changed(plan, config, text, family)
    except Blocked as why:
        raise Blocked(f"{path}: {why}") from None
    if plan.mode != "notrack" and "*nat" in new:
        new = joined([line for line in lines_of(new) if line[0] != "nat"])
    if new != text:
        plan.files.append(written(path, found, new, "its rules do without conntrack"))
    if new != text and is_lost(path, family):
        backend = "nft" if "nft" in os.path.realpath(str(find("iptables-restore"))) else "legacy"
        there = by_table(live(backend, family))
        before = [there.get(t) or re.sub(r"(?m)^(:\S+) DROP", r"\1 ACCEPT", re.sub(r"(?m)^.*-A .*\n", "", section))
                  for t, section in by_table(new).items()]
        plan.rules.append({"action": "LoadRules", "backend": backend, "family": family, "before": "".join(before),
                           "after": new,
                           "dropped": [], "created": [], "reason": "under the block this boot could not load them"})
    if plan.mode == "unload" and config["block"] and "--match-set" not in new:
        plan.proofs.append({"action": "ProveLoading", "path": path, "family": family, "text": new,
                            "reason": "a saved rule-set that needs conntrack would not load under the block"})


def plan_live(plan: Plan, config: dict[str, Any], backend: str, family: str) -> None:
    """The rules in the kernel.  For the bypass there may be none yet: then the usual back end gets them."""
    text = live(backend, family)
    if not text.strip() and (plan.mode != "notrack" or not is_usual(backend, family)):
        return
    new = changed(plan, config, text, family)
    old, tables = by_table(text), by_table(new)
    dropped = [t for t in ("nat",) if t in old and plan.mode == "unload" and backend == "nft"]
    differ = [t for t in {**old, **tables} if old.get(t) != tables.get(t) and t not in dropped]
    if differ or dropped:
        plan.rules.append({
            "action": "LoadRules", "backend": backend, "family": family, "reason": "they do without conntrack",
            "before": "".join(old.get(t) or re.sub("(?m)^.*-A .*\n", "", tables[t]) for t in differ + dropped),
            "after": "".join(tables.get(t, "") for t in differ), "dropped": dropped,
            "created": [t for t in differ if t not in old]})


def is_usual(backend: str, family: str) -> bool:
    """Whether *backend* is what plain ``iptables`` is here, and the other one has no rules."""
    usual = find("ip6tables-save" if family == "ipv6" else "iptables-save")
    if family == "ipv6" and not os.path.exists("/proc/net/if_inet6"):
        return False  # ipv6.disable=1
    other = "nft" if backend == "legacy" else "legacy"
    return bool(usual) and ("nft" in os.path.realpath(str(usual))) == (backend == "nft") and not live(other, family)


def by_table(text: str) -> dict[str, str]:
    """The sections of a save."""
    found: dict[str, str] = {}
    for table, line in lines_of(text):
        if table:
            found[table] = found.get(table, "") + line + "\n"
    return found


def plan_lists(plan: Plan) -> None:
    """Module lists that load conntrack at each start of the firewall."""
    for path in ("/etc/sysconfig/iptables-config", "/etc/sysconfig/ip6tables-config"):
        text = read(path)
        new = re.sub(r"(?m)^(IP6?TABLES_MODULES=)(.*)$", without_conntrack, text)
        if plan.mode != "notrack" and new != text:
            plan.files.append(written(path, image(path), new, "it loads conntrack at every start of the firewall"))


def without_conntrack(found: re.Match[str]) -> str:
    """An assignment without the modules that cannot be loaded without conntrack."""
    words = re.sub(r"\b(nf|ip)_(conntrack|nat)\w*", "", found[2]).split()
    return found[1] + re.sub(r'^" | (?="$)', lambda m: m[0].strip(), " ".join(words))


def plan_unload(plan: Plan, config: dict[str, Any]) -> None:
    """Conntrack's modules, those that hold them first."""
    if conntrack() == "builtin":
        plan.blockers.append("nf_conntrack is built into this kernel and cannot be unloaded: use 'mode: stateless'")
        return
    left = modules()
    todo = [name for name in (*CORE, *config["extra"]) if name in left]
    for name in todo:
        todo += [h for h in left[name][1] if h not in todo]
    while todo:
        name = next(n for n in todo if not set(left[n][1]) & set(todo))
        todo.remove(name)
        places = ((f"/sys/module/{name}/parameters", ""), ("/proc/sys/net/netfilter", "net.netfilter."))
        given, sysctls = ([[prefix + n, read(f"{place}/{n}").strip()] for n in names(place)]
                          for place, prefix in places)
        plan.rest.append({
            "action": "UnloadModule", "name": name, "reason": "it is conntrack, or holds it", "force": False,
            "parameters": [p for p in given if p[1] and p[1] != "(null)"],
            "sysctls": [s for s in sysctls if name == CORE[0] and re.match(r"\S+nf_conntrack_(?!count|frag6)", s[0])]})


def plan_block(plan: Plan, config: dict[str, Any]) -> None:
    """modprobe.d: with ``unload`` no path leads to conntrack again; ``notrack`` needs it."""
    found, text = image(BLOCK), read(BLOCK)
    new = ""
    if plan.mode == "unload" and config["block"]:
        listed = [re.findall(r"([^/]+)\.ko", line.partition(":")[0])[0].replace("-", "_")
                  for line in read(f"/lib/modules/{os.uname().release}/modules.dep").splitlines()
                  if "/nf_conntrack.ko" in line]
        rows = [f"install {n} /bin/false\n" for n in (*CORE, *config["extra"])]
        rows += [f"blacklist {n}\n" for n in sorted({*listed, *CORE, *config["extra"]})]
        new = f"# Written by {NAME} (user-data).  To undo: run '{NAME} revert'.\n" + "".join(rows)
    if new and new != text:
        plan.rest += [*plan.proofs, written(BLOCK, found, new, "no rule, service or program loads conntrack again")]
    elif found and plan.mode == "notrack":  # before the rules that load it
        plan.files.insert(0, {"action": "WriteFile", "path": BLOCK, "before": found, "after": None,
                              "reason": "NOTRACK needs nf_conntrack, which this file blocks"})
