"""A TCP relay before a server, by which a test cuts its connections, refuses or freezes them."""

import contextlib
import selectors
import socket
import threading


class Relay:
    """Passes bytes on in both directions until told otherwise; a context manager."""

    def __init__(self, host: str, port: int, *, address: str = "127.0.0.1") -> None:
        self._target = (host, port)
        self._listener = socket.create_server((address, 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._refusing = self._frozen = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._woken, self._wake = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def __enter__(self) -> "Relay":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wake.close()
        self._thread.join(5)
        self.cut()
        self._listener.close()

    @property
    def connections(self) -> int:
        with self._lock:
            return len(self._pairs) // 2

    def cut(self) -> None:
        """Resets all connections that are open now."""
        with self._lock:
            for side in list(self._pairs):
                # Without lingering, close() sends a reset.
                with contextlib.suppress(OSError):
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                self._forget(side)

    def refuse(self, refusing: bool = True) -> None:
        """New connections are reset at once, as by a balancer without a server; those that are open stay."""
        self._refusing = refusing

    def freeze(self, frozen: bool = True) -> None:
        """Nothing comes through any more, in either direction, and nobody is told."""
        self._frozen = frozen

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select(0.05):
                if key.fileobj is self._woken:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                elif not self._frozen:
                    assert isinstance(key.fileobj, socket.socket)
                    self._pass_on(key.fileobj)
            if self._frozen:
                threading.Event().wait(0.05)  # what has come stays readable; do not spin on it

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        server = None
        if not self._refusing:
            with contextlib.suppress(OSError):  # the server itself is away
                server = socket.create_connection(self._target, 5)
        if server is None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
            return
        with self._lock:
            self._pairs |= {client: server, server: client}
            for side in (client, server):
                self._selector.register(side, selectors.EVENT_READ)

    def _pass_on(self, side: socket.socket) -> None:
        with self._lock:
            other = self._pairs.get(side)
            if other is None:
                return
            try:
                piece = side.recv(65536)
                if piece:
                    other.sendall(piece)
                    return
            except OSError:
                pass
            self._forget(side)

    def _forget(self, side: socket.socket) -> None:
        other = self._pairs.pop(side, None)
        for one in (side, other):
            if one is not None:
                self._pairs.pop(one, None)
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(one)
                one.close()
