"""`headrace web`: serves the console."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from infra.cli.listening import listen_address
from infra.cli.options import Config
from schemas.errors import Refused, UsageError

if TYPE_CHECKING:
    from infra.settings.model import Settings

_PACKAGES: Final = ("fastapi", "uvicorn")


class WebNotInstalled(UsageError):
    """Install it with `pip install 'headrace[web]'`; only `web` needs it."""


class OpenToOthers(Refused):
    """Configure a token for each operator ([web.tokens]), which reading then needs, too, or listen on 127.0.0.1."""


def web(
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Where to listen; port 0 chooses a free one.")
    ] = "127.0.0.1:8090",
    hosts: Annotated[
        list[str] | None,
        typer.Option("--host", metavar="NAME", help="Another host name, such as a proxy's.", show_default=False),
    ] = None,
    config: Config = None,
) -> None:
    """Serve the console: one live page about everything.

        headrace web

    Shows migrations, sources and dead letters, for everyone on this machine; [web.tokens] says who may pause, resume,
    replay, retry, discard or change the pace. On another address, or with --host, reading needs a token as well.
    Needs the extra `web`. Ctrl-C or SIGTERM stops it.
    """
    from importlib.util import find_spec

    from infra.service import log
    from infra.settings.file import load_settings

    address, port = listen_address(listen)
    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise WebNotInstalled(f"the console is not installed ({', '.join(missing)})")
    settings = load_settings(config)
    log.configure(settings.log)
    _serve(settings, address, port, hosts or [])


def _serve(settings: Settings, address: str, port: int, hosts: list[str]) -> None:
    from consumers.web.console_server import serving
    from consumers.web.request_guard import Access
    from infra.service import log
    from infra.service.served_names import ServedNames, is_loopback
    from infra.service.signals import stop_on_signals

    tokens = {name: token.get_secret_value() for name, token in settings.web.tokens.items()}
    others = not is_loopback(address) or bool(hosts)
    if others and not tokens:
        where = f"--host {hosts[0]}" if hosts and is_loopback(address) else f"address {address}"
        raise OpenToOthers(f"{where} would show the console to everyone who reaches it")
    access = Access(ServedNames(address, hosts), tokens, reading_needs_token=others)
    with stop_on_signals(exit_code=0) as stop, serving(settings, address, port, access, stop) as chosen:
        shown = f"[{address}]" if ":" in address else address
        log.get().info("listening", url=f"http://{shown}:{chosen}/", changes=sorted(tokens), reading_needs_token=others)
        stop.wait()
