"""Processes that tests start, kill, and wait for."""

from __future__ import annotations

import multiprocessing
import socket
import subprocess

import psutil


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def kill_all(process: subprocess.Popen) -> None:
    """Kill a process and all that it started, without any warning."""
    started = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in started:
        one.kill()
    psutil.wait_procs(started, timeout=60)
    process.communicate()  # closes its pipes


def companion(*arguments: str) -> None:
    """What the command `companion` does, on one thread."""
    import torch

    from companion.cli import app

    torch.set_num_threads(1)
    app(list(arguments), standalone_mode=False)


def forked(*arguments: str) -> multiprocessing.Process:
    """The command `companion` in a process of its own; forked, where possible, from one that has torch already."""
    has_server = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if has_server else "spawn")
    context.set_forkserver_preload(["companion.cli", "companion.finetuning_run", "peft", "transformers", "diffusers"])
    process = context.Process(target=companion, args=tuple(map(str, arguments)))
    process.start()
    return process
