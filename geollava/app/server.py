"""The routes of the page, and its start and end."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.responses import StreamingResponse as Stream
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from geollava.answering.session import Session
from geollava.answering.settings import Settings
from geollava.app.desk import Desk, Event
from geollava.app.guard import READING, Guard, Password, check_token
from geollava.app.limits import BODY_BYTES, Limits
from geollava.app.messages import REFUSALS, RefusedError, event, public
from geollava.app.opening import EXAMPLES, Opener, OpenScene, own_folder, shown
from geollava.app.pyramid import TILE, level_sizes
from geollava.app.side import Side
from geollava.app.viewers import Viewer, Viewers
from geollava.model.default_model import DEMONSTRATION, is_default
from geollava.model.token_reduction import crop_methods, host_methods
from geollava.scenes import plan

STATIC = Path(__file__).parent / "static"
SIDES = ("a", "b")
LAST_PORT = 65535
SWEEP_SECONDS = 30  # between looks for idle viewers
END_SECONDS = 5  # that streams get when the server stops

Handler = Callable[[Request, Viewer], Awaitable[Response]]


class Page:
    """Everything that the routes share.

    Args:
        session: loaded; all viewers ask it.
        settings: how scenes are answered.
        root: files below it may be opened.
        password: who looks must know; None is nobody.
        cookie: name of the viewers' cookie. A browser does not keep ports apart.
    """

    def __init__(
        self,
        session: Session,
        settings: Settings,
        limits: Limits,
        *,
        root: Path | None = None,
        password: str | None = None,
        cookie: str = "geollava",
    ) -> None:
        self.session, self.settings, self.cookie = session, settings, cookie
        self.password, self.begin = Password(password), session.reduction
        self.model_name = "demonstration" if is_default(session.name) else Path(session.name).name
        self.names = {session.name: self.model_name}
        self.opener = Opener(limits, root, settings.of_scenes())
        self.folder = Path(tempfile.mkdtemp(prefix="geollava-app-"))
        self.viewers = Viewers(self.folder, limits)
        self.desk = Desk(limits, self.names)
        self.reading = ThreadPoolExecutor(2, thread_name_prefix="geollava-read")
        self.ending = False

    def close(self) -> None:
        """Ends all work and removes all files."""
        self.ending = True
        self.desk.close()
        self.reading.shutdown(wait=True, cancel_futures=True)
        self.viewers.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        async def sweep() -> None:
            while True:
                await asyncio.sleep(SWEEP_SECONDS)
                self.viewers.remove_idle()

        sweeping = asyncio.create_task(sweep())
        try:
            yield
        finally:
            sweeping.cancel()
            self.close()

    def going_on(self) -> None:
        """Ends the reading of a scene when the server ends."""
        if self.ending:
            raise RefusedError(503, "the server ends")

    async def index(self, request: Request) -> Response:
        if self.viewers.find(request.cookies.get(self.cookie, "")) is not None:
            return FileResponse(STATIC / "index.html")
        if self.password.needed:
            return RedirectResponse("/login", 303)
        return self.welcome(request, FileResponse(STATIC / "index.html"))

    async def login(self, request: Request) -> Response:
        if request.method in READING:
            return FileResponse(STATIC / "login.html")
        given = (await body_of(request)).decode("utf-8", "replace")
        if not await self.password.allows(given):
            raise RefusedError(403, "this is not the password")
        return self.welcome(request, JSONResponse({}))

    def welcome(self, request: Request, response: Response) -> Response:
        """The response with the key of a new viewer."""
        response.set_cookie(
            self.cookie,
            self.viewers.add().key,
            httponly=True,
            samesite="lax",  # a link from elsewhere finds the scene that is open
            secure=request.url.scheme == "https",
        )
        return response

    def of_viewer(self, handler: Handler, alone: bool = False) -> Callable[..., Any]:
        """A route for viewers, of which each has a key, and a token for what changes anything.

        Args:
            alone: one at a time for each viewer.
        """

        async def handle(request: Request) -> Response:
            viewer = self.viewers.find(request.cookies.get(self.cookie, ""))
            if viewer is None:
                raise RefusedError(401, "the page was idle for too long: load it again")
            if request.method not in READING:
                check_token(request.headers, viewer.token)
            if not alone:
                return await handler(request, viewer)
            viewer.check_free()
            async with viewer.working:
                return await handler(request, viewer)

        return handle

    async def state(self, request: Request, viewer: Viewer) -> Response:
        """What the page begins with."""
        config, begin = self.session.model.config, self.begin
        demonstration = is_default(self.session.name)
        notes = [DEMONSTRATION] if demonstration else []
        if config.untrained:
            notes.append("this model's weights are untrained, its answers mean nothing")
        return JSONResponse(
            {
                "token": viewer.token,
                "model": self.model_name,
                "notes": notes,
                "questions": known_questions() if demonstration else [],
                "methods": {"crop": crop_methods(), "question": host_methods()},
                "begin": {
                    "method": begin.name,
                    "num_keep": begin.asked_keep or begin.num_keep,
                },
                "tokens_per_crop": config.tokens_per_crop,
                "examples": list(EXAMPLES),
                "files": await run_in_threadpool(self.opener.listing),
                "upload_bytes": self.viewers.limits.upload_bytes,
                "scene": scene_of(viewer.scene) if viewer.scene else None,
            }
        )

    async def open(self, request: Request, viewer: Viewer) -> Response:
        """Opens an upload (`?name=`), a file of the server's folder, or an example."""
        reading = partial(asyncio.get_running_loop().run_in_executor, self.reading)
        with own_folder(viewer.folder) as folder:
            if (name := request.query_params.get("name")) is not None:
                length = request.headers.get("content-length")
                path = await self.opener.receive(request.stream(), length, folder)
                work = partial(self.opener.open, path, shown(name), folder, self.going_on)
            else:
                chosen = await json_of(request)
                if isinstance(example := chosen.get("example"), str):
                    work = partial(self.opener.example, example, folder, self.going_on)
                else:
                    path = self.opener.below(str(chosen.get("file", "")))
                    work = partial(self.opener.open, path, path.name, folder, self.going_on)
            scene = await reading(work)
        viewer.close_scene()  # the one before, which stays where another cannot be opened
        viewer.scene = scene
        return JSONResponse(scene_of(scene))

    async def close_scene(self, request: Request, viewer: Viewer) -> Response:
        viewer.close_scene()
        return JSONResponse({})

    async def tile(self, request: Request, viewer: Viewer) -> Response:
        scene, place = viewer.the_scene(), request.path_params
        if place["scene"] != scene.key:
            raise RefusedError(404, "the scene was closed")
        try:
            content = await run_in_threadpool(
                scene.pyramid.tile, place["level"], place["col"], place["row"]
            )
        except LookupError as error:
            raise RefusedError(404, str(error)) from error
        return Response(content, 200, {"cache-control": "private, max-age=3600"}, "image/jpeg")

    async def see(self, request: Request, viewer: Viewer) -> Response:
        """Encodes the scene on one side: events."""
        chosen = await json_of(request)
        scene = viewer.the_scene()
        viewer.check_free()
        name, method, num_keep = side_of(chosen), chosen.get("method"), chosen.get("num_keep")
        if not isinstance(method, str):
            raise ValueError(f"method must be a name, got {method!r}")
        if num_keep is not None and type(num_keep) is not int:
            raise ValueError(f"num_keep must be a whole number, got {num_keep!r}")
        if name not in viewer.sides:
            viewer.sides[name] = Side(self.session, scene, self.settings)
        side = viewer.sides[name]
        return await self.stream(viewer, partial(side.see, method, num_keep))

    async def ask(self, request: Request, viewer: Viewer) -> Response:
        """Answers a question on one side: events."""
        chosen = await json_of(request)
        viewer.check_free()
        side, question = viewer.side(side_of(chosen)), chosen.get("question")
        if not isinstance(question, str):
            raise ValueError(f"question must be text, got {question!r}")
        return await self.stream(viewer, partial(side.ask, question))

    async def stream(self, viewer: Viewer, work: Callable[..., Event]) -> Response:
        """The events of work at the desk; the viewer, which is free, works until they end."""
        self.desk.admit()
        events = self.desk.events(work, names_in(viewer.the_scene()))
        await viewer.working.acquire()

        async def sent() -> AsyncIterator[bytes]:
            async for content in events:
                yield event(content)

        return Held(sent(), viewer)

    async def layers(self, request: Request, viewer: Viewer) -> Response:
        side = viewer.side(request.path_params["side"])
        return Response(side.layers, 200, {"content-encoding": "gzip"}, "application/octet-stream")

    async def download(self, request: Request, viewer: Viewer) -> Response:
        """The overlay, or the GeoJSON, of one side."""
        name, kind = request.path_params["side"], request.path_params["kind"]
        scene, side = viewer.the_scene(), viewer.side(name)
        works = {"overlay.png": side.overlay, "tokens.geojson": side.geojson}
        if kind not in works:
            raise RefusedError(404, "a download must be overlay.png or tokens.geojson")
        self.desk.admit()
        events = [one async for one in self.desk.events(works[kind], names_in(scene))]
        content = events[-1]
        if "bytes" not in content:
            raise ValueError(content.get("error", "the server ends"))
        media = "image/png" if kind.endswith("png") else "application/geo+json"
        headers = {"content-disposition": f'attachment; filename="{name}-{kind}"'}
        return Response(content["bytes"], 200, headers, media)


class Held(Stream):
    """A stream that ends its viewer's work with it, however it ends."""

    def __init__(self, content: AsyncIterator[bytes], viewer: Viewer) -> None:
        super().__init__(content, media_type="text/event-stream")
        self.content, self.viewer = content, viewer

    async def __call__(self, *connection: Any) -> None:
        try:
            await super().__call__(*connection)
        finally:
            await self.content.aclose()  # type: ignore[attr-defined]  # it is a generator
            self.viewer.working.release()


def side_of(chosen: dict[str, Any]) -> str:
    side = chosen.get("side", SIDES[0])
    if side not in SIDES:
        raise ValueError(f"side must be one of {', '.join(SIDES)}, got {side!r}")
    return str(side)


def names_in(scene: OpenScene) -> dict[str, str]:
    """Paths that an error about a scene may hold, and what stands for them."""
    return {str(scene.path): scene.name, str(scene.folder): "", str(scene.path.parent): ""}


def scene_of(scene: OpenScene) -> dict[str, Any]:
    """A scene as the page draws it."""
    return {
        "key": scene.key,
        "name": scene.name,
        "size": list(scene.pyramid.size),
        "tile": TILE,
        "levels": len(level_sizes(scene.pyramid.size)),
        "georeferenced": scene.georeferenced,
        "questions": scene.questions,
    }


def known_questions() -> list[str]:
    """Questions of the kinds that the demonstration model learned."""
    seed, side = next(iter(EXAMPLES.values()))
    return [question.text for question in plan(seed, side).questions]


async def body_of(request: Request) -> bytes:
    """A small body. Raises RefusedError for a large one."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES:
            raise RefusedError(413, f"the request must have at most {BODY_BYTES:,} bytes")
    return body


async def json_of(request: Request) -> dict[str, Any]:
    """An object. Raises ValueError for anything else."""
    content = json.loads(await body_of(request))
    if not isinstance(content, dict):
        raise ValueError(f"the request must be an object, got {type(content).__name__}")
    return content


def make_app(page: Page, local: bool = True) -> Starlette:
    """The routes of a page.

    Args:
        local: see `Guard`.
    """

    def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, RefusedError):
            return JSONResponse({"error": str(error)}, error.status)
        return JSONResponse({"error": public(error, page.names)}, 400)  # to nobody, if he has gone

    viewer = page.of_viewer
    return Starlette(
        routes=[
            Route("/", page.index),
            Route("/login", page.login, methods=["GET", "POST"]),
            Route("/api/state", viewer(page.state)),
            Route("/api/scene", viewer(page.open, alone=True), methods=["POST"]),
            Route("/api/scene", viewer(page.close_scene, alone=True), methods=["DELETE"]),
            Route("/api/see", viewer(page.see), methods=["POST"]),
            Route("/api/ask", viewer(page.ask), methods=["POST"]),
            Route("/api/layers/{side}", viewer(page.layers)),
            Route("/api/download/{side}/{kind}", viewer(page.download)),
            Route("/tiles/{scene}/{level:int}/{col:int}/{row:int}.jpg", viewer(page.tile)),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(Guard, local=local)],
        exception_handlers=dict.fromkeys((RefusedError, ClientDisconnect, *REFUSALS), refuse),
        lifespan=page.lifespan,
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ValueError: no port has that number.
        OSError: the address or the port is not to be had.
    """
    if not 0 <= port <= LAST_PORT:
        raise ValueError(f"--port must be 0 to {LAST_PORT}, got {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def serve(page: Page, sock: socket.socket, local: bool) -> None:
    """Serves until it is interrupted or ended."""
    config = uvicorn.Config(
        make_app(page, local),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=END_SECONDS,
    )
    try:
        uvicorn.Server(config).run(sockets=[sock])
    finally:
        page.close()
