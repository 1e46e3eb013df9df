"""Ray and Ray Train without what a sweep does not use: each of these processes and imports costs CPU seconds that a laptop's
trainings would have had."""

import contextlib
import importlib
import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

LEAVE_SECONDS = 30


@contextlib.contextmanager
def lean_node(ray: Any) -> Iterator[None]:
    """While a Ray of our own starts: without the monitor of an autoscaler, the reader of logs and the server of a dashboard."""
    parameter, services = ray._private.parameter, ray._private.services
    params, server = parameter.RayParams, services.start_api_server
    parameter.RayParams = partial(params, no_monitor=True, include_log_monitor=False)
    services.start_api_server = lambda *_, **__: (None, None)
    try:
        yield
    finally:
        parameter.RayParams, services.start_api_server = params, server


def lean_trainer(hub: Any, backend: str, local: bool) -> Any:
    """What Ray's `TorchTrainer` is, without torch outside the workers, without three of its processes per gang and, on a Ray
    of our own, without asking for nodes.

    One hands out Ray datasets, of which a run has none. One frees the gang's cores should the trainer die alone; here
    trainer and driver end together, and Ray frees what a driver held. Its controller runs as a thread of `hub`.
    """
    import ray
    from ray.train.backend import Backend, BackendConfig
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    class OnOurNode(FixedScalingPolicy):
        def after_controller_start(self, train_run_context: Any) -> None: ...

        def _maybe_send_resource_request(self) -> None: ...

    class ProcessGroup(Backend):
        share_cuda_visible_devices = True  # ranks of one node must see each other's GPUs

        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            address, port = worker_group.execute_single(0, own_address)
            worker_group.execute(join_process_group, backend, address, port)

        def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
            ray.wait(
                worker_group.execute_async(leave_process_group), num_returns=len(worker_group), timeout=LEAVE_SECONDS
            )

    class ProcessGroupConfig(BackendConfig):
        @property
        def backend_cls(self) -> Any:
            return ProcessGroup

    class SigtermListeners(WorkerGroupCallback):
        def after_worker_group_start(self, worker_group: Any) -> None:
            worker_group.execute(listen_for_sigterm)

    class LeanTrainer(DataParallelTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            unneeded = {"DatasetsCallback", "PlacementGroupCleanerCallback"}
            kept = [c for c in super()._create_default_callbacks() if type(c).__name__ not in unneeded]
            return [*kept, SigtermListeners()]

        def _initialize_and_run_controller(self, **parts: Any) -> Any:
            if local:
                parts["scaling_policy"] = OnOurNode(parts["scaling_policy"].scaling_config)
            return ray.get(hub.run.remote(parts))

    return partial(LeanTrainer, backend_config=ProcessGroupConfig())


# ---- in a worker


def own_address() -> tuple[str, int]:
    """This node, and a port of it that is free."""
    from ray.train._internal.utils import get_address_and_port

    address, port = get_address_and_port()
    return address, port


def join_process_group(backend: str, address: str, port: int) -> None:
    """The torch process group of the worker's gang, by way of what Ray's `TorchConfig` calls."""
    import ray.train
    from ray.train.torch import config

    context = ray.train.get_context()
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    config._set_torch_distributed_env_vars()
    config._setup_torch_process_group(backend, context.get_world_rank(), context.get_world_size(), "env://")


def leave_process_group() -> None:
    import ray.train
    from ray.train.torch import config

    config._shutdown_torch(destroy_process_group=ray.train.get_context().get_world_size() > 1)


def get_ready() -> None:
    """Load what a run needs while the text is still being prepared, not once a run could begin; a worker's GPU, if it has one,
    becomes the calling thread's."""
    import torch
    from ray.train.torch import get_device

    for name in ("gopher.train", "torch._dynamo"):  # the latter comes with the first FSDP module
        importlib.import_module(name)
    if torch.cuda.is_available() and (device := get_device()).type == "cuda":
        torch.cuda.set_device(device)


TERMINATED = threading.Event()  # SIGTERM came


def listen_for_sigterm() -> None:
    """In the main thread: SIGTERM asks the training to checkpoint and leave."""
    signal.signal(signal.SIGTERM, lambda *_: TERMINATED.set())
