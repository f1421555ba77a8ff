"""The connection: made when it is needed, and never shared between processes or event loops."""

from __future__ import annotations

from typing import Any

from curriculum_api.channel import open_channel
from curriculum_api.v1.trainer_service_pb2_grpc import TrainerServiceStub
from curriculum_client import _forks
from curriculum_client._settings import Settings

# Channels of parent processes. Collecting one would talk on the parent's connection.
_inherited: list[Any] = []


class Link:
    """A channel of `grpc` or of `grpc.aio`, opened by its first use."""

    def __init__(self, settings: Settings, transport: Any) -> None:
        self._settings = settings
        self._transport = transport
        self._lock = _forks.ProcessLock()
        self._channel: Any = None
        self._owner: object = None
        self._stub: TrainerServiceStub | None = None
        _forks.watch(self)

    def stub(self, owner: object = None) -> TrainerServiceStub:
        """The service, over this owner's channel: an event loop's must not serve another's."""
        with self._lock:
            if self._stub is None or self._owner is not owner:
                settings = self._settings
                _forks.before_connecting(by_asyncio=owner is not None)
                self._owner = owner
                self._channel = open_channel(settings.target, settings.tls, self._transport)
                self._stub = TrainerServiceStub(self._channel)
            return self._stub

    def detach(self) -> Any:
        """The channel, for its owner to close; None when there is none."""
        with self._lock:
            channel = self._channel
            self._channel = self._stub = self._owner = None
        return channel

    def after_fork(self) -> None:
        """Leave the channel to the parent."""
        if self._channel is not None:
            _inherited.append((self._channel, self._stub))
        self._channel = self._stub = self._owner = None
