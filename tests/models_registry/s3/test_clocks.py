"""A service whose clock is another one than ours: signatures are made by its clock from its first refusal on."""

from __future__ import annotations

import datetime as dt
import email.utils
from pathlib import Path

import pytest
from aiohttp import web

from models_registry.download.downloader import running
from models_registry.download.remote import Remote
from models_registry.download.transfer import Wanted
from models_registry.errors import SourceRefused
from models_registry.s3.sign import Credentials, S3Signer

CONTENT = b"x" * 70_000


@pytest.mark.asyncio
@pytest.mark.parametrize("hours", [-30, 0, 30])
async def test_by_whichever_clock_it_lives_the_file_comes(tmp_path: Path, hours: int) -> None:
    refused = 0

    async def answer(request: web.Request) -> web.Response:
        """As S3 does: a signature more than a quarter of an hour away is refused (RequestTimeTooSkewed)."""
        nonlocal refused
        there = dt.datetime.now(dt.UTC) + dt.timedelta(hours=hours)
        signed = dt.datetime.strptime(request.headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
        headers = {"Date": email.utils.format_datetime(there, usegmt=True)}
        if abs(signed - there) > dt.timedelta(minutes=15):
            refused += 1
            return web.Response(status=403, headers=headers)
        if request.path != "/bucket/key":
            return web.Response(status=403, headers=headers)
        return web.Response(body=CONTENT, headers={**headers, "ETag": '"e"'})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/bucket"
    signer = S3Signer(Credentials("key", "secret"), "us-east-1", lambda: dt.datetime.now(dt.UTC))
    try:
        async with running(2) as downloader:
            file = Remote(f"{url}/key", name="key", signer=signer)
            await downloader.fetch([Wanted(tmp_path / "key", len(CONTENT), file)])
            assert (tmp_path / "key").read_bytes() == CONTENT
            assert refused == (1 if hours else 0)
            with pytest.raises(SourceRefused):  # for another reason than the clock: at once
                await downloader.fetch([Wanted(tmp_path / "no", 5, Remote(f"{url}/no", name="no", signer=signer))])
    finally:
        await runner.cleanup()
