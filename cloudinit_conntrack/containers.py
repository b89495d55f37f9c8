"""Whose process is it?  The container and its runtime, or the unit, by the path of its control group."""

from __future__ import annotations

import re

_ID = r"([0-9a-f]{12})[0-9a-f]{52}"
# What the last parts of a cgroup path look like, with the cgroup driver "systemd" and with "cgroupfs".
_SHAPES = (
    (re.compile(rf"/docker[-/]{_ID}"), "docker container {}"),
    (re.compile(rf"/libpod-(?:conmon-)?{_ID}"), "podman container {}"),
    (re.compile(rf"/crio-(?:conmon-)?{_ID}"), "CRI-O container {}"),
    (re.compile(rf"/(?:cri-containerd[-:]|nerdctl-){_ID}"), "containerd container {}"),
    (re.compile(rf"/kubepods[^\n]*/{_ID}"), "Kubernetes container {}"),
    (re.compile(r"/(?:lxc\.payload\.|lxc/)([\w.-]+)"), "lxc container {}"),
    (re.compile(r"/systemd-nspawn@([^/\n]+)\.service"), "systemd-nspawn machine {}"),
    (re.compile(r"/machine-([^/\n]+)\.scope"), "machine {}"),
    (re.compile(r"/system\.slice/(?:[^\n]*/)?([^/\n]+\.service)"), "unit {}"),
)
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")


def owner_of(cgroup: str) -> str:
    """``docker container 1a2b3c4d5e6f`` for the text of a ``/proc/PID/cgroup``; empty where it does not tell.

    The file has one line for cgroup v2 (``0::/PATH``), and one for each hierarchy of v1.
    """
    for shape, words in _SHAPES:
        match = shape.search(cgroup)
        if match is not None:
            return words.format(_ESCAPED.sub(lambda m: chr(int(m[1], 16)), match[1]))
    return ""
