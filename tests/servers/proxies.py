"""A bad network: what stands between client and server, and tampers with replies."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

from tests.servers.process import HOST

if TYPE_CHECKING:
    from tests.servers.process import Server

Mode: TypeAlias = Literal["pass", "hold", "cut", "half", "swallow", "silent", "refuse"]


class Proxy:
    """Stands between client and server, and tampers with replies.

    `mode`: "pass" them on; "hold" them until the mode changes; "cut" the connection instead, or
    after the first "half" of what has come; "swallow" them. Two more are about connections to
    come, and leave the others alone: "silent" accepts them and does nothing until the mode
    changes, "refuse" resets them at once. `delay` is how many seconds late each reply is, at least.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self.mode: Mode = "pass"
        self.delay = 0.0
        #: Set when a reply has come that is not passed on whole.
        self.caught = threading.Event()
        self.connections = 0
        self._closed = False
        self._listener = socket.create_server((HOST, 0))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.port: int = self._listener.getsockname()[1]
        self.url = f"redis://{HOST}:{self.port}/0"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        # A plain close would not wake the thread in accept().
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut_all()

    def cut_all(self) -> None:
        """Cut every connection there is, whether or not anything is under way on it."""
        with self._lock:
            for sock in self._open:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            if self.mode == "refuse":
                # Lingering for no time at all sends a reset.
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                near.close()
            else:
                threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        with closing(near), suppress(OSError):
            self._wait_out("silent")
            with closing(socket.create_connection((HOST, self._server.port))) as far:
                with self._lock:
                    if self._closed:
                        return
                    self._open |= {near, far}
                requests = threading.Thread(target=self._requests, args=(near, far), daemon=True)
                requests.start()
                self._replies(far, near)
                requests.join()
                with self._lock:
                    self._open -= {near, far}

    def _wait_out(self, mode: Mode) -> None:
        while self.mode == mode and not self._closed:
            time.sleep(0.002)

    def _requests(self, near: socket.socket, far: socket.socket) -> None:
        with suppress(OSError):
            while data := near.recv(65536):
                far.sendall(data)
            far.shutdown(socket.SHUT_WR)

    def _replies(self, far: socket.socket, near: socket.socket) -> None:
        with suppress(OSError):
            while data := far.recv(65536):
                time.sleep(self.delay)
                # Read once: who waits for `caught` may change the mode right after it.
                mode = self.mode
                if mode in ("hold", "cut", "half", "swallow"):
                    self.caught.set()
                if mode == "hold":
                    self._wait_out("hold")
                    mode = self.mode
                if mode == "half":
                    near.sendall(data[: len(data) // 2])
                if mode in ("cut", "half") or self._closed:
                    break
                if mode != "swallow":
                    near.sendall(data)
        with suppress(OSError):
            near.shutdown(socket.SHUT_RDWR)
