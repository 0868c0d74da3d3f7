"""Pipes are reused only when empty, bounded in number, and done without when there are none to have."""

from __future__ import annotations

import fcntl
import os

import pytest

from tests.engine.rig import no_descriptor_left
from urelay.engine import pipes as pipes_module
from urelay.engine.pipes import PipePool


def test_a_pipe_is_large_non_blocking_and_not_inherited() -> None:
    with no_descriptor_left():
        pool = PipePool(4)
        pipe = pool.take()
        assert pipe is not None
        assert pipe.size >= 1 << 16
        for end in (pipe.reader, pipe.writer):
            assert not os.get_blocking(end)
            assert not os.get_inheritable(end)
        pool.give(pipe)
        pool.close()


def test_an_empty_pipe_is_reused_and_a_dropped_one_is_not() -> None:
    with no_descriptor_left():
        pool = PipePool(4)
        first = pool.take()
        assert first is not None
        pool.give(first)
        assert pool.take() == first
        os.write(first.writer, b"somebody's")
        pool.drop(first)
        assert (pool.open, pool.in_use) == (0, 0)
        second = pool.take()
        assert second is not None
        with pytest.raises(BlockingIOError):
            os.read(second.reader, 1)
        pool.give(second)
        pool.close()


def test_there_are_never_more_than_allowed() -> None:
    with no_descriptor_left():
        pool = PipePool(3)
        taken = [pool.take() for _ in range(5)]
        assert [pipe is not None for pipe in taken] == [True, True, True, False, False]
        for pipe in taken:
            if pipe is not None:
                pool.drop(pipe)
        pool.close()
        assert pool.take() is None


def test_a_pipe_that_the_kernel_made_small_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for an unprivileged user above `pipe-user-pages-soft`: two pages, and no word about it."""
    real = fcntl.fcntl
    tries = []

    def small(fd: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETPIPE_SZ:
            raise PermissionError
        if command == fcntl.F_GETPIPE_SZ:
            tries.append(fd)
            return 8192
        return real(fd, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", small)
    with no_descriptor_left():
        pool = PipePool(4)
        assert pool.take() is None
        assert pool.take() is None
        assert len(tries) == 1, "a refusal is remembered for a while"
        monkeypatch.setattr(pipes_module, "_RETRY_S", 0.0)
        pool._not_before = 0.0
        monkeypatch.setattr(fcntl, "fcntl", real)
        pipe = pool.take()
        assert pipe is not None
        pool.drop(pipe)
        pool.close()


def test_no_descriptor_means_no_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(flags: int) -> tuple[int, int]:
        raise OSError(24, "too many open files")

    monkeypatch.setattr(os, "pipe2", fail)
    pool = PipePool(4)
    assert pool.take() is None
    assert pool.open == 0
    pool.close()


def test_the_pool_keeps_only_so_many() -> None:
    with no_descriptor_left():
        pool = PipePool(200)
        taken = [pipe for pipe in (pool.take() for _ in range(100)) if pipe is not None]
        for pipe in taken:
            pool.give(pipe)
        assert pool.open == 64
        assert pool.in_use == 0
        pool.close()
