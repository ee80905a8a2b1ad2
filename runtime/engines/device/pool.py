"""Workspaces of finished conversations, kept for reuse: creating one often takes longer than a first row."""

from __future__ import annotations

from collections import deque

from .model import DeviceModel
from .workspace import Workspace

#: Workspaces that are kept: each holds a whole cache.
SPARE = 1


class WorkspacePool:
    """Where the sequences of an engine get their device memory, and return it when they end."""

    def __init__(self, model: DeviceModel) -> None:
        self.model = model
        self._spare: deque[Workspace] = deque()
        self._released = False

    @property
    def spare(self) -> int:
        """Workspaces that are free."""
        return len(self._spare)

    def take(self) -> Workspace:
        """A free workspace, or a new one; :class:`EngineError` if that does not fit."""
        try:
            return self._spare.popleft()
        except IndexError:
            return Workspace(self.model)

    def give_back(self, workspace: Workspace) -> None:
        """A sequence has ended. On the stream, what it launched ahead comes before the work of the next."""
        if not self._released and self.spare < SPARE:
            workspace.forget()
            self._spare.append(workspace)

    def release(self) -> None:
        """Free the workspaces that are kept for reuse."""
        self._released = True
        self._spare.clear()
