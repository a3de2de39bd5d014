"""Processes that do tasks: spawned once, fed through a pipe each, ended with their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from medkd.pipeline.context import Event
from medkd.pipeline.task import Failure, Step, Task, perform

_SPAWN = multiprocessing.get_context("spawn")  # a forked CUDA or OpenMP runtime hangs
_FINISHED = "finished"
_EVENT = "event"


class Workers:
    """A fixed number of worker processes, one task each at a time.

    Args:
        count: number of processes.
        step: does the work of a node; a function that a fresh process can import.
        threads: CPU threads of each.
        progress: takes the events of all of them, in this process.
    """

    def __init__(self, count: int, step: Step, threads: int, progress: Callable[[Event], None]) -> None:
        self._step, self._threads, self._progress = step, threads, progress
        self._workers = [_Worker(step, threads) for _ in range(count)]

    @property
    def idle(self) -> bool:
        """Whether a worker has nothing to do."""
        return any(worker.task is None for worker in self._workers)

    @property
    def busy(self) -> bool:
        """Whether a worker has something to do."""
        return any(worker.task is not None for worker in self._workers)

    def start(self, task: Task) -> None:
        """Give the task to an idle worker."""
        next(worker for worker in self._workers if worker.task is None).start(task)

    def wait(self) -> Iterator[tuple[Task, Failure | None]]:
        """Wait for news, forward events, and yield the tasks that ended."""
        working = {worker.pipe: worker for worker in self._workers if worker.task is not None}
        for pipe in wait(list(working)):
            worker = working[pipe]  # type: ignore[index]  # wait() gives back what it was given
            task = worker.task
            assert task is not None
            try:
                kind, what = worker.pipe.recv()
            except (EOFError, ConnectionResetError):
                yield task, Failure(task.node, worker.obituary())
                self._workers[self._workers.index(worker)] = _Worker(self._step, self._threads)
                continue
            if kind == _EVENT:
                self._progress(what)
            else:
                worker.task = None
                yield task, what

    def close(self) -> None:
        """End every worker now, whatever it is doing."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(timeout=5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()


class _Worker:
    def __init__(self, step: Step, threads: int) -> None:
        self.pipe, other = _SPAWN.Pipe()
        # Not daemonic: a daemonic process may have no children, and data loaders have some.
        self.process = _SPAWN.Process(target=_serve, args=(other, step, threads, os.getpid()), daemon=False)
        self.process.start()
        other.close()  # or the end of the process would not be seen as the end of the pipe
        self.task: Task | None = None

    def start(self, task: Task) -> None:
        self.task = task
        self.pipe.send(task)

    def obituary(self) -> str:
        self.process.join(timeout=5)
        code = self.process.exitcode
        if code == -signal.SIGKILL:
            return "its worker process was killed, most likely for memory; use fewer --jobs or a smaller train.batch"
        return f"its worker process ended with code {code}; run with --jobs 1 to see why"


def _serve(pipe: Connection, step: Step, threads: int, parent: int) -> None:
    """Do tasks until the parent closes the pipe; the body of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)  # read when torch is imported, which comes later
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    lock = threading.Lock()

    def send(kind: str, what: Any) -> None:
        with lock:
            pipe.send((kind, what))

    while True:
        try:
            task: Task = pipe.recv()
        except (EOFError, OSError):
            return
        send(_FINISHED, perform(task, step, lambda event: send(_EVENT, dict(event))))


def _leave_with(parent: int) -> None:
    """End this process when its parent is gone, however that died: nobody else may be writing when a run resumes."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
