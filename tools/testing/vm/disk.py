# SPDX-License-Identifier: GPL-2.0
"""A disk for guests: with a cache that a loss of power empties, and with failures when they are asked for.

QEMU reaches it over the protocol of network block devices (NBD, doc/proto.md of its project), as a client: so what the
guest has written, and what of it was flushed, is known here exactly, whenever QEMU is killed.

What a real disk with a cache may do, this one does: sectors that were written and not flushed since are all lost, or none,
or some, whatever their order was, also of one and the same write. What was flushed stays.
"""

import contextlib
import random
import socket
import struct
import threading

SECTOR = 512

# The handshake.
_MAGIC, _OPTION_MAGIC, _REPLY_MAGIC = b"NBDMAGIC", b"IHAVEOPT", 0x3E889045565A9
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_EXPORT_NAME, _ABORT, _INFO, _GO = 1, 2, 6, 7
_ACK, _REP_INFO, _UNSUPPORTED = 1, 3, 0x80000001
_INFO_EXPORT = 0
# That there are flags at all, and that FLUSH is known.
_FLAGS = 1 | 4
# Requests, and their replies.
_REQUEST, _REPLY = 0x25609513, 0x67446698
_READ, _WRITE, _DISCONNECT, _FLUSH = 0, 1, 2, 3
_EIO, _EINVAL = 5, 22

# What fails, by the word with which a guest asks for it.
FAILURES = {"work": (), "fail": (_READ, _WRITE, _FLUSH), "fail-writes": (_WRITE, _FLUSH)}


class Disk:
    """One disk, for one guest after the other. It is empty at first.

    Its last sector is no part of it: that never fails, and has the word of FAILURES that holds.
    """

    def __init__(self, mebibytes, flush_seconds=0.0, cached=True):
        self.size = mebibytes << 20
        # How long a flush takes.
        self.flush_seconds = flush_seconds
        # Whether anything can be lost. Remembering it takes more memory than is written.
        self.cached = cached
        self.lock = threading.Lock()
        # Pages of these are no memory until they are written.
        self.content = bytearray(self.size)
        # What was on the disk before it was overwritten by what is not flushed: by the number of the sector.
        self.unflushed = {}
        self.state = "work"
        self.flushes = 0
        self.lost = 0
        self.thread = None

    @contextlib.contextmanager
    def served(self, path):
        """As long as it lasts, QEMU can reach it at a socket. Gives QEMU's options."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(1)
        self.thread = threading.Thread(target=self._serve, args=(listener,), daemon=True)
        self.thread.start()
        try:
            yield [
                "-blockdev", f"driver=nbd,node-name=disk,server.type=unix,server.path={path}",
                "-device", "virtio-blk-pci,drive=disk,write-cache=on,werror=report,rerror=report",
            ]
        finally:
            # Wakes it if nobody has come.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            # QEMU has ended, and what it has sent is heard to its end.
            self.thread.join(30)

    def set_state(self, word):
        """What fails from now on."""
        with self.lock:
            self.state = word

    def lose_power(self, percent):
        """Takes away what is not flushed, but for some hundredths of it. QEMU has ended."""
        chance = random.SystemRandom()
        with self.lock:
            for sector, before in self.unflushed.items():
                if chance.random() * 100 >= percent:
                    at = sector * SECTOR
                    self.lost += self.content[at:at + SECTOR] != before
                    self.content[at:at + SECTOR] = before
            self.unflushed.clear()

    def switch_off(self):
        """What becomes of it when a guest powers itself off: nothing is lost."""
        with self.lock:
            self.unflushed.clear()

    def _serve(self, listener):
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, contextlib.suppress(ConnectionError):
            stream = connection.makefile("rwb")
            if self._greet(stream):
                while self._answer(stream):
                    stream.flush()

    def _greet(self, stream):
        """The handshake. Gives whether requests follow."""
        stream.write(_MAGIC + _OPTION_MAGIC + struct.pack(">H", _FIXED_NEWSTYLE | _NO_ZEROES))
        stream.flush()
        (flags,) = _take(stream, ">I")
        while True:
            magic, option, length = _take(stream, ">8sII")
            if magic != _OPTION_MAGIC:
                raise ConnectionError("not an option")
            _exactly(stream, length)

            def reply(kind, data=b"", option=option):
                stream.write(struct.pack(">QIII", _REPLY_MAGIC, option, kind, len(data)) + data)

            export = struct.pack(">QH", self.size, _FLAGS)
            if option == _EXPORT_NAME:
                stream.write(export + (b"" if flags & _NO_ZEROES else bytes(124)))
            elif option in (_INFO, _GO):
                reply(_REP_INFO, struct.pack(">H", _INFO_EXPORT) + export)
                reply(_ACK)
            else:
                reply(_ACK if option == _ABORT else _UNSUPPORTED)
            stream.flush()
            if option in (_EXPORT_NAME, _GO):
                return True
            if option == _ABORT:
                return False

    def _answer(self, stream):
        """One request. Gives whether others follow."""
        magic, _, kind, handle, offset, length = _take(stream, ">IHHQQI")
        if magic != _REQUEST:
            raise ConnectionError("not a request")
        data = _exactly(stream, length) if kind == _WRITE else b""
        if kind == _DISCONNECT:
            return False
        error, found = self._do(kind, offset, length, data)
        stream.write(struct.pack(">IIQ", _REPLY, error, handle) + found)
        return True

    def _do(self, kind, offset, length, data):
        """Does what is asked for. Gives the error and what is read."""
        if kind not in (_READ, _WRITE, _FLUSH) or offset + length > self.size:
            return _EINVAL, b""
        if kind == _FLUSH and self.flush_seconds:
            threading.Event().wait(self.flush_seconds)
        with self.lock:
            last = self.size - SECTOR
            if kind == _READ and offset == last and length == SECTOR:
                return 0, self.state.encode().ljust(SECTOR, b"\0")
            if kind in FAILURES[self.state]:
                return _EIO, b""
            if kind == _READ:
                return 0, bytes(self.content[offset:offset + length])
            if kind == _FLUSH:
                self.flushes += 1
                self.unflushed.clear()
                return 0, b""
            if self.cached:
                for sector in range(offset // SECTOR, (offset + length - 1) // SECTOR + 1):
                    at = sector * SECTOR
                    self.unflushed.setdefault(sector, bytes(self.content[at:at + SECTOR]))
            self.content[offset:offset + length] = data
            return 0, b""


def _exactly(stream, length):
    data = stream.read(length)
    if len(data) != length:
        raise ConnectionError("the end")
    return data


def _take(stream, form):
    return struct.unpack(form, _exactly(stream, struct.calcsize(form)))
