"""`tickpipe simulate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common import log, process
from common.terminal import echo
from tickpipe.extras import required_extra

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free port.")]
Rate = Annotated[float, typer.Option(min=0.001, help="Price events per second on each connection.")]
CaptureFile = Annotated[
    Path | None,
    typer.Option(help='Replay this file once and exit. Each line is {"at": seconds, "event": {…}}.'),
]
Speed = Annotated[float, typer.Option(min=0, help="Speed of the replay: 1 as recorded, 0 as fast as possible.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the random walk, for repeatable prices.")]


def simulate(
    host: Host = "127.0.0.1",
    port: Port = 8765,
    rate: Rate = 10.0,
    capture: CaptureFile = None,
    speed: Speed = 1.0,
    seed: Seed = None,
) -> None:
    """Serve prices over Twelve Data's websocket protocol: a random walk, or the replay of a capture.

    The same port also serves the REST call `time_series`, with one-minute bars of a separate random walk.

    Needs the extra `local`.
    """
    with required_extra("local", "tickpipe simulate"):
        from tickpipe.simulator.config import SimulatorConfig
        from tickpipe.simulator.server import Simulator
    log.configure("ERROR")
    stop = process.stop_on_signals()
    simulator = Simulator(SimulatorConfig(host=host, port=port, rate=rate, capture=capture, speed=speed, seed=seed))
    simulator.start()
    echo(f"serving {simulator.url}, bars at {simulator.rest_url}; any API key is accepted. Press Ctrl-C to stop")
    while not stop.is_set() and not simulator.wait(0.2):
        pass
    echo(str(simulator.stop()))
