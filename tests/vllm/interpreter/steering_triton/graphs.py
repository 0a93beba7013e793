"""CUDA graphs of model runner V2 without CUDA: the graph of a decode pass computes the model without running the Python of `steering::act`.

vLLM loads it as a plugin in each of its processes. The runner chooses graphs, pads passes to their sizes and replays them as on a GPU.
"""

import multiprocessing
from typing import Any

SIZES = [1, 2, 4, 8, 16, 24]
"""Requests of the graphs. Passes between them are padded."""


def install() -> None:
    """Gives V2's runner such graphs. The server's own process, which computes no model, is left alone."""
    if multiprocessing.parent_process() is None:
        return
    from vllm.v1.worker.cpu import shm  # noqa: F401, PLC0415, I001 - replaces what is CUDA's; to be imported first
    from vllm.config import CUDAGraphMode  # noqa: PLC0415
    from vllm.forward_context import set_forward_context  # noqa: PLC0415
    from vllm.v1.worker.cpu.model_runner import CPUModelRunner  # noqa: PLC0415
    from vllm.v1.worker.gpu.attn_utils import build_slot_mappings_by_layer  # noqa: PLC0415
    from vllm.v1.worker.gpu.cudagraph_utils import ModelCudaGraphManager  # noqa: PLC0415
    from vllm.v1.worker.gpu_worker import Worker  # noqa: PLC0415

    from steering.engine.vllm.messages import EDITS_IN_GRAPHS  # noqa: PLC0415
    from steering.engine.vllm.operation import Attached  # noqa: PLC0415

    class HostGraphs(ModelCudaGraphManager):  # type: ignore[misc]
        """Graphs of decode passes.

        runner: whose passes they are. pass_: what its attention was prepared for. replays: how many passes were replayed.
        """

        runner: Any
        pass_: Any
        replays = 0

        def run_fullgraph(self, desc: Any) -> Any:
            batch, attention, slots = self.pass_
            assert len(batch.positions) == desc.num_tokens
            act, Attached.act = Attached.act, None
            self.replays += 1
            try:
                with set_forward_context(attention, self.vllm_config, num_tokens=desc.num_tokens, slot_mapping=slots):
                    return self.runner.model(input_ids=batch.input_ids, positions=batch.positions)
            finally:
                Attached.act = act

    initialize = CPUModelRunner.initialize_kv_cache

    def initialized(runner: Any, *arguments: Any, **keywords: Any) -> None:
        initialize(runner, *arguments, **keywords)
        in_graphs = runner.vllm_config.additional_config.get(
            EDITS_IN_GRAPHS
        )  # otherwise graphs are split at the operation
        if runner.use_pp or not in_graphs:  # a later stage gets residuals, which these graphs do not copy
            return
        config = runner.compilation_config
        config.cudagraph_capture_sizes, config.max_cudagraph_capture_size = SIZES, SIZES[-1]
        graphs = HostGraphs(runner.vllm_config, runner.device, CUDAGraphMode.NONE, runner.decode_query_len)
        graphs.cudagraph_mode, graphs.runner = (
            CUDAGraphMode.FULL_DECODE_ONLY,
            runner,
        )  # set later: CUDA has no pool here
        graphs._init_candidates()
        graphs._graphs_captured = True
        runner.cudagraph_manager, prepare = graphs, runner.model_state.prepare_attn

        def prepared(batch: Any, mode: Any, tables: Any, slots: Any, *others: Any, **options: Any) -> Any:
            attention = prepare(batch, mode, tables, slots, *others, **options)
            graphs.pass_ = batch, attention, build_slot_mappings_by_layer(slots, runner.kv_cache_config)
            return attention

        runner.model_state.prepare_attn = prepared

    CPUModelRunner.initialize_kv_cache = initialized
    Worker.steering_replays = lambda worker: worker.model_runner.cudagraph_manager.replays
