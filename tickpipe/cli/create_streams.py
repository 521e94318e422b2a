"""`tickpipe create-streams`."""

from __future__ import annotations

from typing import Annotated

import typer

from common import settings
from common.channels import MAX_CHANNELS, channel_keys
from common.formatting import counted
from common.streams.registry import ChannelRegistry
from common.terminal import echo
from tickpipe.cli.connections import open_channels

Partitions = Annotated[
    int, typer.Option(envvar="PARTITIONS", min=1, max=MAX_CHANNELS, help="The number of channels of the producers.")
]


def create_streams(
    partitions: Partitions = 1,
    price_stream: settings.PriceStream = settings.PRICE_STREAM,
    consumer_group: settings.ConsumerGroup = settings.CONSUMER_GROUP,
) -> None:
    """Create the streams and the consumer group of each channel, for a scaler that reads their lag.

    Producers create streams and consumers create both by themselves. What exists stays as it is.
    """
    keys = channel_keys(price_stream, partitions)
    channels = open_channels(consumer_group, price_stream, [])
    if partitions > 1:
        ChannelRegistry(channels.single).add(keys)
    for key in keys:
        for stream in channels.both(key):
            stream.check_consume()
            stream.ensure_group()
    echo(f"{counted(len(keys), 'channel')} ready: {', '.join(keys)}")
