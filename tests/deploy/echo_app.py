"""A Flower app with nothing of ours: its server asks every node, its nodes say who they are.

What carries it from end to end is Flower alone: proxy, certificates, node keys, executors.
"""

import json
import os
import time
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

client = ClientApp()
server = ServerApp()


@client.query("echo")
def echo(message: Message, context: Context) -> Message:
    """Send back the word, with what the node and its process are told."""
    told = {key: value for key, value in os.environ.items() if key.startswith("FLWR_")}
    said = {"word": message.content["say"]["word"], "node": json.dumps(dict(context.node_config))}
    record = ConfigRecord({**said, "environment": json.dumps(told)})
    return Message(RecordDict({"echo": record}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Ask as many nodes as are expected, and write down what they say."""
    expected, end = int(context.run_config["nodes"]), time.monotonic() + 60
    while len(nodes := list(grid.get_node_ids())) < expected and time.monotonic() < end:
        time.sleep(0.2)
    asked = [
        Message(RecordDict({"say": ConfigRecord({"word": "hello"})}), node, "query.echo")
        for node in nodes
    ]
    replies = [dict(reply.content["echo"]) for reply in grid.send_and_receive(asked, timeout=60)]
    out = Path(str(context.run_config["out"]))
    out.with_suffix(".part").write_text(json.dumps(replies))
    out.with_suffix(".part").rename(out)
