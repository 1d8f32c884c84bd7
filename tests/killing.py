"""Children to be killed: forked from one warm process, they tell what they have done until they die."""

import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

_NUMBER = struct.Struct("<q")
Tell = Callable[[int], None]


class Children:
    """A process that has loaded `file`, and forks a child for every call of one of its functions.

    The function gets `tell(number)` and then its arguments, which travel as JSON. If `file` has a `warm()`, that is
    called before the first child.
    """

    def __init__(self, file: str) -> None:
        command = [sys.executable, __file__, file]
        paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment
        )

    def start(self, function: str, *arguments: Any) -> "Child":
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([function, *arguments]).encode() + b"\n")
        return Child(self)

    def number(self) -> int:
        assert self._process.stdout is not None
        return int(_NUMBER.unpack(self._process.stdout.read(8))[0])

    def __enter__(self) -> "Children":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()


class Child:
    """One forked child; what it tells are numbers that are not negative."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self.pid = children.number()
        self.last = -1
        self.status: int | None = None

    def hear(self) -> int | None:
        """The next number told, None when the child is gone."""
        if self.status is None:
            number = self._children.number()
            if number >= 0:
                self.last = number
                return number
            self.status = self._children.number()
        return None

    def kill(self) -> int:
        """Kill -9; the last number told, -1 if there was none."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def wait(self) -> int:
        """Until it has ended; the last number told."""
        while self.hear() is not None:
            pass
        return self.last


def _serve(file: str) -> None:
    spec = importlib.util.spec_from_file_location("children", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    getattr(module, "warm", lambda: None)()

    def tell(number: int) -> None:
        os.write(1, _NUMBER.pack(number))

    for line in sys.stdin:
        function, *arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            sys.stdin.close()
            tell(os.getpid())
            getattr(module, function)(tell, *arguments)
            return  # and end as programs do
        _, status = os.waitpid(child, 0)
        tell(-1)
        tell(status)


if __name__ == "__main__":
    _serve(sys.argv[1])
