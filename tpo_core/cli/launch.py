"""Several processes for one command: each is this command again, told its rank as torch's launchers tell it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from tpo_core.train import Processes

GRACE = 20.0
"""Seconds that the others get to end by themselves once one of them has failed."""
_SELF = """
import atexit, os, sys, traceback
from tpo_core.cli import main
code = 1
try:
    main(prog_name="tpo")
except SystemExit as end:
    code = end.code if isinstance(end.code, int) else int(end.code is not None)
except BaseException:
    traceback.print_exc()
atexit._run_exitfuncs()
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)
"""
"""A process's program. It leaves without C++'s own clean-up: threads of the process group, whose peers are gone by then, aborted there."""
_WATCH = "import sys; from tpo_core.cli.launch import watch; sys.exit(watch(sys.argv[2:], int(sys.argv[1])))"


def processes_here(wanted: int) -> int:
    """Return how many processes to start: at most one per GPU, or per thread that torch would use; 1 where a launcher started this one."""
    if wanted == 1 or "WORLD_SIZE" in os.environ:
        return 1
    import torch

    return max(1, min(wanted, torch.cuda.device_count() if torch.cuda.is_available() else torch.get_num_threads()))


def join() -> Processes | None:
    """Meet the processes that this one was started with (by `launch` or torch's launchers); None where it is alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from accelerate import Accelerator

    from tpo_core.train import Processes

    return Processes(Accelerator())


def launch(arguments: Sequence[str], count: int) -> NoReturn:
    """Become a small process that runs ``tpo ARGUMENTS`` in `count` others and ends with their exit code (see `watch`).

    They share this machine's threads or take a GPU each. What this process has imported would lie in memory all the while.

    Args:
        arguments: the command line without the program.
    """
    import torch

    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    if not torch.cuda.is_available():
        shared |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // count))}
    os.environ.update(shared)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-c", _WATCH, str(count), *arguments])


def watch(arguments: Sequence[str], count: int) -> int:
    """Start the processes, wait, and return the exit code. The first one speaks; of the others, one that fails by itself."""
    command = [sys.executable, "-c", _SELF, *arguments]
    with tempfile.TemporaryFile("w+") as words:
        children: list[subprocess.Popen[str]] = []
        for rank in range(count):
            silent: dict[str, IO[str] | int] = {} if rank == 0 else {"stdout": subprocess.DEVNULL, "stderr": words}
            environment = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            children.append(subprocess.Popen(command, env=environment, text=True, **silent))  # type: ignore[call-overload]  # one of two forms
        code = _wait(children)
        if code and children[0].returncode in (0, None, -15):
            words.seek(0)
            sys.stderr.write(words.read())
    return code


def _wait(children: Sequence[subprocess.Popen[str]]) -> int:
    """Wait for all; after a failure end those that do not end by themselves. Return the first failure's exit code, or 0."""
    failed, deadline = 0, float("inf")
    try:
        while any(child.poll() is None for child in children):
            broken = [child.returncode for child in children if child.returncode]
            if broken and not failed:
                failed, deadline = broken[0], time.monotonic() + GRACE
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
    except KeyboardInterrupt:
        # The terminal told the children too; they save nothing half.
        failed, deadline = 130, time.monotonic() + GRACE
        while any(child.poll() is None for child in children) and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        for child in children:
            if child.poll() is None:
                child.terminate()
        for child in children:
            child.wait()
    return abs(failed or next((int(child.returncode) for child in children if child.returncode), 0))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
