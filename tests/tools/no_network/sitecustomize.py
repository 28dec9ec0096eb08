"""Refuses every connection to another machine, and writes each attempt into the file `ATTEMPTS`.

Python imports a module of this name when a process begins, where its folder is on the path; child
processes inherit both. Of sockets that native libraries open by themselves it sees nothing.
"""

import os
import socket
import sys

LOOKED_UP = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")


def refuse(event, arguments):
    if event in LOOKED_UP:
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        connected, address = arguments[:2]
        if connected.family not in (socket.AF_INET, socket.AF_INET6) or address is None:
            return
        host = address[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host not in (None, "", "localhost", "::1") and not host.startswith("127."):
        with open(os.environ["ATTEMPTS"], "a", encoding="utf-8") as file:
            file.write(f"{event} {host} by {sys.argv[0]}\n")
        raise ConnectionRefusedError(f"the test lets nobody reach {host}")


sys.addaudithook(refuse)
