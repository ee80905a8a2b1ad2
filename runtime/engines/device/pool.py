"""Workspaces of conversations that are over, kept for the next: making one takes longer than many a first row."""

from __future__ import annotations

from collections import deque

from .model import DeviceModel
from .workspace import Workspace

#: Workspaces that are kept: each holds a whole cache.
SPARE = 1


class WorkspacePool:
    """Where the sequences of an engine get their memory on the device, and leave it when they are over."""

    def __init__(self, model: DeviceModel) -> None:
        self.model = model
        self._spare: deque[Workspace] = deque()
        self._released = False

    @property
    def spare(self) -> int:
        """Workspaces that wait for a conversation."""
        return len(self._spare)

    def take(self) -> Workspace:
        """The workspace of a conversation that is over, or a new one; :class:`EngineError` where that does not fit."""
        try:
            return self._spare.popleft()
        except IndexError:
            return Workspace(self.model)

    def give_back(self, workspace: Workspace) -> None:
        """A sequence is over. What it launched ahead comes before the work of the next on the stream."""
        if not self._released and self.spare < SPARE:
            workspace.forget()
            self._spare.append(workspace)

    def release(self) -> None:
        """Free what is kept for a next conversation, of which there is none."""
        self._released = True
        self._spare.clear()
