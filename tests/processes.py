"""Scripts in processes of their own, forked from a server that has imported PyTorch but no module of the project.

A process has its own arguments, working directory, environment, output and exit status, like one that a shell starts.
It need not import PyTorch, which takes seconds. The workers of `reproduce.py` are forked from the same server.
"""

import contextlib
import errno
import fcntl
import gc
import multiprocessing
import os
import runpy
import shlex
import signal
import sys
import tempfile
import time
from multiprocessing import forkserver, reduction
from pathlib import Path
from types import SimpleNamespace

TESTS = Path(__file__).resolve().parent
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "torchvision", "processes"])
gc.freeze()  # in the server: garbage collections in its processes leave out the objects of PyTorch
forkserver.set_forkserver_preload = lambda names: None  # `reproduce.py` would preload modules of this checkout
KILLS = int(os.environ.get("KILLS", 2))  # in each test that kills and restarts at random moments
SERVER, ADDRESS = forkserver._forkserver, "TESTS_FORKSERVER"


receive = reduction.recvfds


def receive_or_ignore(*arguments):
    """Receive what starts a process. Without this function, the server ends if a client is killed while it sends."""
    try:
        return receive(*arguments)
    except EOFError:
        raise ConnectionAbortedError(errno.ECONNABORTED, "the client was killed") from None


reduction.recvfds = receive_or_ignore


def share_server():
    """Start the server. Processes that this one starts, such as the workers of pytest-xdist, use the same server."""
    if ADDRESS in os.environ:
        SERVER._forkserver_address = os.environ[ADDRESS]
        SERVER._forkserver_alive_fd = os.open(os.devnull, os.O_RDONLY)  # another process keeps it alive
        SERVER.ensure_running = lambda: None
    else:
        SERVER.ensure_running()
        os.environ[ADDRESS] = SERVER._forkserver_address


def start(root, *argv, output, errors=None, **environment):
    """Start a script in the folder `root`. Returns the process, a `multiprocessing.Process`.

    argv: a script or "-m", MODULE, and arguments. output, errors: files to which the script prints; default of errors:
    output. environment: changed variables.
    """
    own = {str(TESTS), str(TESTS.parent), "", os.getcwd()}  # what pytest adds to the path
    path = [str(root), *(folder for folder in sys.path if folder not in own)]
    arguments = str(root), [*map(str, argv)], path, str(output), str(errors or output), os.environ | environment
    for file in {arguments[3], arguments[4]}:
        Path(file).touch()
    process = CONTEXT.Process(target=run, args=arguments)
    process.start()
    return process


def command(root, *argv, **environment):
    """Run a script as `start` does, until it ends. Returns .status, .out and .err."""
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder) / "output", Path(folder) / "errors"
        process = start(root, *argv, output=output, errors=errors, **environment)
        process.join()
        return SimpleNamespace(status=process.exitcode, out=output.read_text(), err=errors.read_text())


def commands(root, *lines):
    """Run several command lines one after the other, as `command` does."""
    return [command(root, *shlex.split(line)) for line in lines]


def forward(argv):
    """Run a script as `command` does, but with the output and the exit status of this process."""
    share_server()
    process = start(os.getcwd(), *argv, output=f"/proc/{os.getpid()}/fd/1", errors=f"/proc/{os.getpid()}/fd/2")
    signal.signal(signal.SIGTERM, lambda *_: process.kill())
    process.join()
    sys.exit(process.exitcode)


def working_in(folder):
    """The processes whose working directory is `folder`: of a project, its scripts and their workers."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):  # it has ended
            found += [int(link.parent.name)] * (os.readlink(link) == str(folder))
    return found


def kill(numbers, signal_number=signal.SIGKILL):
    for number in numbers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal_number)


def waited(condition, seconds=300):
    """Whether `condition` becomes true before the timeout."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def unlocked(folder):
    """Whether no process is training in `folder`."""
    try:
        with open(folder / "training.log") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True


def kill_and_restart(begin, folder, rng, kills, whole_group=True, seconds=1.5):
    """Call `begin`, which starts a script in `folder`, again and again until the script ends by itself.

    It is killed after `seconds` / 3 to `seconds`, at most `kills` times. If `whole_group` is true, all that it has
    started is killed, too. Nothing of it may stay. Returns the number of kills.
    """
    for count in range(kills + 1):
        script = begin()
        script.join(rng.uniform(seconds / 3, seconds) if count < kills else None)
        if not script.is_alive():
            assert script.exitcode == 0
            return count
        kill(working_in(folder) if whole_group else [script.pid])
        script.join()
        assert waited(lambda: not working_in(folder), seconds=60), working_in(folder)


def run(root, argv, path, output, errors, environment):
    """What the new process does."""
    for number, file in ((1, output), (2, errors)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(root)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores Ctrl-C
    multiprocessing.process.ORIGINAL_DIR = root
    SERVER.ensure_running = lambda: None  # the processes that this one starts are forked from the same server
    sys.path[:] = path
    sys.dont_write_bytecode &= root == str(TESTS.parent)  # a copy of the project is compiled once
    if argv[0] == "-m":
        sys.argv = argv[1:]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")
