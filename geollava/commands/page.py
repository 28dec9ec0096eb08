"""`geollava app`: the web page, served until it is interrupted."""

from __future__ import annotations

import secrets

from geollava.commands.console import note, quiet_transformers, say
from geollava.commands.options import PageOptions, SettingsOptions
from geollava.commands.records import spread
from geollava.common.extras import install


@spread
def serve_page(*, page: PageOptions, settings: SettingsOptions) -> None:
    """Serve a web page: look at scenes, see what is kept, ask.

    It listens on this machine alone unless --host says otherwise. Files that
    are sent go with their viewer, and all with the server. The options of a
    model and of scenes are those of `ask`.
    """
    try:
        from geollava.app import server
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise ImportError(f"the web page needs the extra app: {install('app')}") from error
    from geollava.app.guard import is_loopback
    from geollava.app.limits import Limits

    if page.folder is not None and not page.folder.is_dir():
        raise ValueError(f"--folder must be a folder, {page.folder} is none")
    local, password = is_loopback(page.host), page.password
    if not local and not password:
        password = secrets.token_urlsafe(12)
    with server.listen(page.host, page.port) as sock:
        quiet_transformers()
        limits = Limits() if page.upload_bytes is None else Limits(page.upload_bytes)
        port = sock.getsockname()[1]
        shared = server.Page(
            settings.session(),
            settings,
            limits,
            root=page.folder,
            password=password or None,
            cookie=f"geollava-{port}",
        )
        host = f"[{page.host}]" if ":" in page.host else page.host
        say(f"http://{host}:{port} (Ctrl-C ends it)")
        if not local:
            note("whoever reaches this address and knows the password can use the page")
        if password != page.password:
            say(f"password: {password}")
        server.serve(shared, sock, local)
