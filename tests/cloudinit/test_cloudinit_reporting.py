"""cloud-init's own reporting carries our result: to its log, and to a webhook that really listens.

Measured in the four versions (cloudinit/reporting): a module gets its stage's reporter as
``cloud.reporter``, so the event is named ``STAGE/config-conntrack/apply``; up to 22.4 the webhook
posts at once and in the caller's time, from 25.1 on a thread does and the stage's end waits for it;
each failed post is a WARNING, ours as cloud-init's own.  26.2 adds the duration to finish events.
"""

from __future__ import annotations

import base64
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from chroots import Suite, numbers
from machines import Boot, Machine, MachineError
from stages import LOG, Outcome, parse_log, run_stages, seed
from stateful_host import RULES_V4, SAVED_V4, SECTION, firewall, load_rules

from tests import reports

DROP_IN = "/etc/cloud/cloud.cfg.d/95_conntrack.cfg"
REPORTING = "/etc/cloud/cloud.cfg.d/96_reporting.cfg"
POSTS = "/run/posts"
OURS = "/config-conntrack/apply"
# Our module, called as cloud-init calls it, beside an API that is not what it was: the name is gone, or it fails.
BROKEN = """
import json, sys, yaml
from cloudinit.reporting import events
import cc_conntrack
if sys.argv[1] == "gone":
    del events.ReportEventStack
else:
    events.ReportEventStack.__exit__ = events.ReportEventStack.__init__ = lambda *words, **more: 1 / 0
cc_conntrack.handle("conntrack", yaml.safe_load(sys.stdin), None, [])
"""
NAME = f"modules-config{OURS}"
RESULT = "/run/cloudinit-conntrack/result.json"
PORT = 8099

SERVER = f"""
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open("{POSTS}", "ab") as file:
            file.write(body.replace(b"\\n", b" ") + b"\\n")
        self.send_response(204)
        self.end_headers()
    def log_message(self, *words):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", {PORT}), Handler)
with open("/run/endpoint", "w") as file:
    file.write(str(os.getpid()))
os.rename("/run/endpoint", "{POSTS}")
server.serve_forever()
"""


@contextmanager
def endpoint(boot: Boot) -> Iterator[None]:
    """A server in the machine that keeps what is posted."""
    with boot.spawn(["python3", "-c", SERVER]) as process:
        try:
            deadline = time.monotonic() + 20
            while boot.attempt("test", "-e", POSTS).returncode != 0:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise MachineError("the endpoint does not listen")
                time.sleep(0.05)
            server = boot.read(POSTS)
            boot.write(POSTS, "")
            yield
            boot.run("kill", server)
        finally:
            process.kill()  # only what entered the machine


def give(boot: Boot, section: str = SECTION) -> None:
    seed(boot)
    boot.write(DROP_IN, section)
    boot.write(REPORTING, "reporting:\n  hook: {type: webhook, timeout: 5, retries: 0, "
                          f"endpoint: 'http://127.0.0.1:{PORT}/'}}\n  logging: {{type: log}}\n")
    load_rules(boot)


def posted(boot: Boot, name: str = NAME) -> list[dict[str, Any]]:
    """The events *name* that arrived since the last look, oldest first."""
    found = [json.loads(line) for line in boot.read(POSTS).splitlines()]
    assert found, "nothing was posted, not even cloud-init's own"
    boot.write(POSTS, "")
    return [event for event in found if event["name"].endswith(name)]


def logged(outcome: Outcome) -> list[str]:
    """What the log handler wrote of our events."""
    return [line.text for line in outcome.log
            if line.source == "handlers.py" and line.text.startswith((f"start: {NAME}: ", f"finish: {NAME}: "))]


def single(boot: Boot) -> subprocess.CompletedProcess[str]:
    """Our module alone, with its events: a tenth of what a boot takes."""
    return boot.attempt("cloud-init", "single", "--name", "conntrack", "--frequency", "always", "--report")


def result_of(event: dict[str, Any], boot: Boot) -> dict[str, Any]:
    """The report that came with *event*: the one that lies in the machine."""
    (file,) = event["files"]
    assert (file["path"], file["encoding"]) == (RESULT, "base64")
    content = base64.b64decode(file["content"]).decode()
    assert content == boot.read(RESULT)
    return reports.read(content)


def test_what_became_of_an_apply_is_reported(suite: Suite, installed: Machine) -> None:
    with installed.boot() as boot:
        give(boot)
        with endpoint(boot):
            outcome = run_stages(boot, suite.single_process)
            start, finish = posted(boot)
            success(suite, boot, outcome, start, finish)
            blocked(boot)
            bad_section(boot)
            no_section(boot)
        no_endpoint(boot)
        no_reporting(boot)


def success(suite: Suite, boot: Boot, outcome: Outcome, start: dict[str, Any], finish: dict[str, Any]) -> None:
    assert (start["event_type"], start["description"]) == ("start", "applying the conntrack section")
    assert (finish["event_type"], finish["result"]) == ("finish", "SUCCESS")
    assert finish["description"].startswith("mode stateless: done, ")
    assert " actions, " in finish["description"]
    assert result_of(finish, boot)["outcome"] == "done"
    assert ("duration" in finish) == (numbers(suite.version) >= (26, 2))
    assert [line.partition(" (duration")[0] for line in logged(outcome)] == [
        f"start: {NAME}: {start['description']}", f"finish: {NAME}: SUCCESS: {finish['description']}"]
    assert (outcome.errors, outcome.status_code, outcome.warnings) == ((), 0, ())
    assert firewall(boot).stateful == []


def blocked(boot: Boot) -> None:
    boot.write(SAVED_V4, RULES_V4.replace("COMMIT", "-A INPUT -m connmark --mark 1 -j DROP\nCOMMIT"))
    assert single(boot).returncode != 0
    _, finish = posted(boot, OURS)
    assert finish["result"] == "FAIL"
    assert finish["description"].startswith(f"blocked: {SAVED_V4}: table filter, chain INPUT, rule 7: ")
    assert "connmark" in finish["description"]
    assert result_of(finish, boot)["outcome"] == "blocked"
    boot.write(SAVED_V4, RULES_V4)


def bad_section(boot: Boot) -> None:
    """It leaves no report, and no older one is sent in its place."""
    boot.write(DROP_IN, "conntrack: {mode: strange}\n")
    assert single(boot).returncode != 0
    _, finish = posted(boot, OURS)
    assert (finish["result"], "files" in finish) == ("FAIL", False)
    assert finish["description"].startswith("failed: conntrack.mode: ")


def no_section(boot: Boot) -> None:
    boot.write(DROP_IN, "{}\n")
    assert single(boot).returncode == 0
    assert posted(boot, OURS) == []


def no_endpoint(boot: Boot) -> None:
    """cloud-init's own events fail as ours do, and that fails no module."""
    boot.write(DROP_IN, SECTION)
    before = len(parse_log(boot.read(LOG)))
    began = time.monotonic()
    done = single(boot)
    assert (done.returncode, time.monotonic() - began < 30) == (0, True), done.stderr
    lost = [line.text for line in parse_log(boot.read(LOG))[before:] if "posting event" in line.text]
    assert [text for text in lost if OURS in text] and [text for text in lost if OURS not in text]
    assert json.loads(boot.read(RESULT))["outcome"] == "done"
    assert firewall(boot).stateful == []


def no_reporting(boot: Boot) -> None:
    """cloud-init gives no guarantee for its API to modules that it does not ship."""
    for how in ("gone", "failing"):
        boot.run("rm", RESULT)
        boot.run("python3", "-c", BROKEN, how, stdin=SECTION)
        assert reports.read(boot.read(RESULT))["outcome"] == "nothing-to-do"
