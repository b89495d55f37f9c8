"""cloud-init in a tree: its program, its configuration, and whether its own Python finds us."""

from __future__ import annotations

from ..cloudcfg import BASE, CLEAN, CLEAN_DIRECTORY, DIRECTORY, DROP_IN, CloudInit, ConfigFile, Importing, parse
from ..errors import HostError
from .process import run
from .root import HOST, Root
from .service import installed_program, running_program

# The module that cloud-init lists, and what that needs.
_NAMES = ("cc_conntrack", "cloudinit_conntrack", "yaml")
_PROGRAMS = ("/usr/bin/cloud-init", "/usr/local/bin/cloud-init", "/bin/cloud-init", "/opt/cloud-init/bin/cloud-init")
_LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64")
_SECONDS = 30.0
_MOST_OUTPUT = 1 << 20
_NOT_STARTED = (125, 126, 127)  # chroot(1): the command cannot be run there
# What a script in /usr/bin has for sys.path[0] holds no modules; with -c it is the working directory.
_QUESTION = """\
import sys
if sys.path and sys.path[0] == "":
    del sys.path[0]
from importlib.util import find_spec
print("python %d.%d" % sys.version_info[:2])
for name in sys.argv[1:]:
    print("found" if find_spec(name) else "missing", name)
try:
    import cc_conntrack
except ImportError as error:
    if error.name != "cc_conntrack":
        print("broken", repr(error).encode("ascii", "replace").decode())
except Exception as error:
    print("broken", repr(error).encode("ascii", "replace").decode())
"""


def observe_cloud_init(root: Root = HOST, asking: bool = True) -> CloudInit:
    """cloud-init below *root*.  *asking*: its Python is started; in an image tree inside of that tree."""
    program = next(filter(root.exists, _PROGRAMS), "")
    if not program or not root.exists(BASE):
        return CloudInit("", drop_in=root.read_image(DROP_IN), script=root.read_image(CLEAN))
    script = running_program() if root.is_host else installed_program(root)
    return CloudInit(program, _files(root), root.read_image(DROP_IN), root.read_image(CLEAN),
                     root.is_directory(CLEAN_DIRECTORY), _importing(program, root, asking),
                     (script.python, script.script) if script else ())


def _files(root: Root) -> tuple[ConfigFile, ...]:
    """cloud.cfg and what is read after it; a file that is there and cannot be read raises HostError."""
    base = parse(BASE, root.read_bytes(BASE) or b"")
    directory = DIRECTORY if base.directory is None else base.directory
    names = [name for name in root.listdir(directory) if name.endswith(".cfg")] if directory.startswith("/") else []
    paths = [f"{directory}/{name}" for name in sorted(names)]
    contents = ((path, root.read_bytes(path)) for path in paths if path != DROP_IN and not root.is_directory(path))
    return (base, *(parse(path, content) for path, content in contents if content is not None))


# --- can it be imported? ---------------------------------------------------------------


def _importing(program: str, root: Root, asking: bool) -> Importing:
    words = _interpreter(root.read_bytes(program) or b"")
    if asking and words:
        found = _asked(words, root)
        if found is not None:
            return found
    return _looked_for(words, root)


def _interpreter(content: bytes) -> tuple[str, ...]:
    """The words of the ``#!`` line, as the kernel takes them: all that follows the program is one word."""
    line = content[: content.find(b"\n")] if content.startswith(b"#!") else b""
    words = line[2:].decode("ascii", "replace").strip().split(None, 1)
    return tuple(words) if words and "python" in words[-1 if words[0].endswith("/env") else 0] else ()


def _asked(words: tuple[str, ...], root: Root) -> Importing | None:
    """What cloud-init's Python says; ``None`` where it cannot be started (another machine's tree)."""
    within = () if root.is_host else ("chroot", root.path)
    # As systemd starts it: without HOME, Python finds root's own packages by the password file.
    argv = [*within, "env", "-u", "HOME", *words, "-B", "-c", _QUESTION, *_NAMES]
    try:
        done = run(argv, timeout=_SECONDS, check=False, most=_MOST_OUTPUT)
    except HostError as error:
        return None if within else Importing(True, words, problem=str(error))
    if within and done.status in _NOT_STARTED:
        return None
    said = [line.partition(" ")[::2] for line in done.stdout.splitlines()]
    values = {key: tuple(value for name, value in said if name == key) for key in ("python", "missing", "broken")}
    if done.status != 0 or not values["python"]:
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        return Importing(True, words, problem=f"exit status {done.status}: {last[:300]}")
    elsewhere = _elsewhere(root) if values["missing"] else ""
    return Importing(True, words, values["python"][0], values["missing"], "".join(values["broken"]), elsewhere)


def _looked_for(words: tuple[str, ...], root: Root) -> Importing:
    """The same from files: the usual paths of Debian's and Red Hat's Python, under its flags."""
    isolated = any(word.startswith("-") and set("sI") & set(word) for word in words[1:])
    places = _places(root, isolated)
    missing = tuple(name for name in _NAMES if not any(map(root.exists, _files_of(name, places))))
    return Importing(False, words, missing=missing, elsewhere=_elsewhere(root) if missing else "")


def _places(root: Root, isolated: bool) -> list[str]:
    """Where a Python 3 looks for packages.

    Red Hat's adds its site-packages in /usr/local only without ``-s`` (its patch 00251), Debian's has its
    dist-packages there always.
    """
    found: list[str] = []
    for library in _LIBRARIES:
        hidden = isolated and library.startswith("/usr/local")
        kinds = ("dist-packages",) if hidden else ("dist-packages", "site-packages")
        pythons = [name for name in root.listdir(library) if name.startswith("python3")]
        found += [f"{library}/{python}/{kind}" for python in pythons for kind in kinds]
    return found


def _files_of(name: str, places: list[str]) -> list[str]:
    return [f"{place}/{name}{end}" for place in places for end in (".py", "/__init__.py")]


def _elsewhere(root: Root) -> str:
    """A directory with our module, wherever it is."""
    return next(filter(root.exists, _files_of(_NAMES[0], _places(root, False))), "").rpartition("/")[0]
