"""Flower without processes: a Grid that calls ClientApps directly, through Flower's serialiser."""

import uuid
from collections.abc import Callable, Iterable, Mapping

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.serverapp import Grid


class InProcessGrid(Grid):
    """Every message is serialised, so that a value which Flower refuses is found here."""

    def __init__(self, apps: Mapping[int, Callable[[Message, Context], Message]]) -> None:
        self.apps = dict(apps)
        self.contexts = {
            node: Context(1, node, {"partition-id": i}, RecordDict(), {})
            for i, node in enumerate(sorted(apps))
        }
        self.silent: set[int] = set()
        self.sent: list[Message] = []
        self._replies: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let every node that is not silent answer at once."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
            received = message_from_proto(message_to_proto(message))
            node = received.metadata.dst_node_id
            self.sent.append(received)
            ids.append(received.metadata.message_id)
            if node in self.silent:
                continue
            try:
                reply = self.apps[node](received, self.contexts[node])
            except Exception as error:  # noqa: BLE001 - as Flower does: any exception becomes an error reply
                reply = Message(Error(code=2, reason=str(error)), reply_to=received)
            self._replies[ids[-1]] = message_from_proto(message_to_proto(reply))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The answers to these messages, each once."""
        return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,  # noqa: ARG002 - answers are there at once
    ) -> Iterable[Message]:
        """Push and pull."""
        return self.pull_messages(self.push_messages(messages))

    def get_node_ids(self) -> Iterable[int]:
        """All nodes, in no particular order."""
        return list(self.apps)

    def set_run(self, run):
        """This Grid needs no run."""
        raise NotImplementedError

    @property
    def run(self):
        """This Grid needs no run."""
        raise NotImplementedError

    def create_message(self, *args, **kwargs):
        """Deprecated in Flower."""
        raise NotImplementedError
