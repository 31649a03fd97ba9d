"""All connected projects of this process, and the maintenance loop that works between requests."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial

from ml_backend import wire
from ml_backend.controls import control_of, taken_in
from ml_backend.domain import deadline
from ml_backend.domain.errors import NotFound, RushError, StoreError, Unavailable, UnusableConfig
from ml_backend.domain.events import Event, ProjectUpdated, Retired, TasksCreated, WebhookPassedOn
from ml_backend.domain.lock_order import OrderedLock, Rank
from ml_backend.domain.model import ProjectRef
from ml_backend.ports import Leases
from ml_backend.services.retiring.retire import retire_if_gone, retired, revive
from ml_backend.services.serving.events import handle
from ml_backend.services.serving.loading import ProjectPorts
from ml_backend.services.serving.maintenance import Maintenance
from ml_backend.services.serving.project import Project
from ml_backend.services.serving.turns import Turns

log = logging.getLogger(__name__)

TICK = 0.25
"""Seconds between two turns of the maintenance loop."""
LOOP_SECONDS = 2.0
"""How long the loop itself, which serves all projects, may wait for others."""
LOAD_SECONDS = 5.0
"""How long a request waits for its project to be loaded."""
WAITING = 3
"""Requests that wait so at once, since they keep threads from other projects; more are refused."""
STOP_SECONDS = 10.0


class Projects:
    """The projects of one Label Studio, each loaded when first needed and tended in a thread of its own."""

    def __init__(self, ports: ProjectPorts, origin: str, leases: Leases | None = None) -> None:
        self.ports, self.origin, self.leases = ports, origin, leases
        self._loaded: dict[int, Project] = {}
        self._loading: dict[int, Future[Project]] = {}
        self._turns: dict[int, Turns] = {}
        self._maintenance: dict[int, tuple[Maintenance, Future[bool] | None]] = {}
        self._lock = OrderedLock(Rank.REGISTRY)
        self._waiting = threading.Semaphore(WAITING)
        self._stop = threading.Event()
        self._lost = False
        self._said: dict[str, str] = {}
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

    def get(self, project: int | None, label_config: str = "") -> Project:
        """The connected project of that id, loaded by now.

        ``label_config``, as Label Studio has it now, takes the place of one that is of no use. NotFound says
        how to connect it; Unavailable where loading takes longer than a request may.
        """
        if project is None:
            raise _nameless()
        found = self._loaded.get(project)
        if found is not None:
            return found
        if label_config and self.ports.state.options(self.ref(project)).get("label_config"):
            self._note_config(self.ref(project), label_config)
        loading = self._load(project)
        if loading.done():
            return loading.result()
        if self._waiting.acquire(blocking=False):
            try:
                return loading.result(deadline.left(LOAD_SECONDS))
            except TimeoutError:
                if loading.done():
                    raise  # it is the loading's own
            finally:
                self._waiting.release()
        raise Unavailable(
            f"Project {project} is being loaded.", "Ask again in some seconds: no label is lost meanwhile."
        )

    def _note_config(self, ref: ProjectRef, label_config: str) -> None:
        """Note this label config where there is none, or one that nothing can be predicted by."""
        options = self.ports.state.options(ref)
        try:
            control_of(options)
        except UnusableConfig:
            if not label_config:
                raise
            _, change = taken_in(options, label_config)
            self.ports.state.set_options(ref, **change)
            self.ports.jobs.enqueue("sync", ref)

    def register(self, project: int, label_config: str) -> bool:
        """Note a project without loading it; True where ``connect`` has yet to take it or its config in.

        Raises UnusableConfig where nothing can be predicted.
        """
        ref, found = self.ref(project), self._loaded.get(project)
        options = self.ports.state.options(ref)
        if found is not None and options.get("label_config") == label_config == found.label_config:
            found.configured(label_config)
            return False  # as every time that a task is served
        taken_in(options, label_config)
        self._note_config(ref, label_config)
        found = self._loaded.get(project)
        return found is None or (bool(label_config) and found.label_config != label_config)

    def connect(self, project: int, label_config: str) -> Project:
        """Take a project in, or its changed label config: seconds, where there are 100,000 tasks to load."""
        self.register(project, label_config)
        found = self.get(project)
        found.configured(label_config)
        return found

    def hear(self, hook: wire.WebhookJson) -> tuple[str, ...]:
        """Take one of Label Studio's webhooks in: now, or in the project's own thread where it takes long.

        Returns why rows of it can't be read.
        """
        if hook.project_id is None:  # sent without payload: an action, and not a word of whose
            self.ask()
            return ()
        try:
            project = self.get(hook.project_id, hook.label_config)
        except Unavailable:  # it is being loaded, and hears of this right after
            self.in_turn(
                hook.project_id, hook.action, lambda project: handle(project, hook.event(project.control))
            )
            return ()
        event = hook.event(project.control)
        project.ports.state.set_options(project.ref, webhook_seen=str(time.time()))
        if isinstance(event, TasksCreated | ProjectUpdated):  # may be thousands of tasks to load
            self.in_turn(project.ref.id, hook.action, lambda project: handle(project, event))
        else:
            handle(project, event)
        return getattr(event, "left_out", ())

    # ---- in the projects' own threads

    def _load(self, project: int) -> Future[Project]:
        """The loading that is under way, or a new one where there is none or it failed."""
        ref = self.ref(project)
        if not self.ports.state.options(ref).get("label_config"):
            raise NotFound(f"Project {project} is not connected.", f"Run: rush connect --project {project}")
        revive(ref, self.ports.state, self.ports.jobs)  # who asks for it has heard of it
        with self._lock:
            loading = self._loading.get(project)
            if loading is None or (loading.done() and project not in self._loaded):
                loading = self._thread_of(project).do(lambda: self._open(ref))
                self._loading[project] = loading
        return loading

    def _open(self, ref: ProjectRef) -> Project:
        found = Project(ref, self.ports)
        self._loaded[ref.id] = found
        return found

    def _thread_of(self, project: int) -> Turns:
        if project not in self._turns:
            self._turns[project] = Turns(f"project {project}")
        return self._turns[project]

    def in_turn(self, project: int | None, what: str, work: Callable[[Project], object]) -> None:
        """Do what is too long for Label Studio's patience once the project is loaded, after all before it.

        NotFound where it is not connected.
        """
        if project is None:
            raise _nameless()
        if project not in self._loaded:
            self._load(project)

        def logged() -> None:
            found = self._loaded.get(project)
            try:
                if found is None:
                    raise self._loading[project].exception() or NotFound(f"Project {project} has gone.")
                work(found)
            except RushError as error:
                log.warning("project %s: %s: %s", project, what, error)
                if isinstance(error, StoreError):
                    self.missed()
            except Exception:
                log.exception("project %s: %s failed", project, what)

        with self._lock:
            self._thread_of(project).do(logged)

    def missed(self) -> None:
        """State or index did not hear of something: Label Studio is asked once both are back."""
        self._lost = True

    # ---- the loop

    def start(self) -> None:
        """Load every known project and start the maintenance loop."""
        self._loop.start()

    def stop(self) -> None:
        """End the maintenance loop: what it is doing is finished, what waits is left to the next sync."""
        self._stop.set()
        end = time.monotonic() + STOP_SECONDS
        if self._loop.is_alive():
            self._loop.join(STOP_SECONDS)
        for turns in list(self._turns.values()):
            turns.stop(max(0.0, end - time.monotonic()))
        if self.leases is not None:
            self.leases.close()

    def _maintain(self) -> None:
        self._try_soon(self._hear, "events")  # from here on none is missed
        while not self._stop.is_set() and not self._try_soon(self._load_known, "projects"):
            pass
        while not self._stop.is_set():
            self._try_soon(self._hear, "events")
            if self.leases is not None:
                self._try_soon(self._share, "replicas")
            if self._lost:
                self._try_soon(self._catch_up, "catching up")
            for project in self:
                self._tend(project)

    def _tend(self, project: Project) -> None:
        """Give the project its next turn, unless it still has its last one."""
        maintenance, turn = self._maintenance.get(project.ref.id) or (Maintenance(project), None)
        if turn is None or turn.done():
            with self._lock:
                turn = self._thread_of(project.ref.id).do(partial(self._turn, maintenance))
        self._maintenance[project.ref.id] = (maintenance, turn)

    def _turn(self, maintenance: Maintenance) -> bool:
        run = partial(self._run, maintenance)
        return self._stop.is_set() or self._try(run, f"project {maintenance.project.ref.id}")

    def _run(self, maintenance: Maintenance) -> None:
        try:
            maintenance.run()
        except NotFound:
            if not retire_if_gone(maintenance.project.ref, self.ports.studio, self.ports.state):
                raise

    def _load_known(self) -> None:
        for ref in self.ports.state.projects():
            mine = ref.origin == self.origin and not self.elsewhere(ref.id)
            if mine and not retired(ref, self.ports.state):
                begun = self._begin(ref)
                if begun and self.ports.settings.sync_seconds:  # what nobody heard while no backend ran
                    self.ports.jobs.enqueue("sync", ref)

    def _begin(self, ref: ProjectRef) -> bool:
        """Have the project loaded; where that fails it is said, and a store that is away is waited for.

        False for one that nobody has connected: something else was written about it.
        """

        def ended(loading: Future[Project]) -> None:
            error = loading.exception()
            if isinstance(error, StoreError):
                self.missed()
            if error is not None:
                log.error("project %s: not loaded: %s", ref.id, error, exc_info=_unknown(error))

        try:
            self._load(ref.id).add_done_callback(ended)
        except NotFound:
            return False
        return True

    def _share(self) -> None:
        """Let go of what another replica owns, and take over what nobody does any more."""
        for ref in self.ports.state.projects():
            if ref.origin != self.origin:
                continue
            if self.elsewhere(ref.id):
                self._let_go(ref.id)
            elif ref.id not in self._loading and not retired(ref, self.ports.state) and self._begin(ref):
                self.ports.jobs.enqueue("sync", ref)  # what nobody heard in between
                log.info("project %s is this replica's now.", ref.id)

    def _let_go(self, project: int) -> None:
        """Forget a project that this process does not serve any more; it may come back."""
        with self._lock:
            turns = self._turns.pop(project, None)
            lost = self._loaded.pop(project, None)
            self._loading.pop(project, None)
            self._maintenance.pop(project, None)
        if turns is not None:
            turns.stop(0)
        if lost is not None:
            lost.close()

    def ask(self) -> None:
        """Something happened in one of the projects, and nobody said in which: Label Studio is asked."""
        for ref in self.ports.state.projects():
            if ref.origin == self.origin:
                self.ports.jobs.enqueue("sync", ref)

    def _catch_up(self) -> None:
        for ref in self.ports.state.projects():
            if ref.origin == self.origin and ref.id in self._loading and ref.id not in self._loaded:
                self._begin(ref)
        for project in self:
            project.check_index()
            self.ports.jobs.enqueue("sync", project.ref)
        self._lost = False
        self._said.pop("store", None)
        log.info("State and index are there; %d projects are synced.", len(self._loaded))

    def _hear(self) -> None:
        end = time.monotonic() + TICK
        for ref, event in self.ports.state.listen(TICK):
            if ref.origin == self.origin and isinstance(event, Retired):
                self._let_go(ref.id)
            elif ref.origin == self.origin and ref.id in self._loading:
                with self._lock:
                    self._thread_of(ref.id).do(partial(self._take, ref.id, event))
            if self._stop.is_set() or time.monotonic() > end:
                return

    def _take(self, number: int, event: Event) -> None:
        project = self._loaded.get(number)
        if project is not None:
            self._try(partial(_taken, project, event), f"project {number}: {type(event).__name__}")

    def _try_soon(self, work: Callable[[], object], what: str) -> bool:
        """``_try`` what may hold up all projects."""
        with deadline.within(LOOP_SECONDS):
            return self._try(work, what)

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


def _nameless() -> NotFound:
    return NotFound("The request names no project.", "Label Studio sends it as project.id.")


def _taken(project: Project, event: Event) -> None:
    if isinstance(event, WebhookPassedOn):
        handle(project, wire.webhook(event.body).event(project.control))
    else:
        project.on_event(event)


def _unknown(error: BaseException) -> BaseException | None:
    """The error where its message does not say all."""
    return None if isinstance(error, RushError) else error
