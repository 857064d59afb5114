"""Ray actors that hold a batch function each: batches in, the same batches done out, whatever dies on the way.

Knows batches, workers and Ray; not what a batch is for, nor where its result goes.
"""

import os
from collections import Counter, deque
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from midb.errors import GenerationError, MidbError
from midb.schema import Batch

TRIES = 3  # workers that a range may cost before it ends the run
PATIENCE = 600  # seconds without any worker, after which waiting for one ends
# By itself Ray shows all GPUs of a machine to a worker that asked for none.
HIDDEN = {"runtime_env": {"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}}}


@runtime_checkable
class Step(Protocol):
    """A batch function that says who it is: a `Booster`, a `Judge`, or a class of your own that can be pickled."""

    def __call__(self, batch: Batch) -> Batch:
        """Columns of n rows to columns of n rows, in the same order. Columns that are not returned stay as they are."""

    def identity(self) -> str:
        """A hash over everything that can change what comes out, and nothing else."""


@dataclass(frozen=True)
class Workers:
    """Ray actors that hold one engine each.

    Args:
        count: How many work at the same time.
        gpus: GPUs of each. A worker that asked for none sees none.
        cpus: CPU cores of each. Ray also sets `OMP_NUM_THREADS` to it, where the environment does not: an engine on the
            CPU writes with so many threads.
    """

    count: int
    gpus: float = 0
    cpus: float = 1

    def __post_init__(self) -> None:
        if self.count < 1 or self.gpus < 0 or self.cpus <= 0:
            raise ValueError(f"{self} cannot be; use count >= 1, gpus >= 0 and cpus > 0")


class Work(Protocol):
    """What an actor gets at once."""

    @property
    def start(self) -> int:
        """The number of its first row: it says which work this is."""

    @property
    def batch(self) -> Batch:
        """The rows, for the step."""


W = TypeVar("W", bound=Work)


class _Worker:
    """What an actor runs: the step as it was pickled, which builds its engine at the first batch and keeps it."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def identity(self) -> str:
        return self.step.identity()

    def run(self, batch: Batch) -> Batch:
        return self.step(batch)


def on_actors(step: Step, identity: str, works: Iterator[W], workers: Workers) -> Generator[tuple[W, Batch]]:
    """Work on Ray actors, in the order of finishing.

    Plain actors and not Ray Data, which wants all rows in its object store before it begins (so no stream), keeps the
    tasks of a lost actor until there is room for it again, and ends the run at the first exception of one actor. Here an
    actor holds one range at a time and gets its first when it stands, so that a node that never comes back holds nothing
    up; a range goes back to the others when its actor is lost, and an actor whose engine gave up is replaced.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    tasks: dict[Any, tuple[Any, W | None]] = {}  # what each actor is doing; without work, it is starting
    idle: list[Any] = []
    again: deque[W] = deque()  # ranges whose actor was lost
    losses: Counter[int | None] = Counter()  # by first row; None counts actors that were lost before they stood
    finished: tuple[W, Batch] | None = None
    error: BaseException | None = None

    begun = _connect()
    try:
        needs = {"CPU": workers.cpus, "GPU": workers.gpus}
        check_room(ray.nodes(), needs, workers)
        hidden: dict[str, Any] = {} if workers.gpus else HIDDEN
        remote: Any = ray.remote(_Worker).options(
            num_cpus=workers.cpus, num_gpus=workers.gpus, max_restarts=0, **hidden
        )

        def start() -> None:
            worker = remote.remote(step)
            tasks[worker.identity.remote()] = worker, None

        for _ in range(workers.count):
            start()
        while True:
            while idle and error is None:
                try:
                    work = again.popleft() if again else next(works, None)
                except Exception as failure:  # the rows cannot be read any further
                    error = failure
                    break
                if work is None:
                    break
                worker = idle.pop()
                tasks[worker.run.remote(work.batch)] = worker, work
            if finished is not None:  # only now, so that no actor waits for the disk
                yield finished
                finished = None
            running = any(work is not None for _, work in tasks.values())
            if not running and (idle or error is not None):
                break
            done, _ = ray.wait(list(tasks), timeout=None if running else PATIENCE)
            if not done:
                raise MidbError(
                    f"no worker has started in {PATIENCE} s: each needs {_amount(needs)}, and the cluster has "
                    f"{_amount(ray.cluster_resources())}, where others may be at work; make room and run again: what was "
                    "finished is in the ledger"
                )
            worker, work = tasks.pop(done[0])
            try:
                result = ray.get(done[0])
            except RayError as failure:
                cause = failure.cause if isinstance(failure, RayTaskError) else None
                if cause is not None and not isinstance(cause, GenerationError):  # the caller's mistake
                    error, cause.__cause__ = cause, failure
                    idle.append(worker)
                    continue
                ray.kill(worker)
                where = None if work is None else work.start
                losses[where] += 1
                if losses[where] == (TRIES if work else TRIES * workers.count):
                    error = cause or _lost(failure, work)
                    error.__cause__ = failure
                    continue
                if work:
                    again.append(work)
                start()
                continue
            idle.append(worker)
            if work is not None:
                finished = work, result
            elif result == identity:
                losses[None] = 0
            else:
                error = MidbError(
                    f"a worker has the identity {result} and this process {identity}: its machine holds another midb, model or "
                    "adapter, or only one of the two sees a GPU; install the same on all, give each worker its GPUs (--gpus 1, in Python "
                    "Workers(count, gpus=1)), and name engine and precision (--engine vllm --dtype bfloat16, in Python a generator with "
                    "its dtype, such as VLLMGenerator(model, dtype='bfloat16'))"
                )
        if error is not None:  # what was in flight beside it has been kept
            raise error
    finally:
        for worker in [*idle, *(worker for worker, _ in tasks.values())]:
            ray.kill(worker)
        if begun:
            ray.shutdown()


def _lost(failure: BaseException, work: Work | None) -> MidbError:
    said = str(failure).strip().splitlines() or [type(failure).__name__]
    if work is None:
        return MidbError(f"no worker can start: {said[-1]}; put the same packages and modules on all machines")
    return MidbError(
        f"{TRIES} workers in turn were lost over rows {work.start:,} and on: {said[0]}; if memory ran out, give a smaller "
        "rows_per_shard, or more of a machine to each worker"
    )


def _connect() -> bool:
    """Use the Ray that was initialized, the cluster that RAY_ADDRESS names, or a new one here; say whether to end it."""
    import socket
    from urllib.parse import urlsplit

    import ray

    if ray.is_initialized():
        return False
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        # Not Ray's own search: it goes by a file that a killed cluster leaves behind, and then waits for it for minutes.
        ray.init(address="local")
        return True
    if address != "auto":
        place = urlsplit(address if "://" in address else f"//{address}")
        try:
            socket.create_connection((place.hostname or "", place.port or 6379), timeout=30).close()
        except OSError as error:
            raise MidbError(
                f"no Ray answers at RAY_ADDRESS={address} ({error}); begin it with `ray start --head`, or unset RAY_ADDRESS to work "
                "on this machine alone"
            ) from error
    try:
        ray.init(address=address)
    except ConnectionError as error:
        raise MidbError(
            f"the Ray at RAY_ADDRESS={address} takes no connection ({error}); where `ray start` spoke of a token, set "
            "RAY_AUTH_MODE=token and give each machine the same ~/.ray/auth_token"
        ) from error
    return True


def check_room(nodes: list[dict[str, Any]], needs: Mapping[str, float], workers: Workers) -> None:
    """Refuse at once what would wait forever. A worker stands on one node."""
    has = [node["Resources"] for node in nodes if node["Alive"]]
    room = sum(min(int(node.get(kind, 0) / need + 1e-9) for kind, need in needs.items() if need) for node in has)
    if room < workers.count:
        raise MidbError(
            f"{workers.count} workers of {_amount(needs)} each do not fit: the cluster has room for {room} ("
            f"{'; '.join(map(_amount, has))}, a node each); start more nodes, name the cluster in RAY_ADDRESS, or ask for less with Workers(count, gpus=, cpus=)"
        )


def _amount(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{resources.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
