"""All connected projects of this process, and the maintenance loop that works between requests."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from ml_backend import wire
from ml_backend.controls import parse_label_config
from ml_backend.domain.errors import NotFound, RushError, StoreError
from ml_backend.domain.events import Event, WebhookPassedOn
from ml_backend.domain.lock_order import OrderedLock, Rank
from ml_backend.domain.model import ProjectRef
from ml_backend.ports import Leases
from ml_backend.services.serving.events import handle
from ml_backend.services.serving.loading import ProjectPorts
from ml_backend.services.serving.maintenance import Maintenance
from ml_backend.services.serving.project import Project

log = logging.getLogger(__name__)

TICK = 0.25
"""Seconds between two turns of the maintenance loop."""


class Projects:
    """The projects of one Label Studio, loaded when first needed."""

    def __init__(self, ports: ProjectPorts, origin: str, leases: Leases | None = None) -> None:
        self.ports, self.origin, self.leases = ports, origin, leases
        self._loaded: dict[int, Project] = {}
        self._maintenance: dict[int, Maintenance] = {}
        self._lock = OrderedLock(Rank.REGISTRY)
        self._stop = threading.Event()
        self._lost = False
        self._said: dict[str, str] = {}
        self._background = ThreadPoolExecutor(1, "background")
        self._loop = threading.Thread(target=self._maintain, name="maintenance", daemon=True)

    def ref(self, project: int) -> ProjectRef:
        """The project's name in our state."""
        return ProjectRef(self.origin, project)

    def elsewhere(self, project: int) -> str:
        """The address of the replica that owns a project; nothing where it is this one."""
        owner = "" if self.leases is None else self.leases.owner(self.ref(project))
        return "" if self.leases is None or owner == self.leases.url else owner

    def others(self) -> list[str]:
        """The addresses of the other replicas that own projects."""
        known = (ref for ref in self.ports.state.projects() if ref.origin == self.origin)
        return sorted({there for ref in known if (there := self.elsewhere(ref.id))})

    def __iter__(self) -> Iterator[Project]:
        return iter(list(self._loaded.values()))

    def get(self, project: int | None) -> Project:
        """The connected project of that id; NotFound says how to connect it."""
        if project is None:
            raise NotFound("The request names no project.", "Label Studio sends it as project.id.")
        found = self._loaded.get(project)
        if found is not None:
            return found
        ref = self.ref(project)
        with self._lock:
            if project not in self._loaded:
                if not self.ports.state.options(ref).get("label_config"):
                    raise NotFound(
                        f"Project {project} is not connected.", f"Run: rush connect --project {project}"
                    )
                self._loaded[project] = Project(ref, self.ports)
            return self._loaded[project]

    def register(self, project: int, label_config: str) -> bool:
        """Note a project without loading it; True where ``connect`` has yet to take it or its config in.

        Raises UnusableConfig where nothing can be predicted.
        """
        parse_label_config(label_config)
        ref = self.ref(project)
        with self._lock:
            if not self.ports.state.options(ref).get("label_config"):
                self.ports.state.set_options(ref, label_config=label_config)
                self.ports.jobs.enqueue("sync", ref)
        found = self._loaded.get(project)
        return found is None or (bool(label_config) and found.label_config != label_config)

    def connect(self, project: int, label_config: str) -> Project:
        """Take a project in, or its changed label config: seconds, where there are 100,000 tasks to load."""
        self.register(project, label_config)
        found = self.get(project)
        found.configured(label_config)
        return found

    # ---- in the background

    def in_background(self, what: str, work: Callable[[], object]) -> None:
        """Do what is too long for Label Studio's patience in a thread of its own, one after the other."""

        def logged() -> None:
            try:
                work()
            except RushError as error:
                log.warning("%s: %s", what, error)
                if isinstance(error, StoreError):
                    self.missed()
            except Exception:
                log.exception("%s failed", what)

        self._background.submit(logged)

    def start(self) -> None:
        """Load every known project and start the maintenance loop."""
        self._loop.start()

    def stop(self) -> None:
        """End the maintenance loop: what it is doing is finished, what waits is left to the next sync."""
        self._stop.set()
        self._background.shutdown(cancel_futures=True)
        if self._loop.is_alive():
            self._loop.join(timeout=10)
        if self.leases is not None:
            self.leases.close()

    def _maintain(self) -> None:
        self._try(self._hear, "events")  # from here on none is missed
        while not self._stop.is_set() and not self._try(self._load, "projects"):
            pass
        while not self._stop.is_set():
            self._try(self._hear, "events")
            if self.leases is not None:
                self._try(self._share, "replicas")
            if self._lost:
                self._try(self._catch_up, "catching up")
            for project in self:
                if self._stop.is_set():
                    return
                self._try(self._maintenance_of(project).run, f"project {project.ref.id}")

    def _maintenance_of(self, project: Project) -> Maintenance:
        if project.ref.id not in self._maintenance:
            self._maintenance[project.ref.id] = Maintenance(project)
        return self._maintenance[project.ref.id]

    def _load(self) -> None:
        for ref in self.ports.state.projects():
            mine = ref.origin == self.origin and not self.elsewhere(ref.id)
            if mine and not self._stop.is_set():
                try:
                    self.get(ref.id)
                except StoreError:
                    raise  # all of them again
                except Exception:
                    log.exception("project %s: not loaded", ref.id)

    def _share(self) -> None:
        """Let go of what another replica owns, and take over what nobody does any more."""
        for ref in self.ports.state.projects():
            if ref.origin != self.origin:
                continue
            if self.elsewhere(ref.id):
                self._maintenance.pop(ref.id, None)  # it holds the project
                if (lost := self._loaded.pop(ref.id, None)) is not None:
                    lost.close()
            elif ref.id not in self._loaded:
                self.get(ref.id)
                self.ports.jobs.enqueue("sync", ref)  # what nobody heard in between
                log.info("project %s is this replica's now.", ref.id)

    def missed(self) -> None:
        """State or index did not hear of something: Label Studio is asked once both are back."""
        self._lost = True

    def _catch_up(self) -> None:
        for project in self:
            project.check_index()
            self.ports.jobs.enqueue("sync", project.ref)
        self._lost = False
        self._said.pop("store", None)
        log.info("State and index are there; %d projects are synced.", len(self._loaded))

    def _hear(self) -> None:
        for ref, event in self.ports.state.listen(TICK):
            project = self._loaded.get(ref.id)
            if project is not None and ref.origin == self.origin:
                self._try(partial(_take, project, event), f"project {ref.id}: {type(event).__name__}")
            if self._stop.is_set():
                return

    def _try(self, work: Callable[[], object], what: str) -> bool:
        """Whether it went well. The loop outlives every failure: Label Studio and Redis come back."""
        try:
            work()
            self._said.pop(what, None)
            return True
        except RushError as error:
            store = isinstance(error, StoreError)
            about = "store" if store else what
            if self._said.get(about) != error.message:  # once, not every two seconds
                log.error("%s: %s Trying again until it does.", what, error)
            self._said[about] = error.message
            self._lost = self._lost or store
            self._stop.wait(2.0 if store else 0.5)
        except Exception:
            log.exception("%s failed", what)
            self._stop.wait(2.0)
        return False


def _take(project: Project, event: Event) -> None:
    if isinstance(event, WebhookPassedOn):
        handle(project, wire.webhook(event.body).event(project.control))
    else:
        project.on_event(event)
