"""FastAPI: the bearer token, and nothing else in a request, says who pays; in `def` and `async def` endpoints alike.

python examples/fastapi_context.py [DATABASE_URL]          (needs fastapi and httpx; the app is called in memory)

A plain ASGI middleware enters the context: both kinds of endpoints, streamed bodies and background tasks run inside it.
A `def` dependency would not do: it runs in a worker thread, its context stays there, and metered calls are refused.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from decimal import Decimal
from tempfile import TemporaryDirectory
from typing import Annotated

import httpx
from fastapi import Body, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.datastructures import Headers
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from starlette.types import ASGIApp, Receive, Scope, Send

from agentcredits import CreditsError, RequestContext, configure, consume_credits, use_context


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "app_users"
    token_sha256: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str]
    organization_id: Mapped[str]
    department_id: Mapped[str | None]


def sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def find_user(engine: Engine, token: str) -> User | None:
    with Session(engine) as session:
        return session.get(User, sha256(token))


class PayerMiddleware:
    def __init__(self, app: ASGIApp, engine: Engine) -> None:
        self.app, self.engine = app, engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        user = await run_in_threadpool(find_user, self.engine, token) if scheme.lower() == "bearer" else None
        if user is None:
            refusal = JSONResponse({"detail": "Send a valid bearer token."}, 401, {"WWW-Authenticate": "Bearer"})
            return await refusal(scope, receive, send)
        payer = RequestContext(user.organization_id, department_id=user.department_id, user_id=user.user_id)
        async with use_context(payer):
            return await self.app(scope, receive, send)


@consume_credits("VideoAgent", "generate_video")  # 10 credits
def generate_video(prompt: str) -> str:
    return f"a video of {prompt}"


@consume_credits("ContentAgent", "generate_content")  # 1 credit
async def generate_content(topic: str) -> str:
    return f"a post about {topic}"


def create_app(engine: Engine) -> FastAPI:
    app = FastAPI()
    app.add_middleware(PayerMiddleware, engine=engine)

    @app.post("/videos")
    def post_video(prompt: Annotated[str, Body(embed=True)]) -> str:
        return generate_video(prompt)

    @app.post("/posts")
    async def post_post(prompt: Annotated[str, Body(embed=True)]) -> str:
        return await generate_content(prompt)

    @app.exception_handler(CreditsError)
    async def refuse(request: Request, error: CreditsError) -> JSONResponse:
        if error.http_status != 402:
            raise error  # a missing price, a database that is away: for the log, not for the customer
        return JSONResponse(jsonable_encoder(error.as_dict(), custom_encoder={Decimal: str}), status_code=402)

    return app


async def main(database: str) -> None:
    engine = create_engine(database)
    async with configure(database) as service:  # what decorators use
        await service.grant_credits("acme", 12)
        Base.metadata.create_all(engine)
        with Session(engine) as session, session.begin():
            session.merge(User(token_sha256=sha256("t0ken"), user_id="ada", organization_id="acme"))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(engine)), base_url="http://app") as http:
            for path, token in (("/posts", "t0ken"), ("/videos", "t0ken"), ("/videos", "t0ken"), ("/videos", "guess")):
                answer = await http.post(path, json={"prompt": "tides"}, headers={"Authorization": f"Bearer {token}"})
                print(path, answer.status_code, answer.text)
        for charge in await service.list_transactions("acme", type="debit"):
            print("charged", charge.charged, "for", charge.action, "by", charge.user_id)
    engine.dispose()


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("AGENTCREDITS_DATABASE_URL")
        asyncio.run(main(given or f"sqlite:///{folder}/credits.db"))
