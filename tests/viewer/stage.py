"""OHIF's web files, and the web server that joins them with Orthanc's DICOMweb under one origin."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import subprocess
import tarfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import ClientSession, web

if TYPE_CHECKING:
    from collections.abc import Iterator

OHIF_VERSION = "3.13.2"
OHIF_SHA512 = "WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA=="
CACHE = Path(".npm")
WEB_PORT = 18080

APP_CONFIG = """window.config = {
  routerBasename: '/', extensions: [], modes: [], showStudyList: true, showLoadingIndicator: true,
  investigationalUseDialog: { option: 'never' }, maxNumberOfWebWorkers: 1, defaultDataSourceName: 'dicomweb',
  dataSources: [{
    namespace: '@ohif/extension-default.dataSourcesModule.dicomweb', sourceName: 'dicomweb',
    configuration: {
      friendlyName: 'Orthanc', name: 'orthanc',
      qidoRoot: '/dicom-web', wadoRoot: '/dicom-web', wadoUriRoot: '/wado',
      qidoSupportsIncludeField: false, supportsReject: false, supportsFuzzyMatching: false, supportsWildcard: true,
      imageRendering: 'wadors', thumbnailRendering: 'wadors', enableStudyLazyLoad: true,
      bulkDataURI: { enabled: true, relativeResolution: 'studies' },
      singlepart: 'bulkdata,video', omitQuotationForMultipartRequest: true,
    },
  }],
};
"""


def fetch_ohif() -> Path:
    """Give the folder of OHIF's web files; the first call takes them from the npm registry, checked by hash."""
    archive, folder = CACHE / f"ohif-app-{OHIF_VERSION}.tgz", CACHE / f"ohif-{OHIF_VERSION}"
    CACHE.mkdir(exist_ok=True)
    if not archive.exists():
        subprocess.run(
            ["npm", "pack", "--silent", "--pack-destination", CACHE, f"@ohif/app@{OHIF_VERSION}"], check=True
        )
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if digest != OHIF_SHA512:
        raise RuntimeError(f"{archive} is not the OHIF that was tried: delete it and run again")
    if not (folder / "package").is_dir():
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
    dist = folder / "package" / "dist"
    (dist / "app-config.js").write_text(APP_CONFIG)
    return dist


@contextmanager
def web_server(dist: Path, orthanc_address: str) -> Iterator[str]:
    """Serve OHIF's files and pass its DICOMweb requests on to Orthanc, all under one origin."""

    async def handle(request: web.Request) -> web.StreamResponse:
        headers = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
        if request.path.startswith(("/dicom-web", "/wado")):
            kept = {k: v for k, v in request.headers.items() if k.lower() in {"accept", "content-type"}}
            async with (
                ClientSession() as session,
                session.request(
                    request.method, orthanc_address + request.path_qs, headers=kept, data=await request.read()
                ) as answer,
            ):
                headers["Content-Type"] = answer.headers.get("Content-Type", "application/octet-stream")
                return web.Response(status=answer.status, body=await answer.read(), headers=headers)
        file = (dist / request.path.lstrip("/")).resolve()
        inside = file.is_file() and file.is_relative_to(dist.resolve())
        return web.FileResponse(file if inside else dist / "index.html", headers=headers)

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> web.AppRunner:
        app = web.Application(client_max_size=2**28)
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", WEB_PORT).start()
        return runner

    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    try:
        yield f"http://127.0.0.1:{WEB_PORT}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
