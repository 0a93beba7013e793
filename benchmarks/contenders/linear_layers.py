"""The linear layers of the model alone, lm_head included, as torch and oneDNN run them: what a decode step is held against."""

import time
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from benchmarks.contenders.protocol import answer_questions
from benchmarks.device_clock import wait_for


class Linears(nn.Module):
    """Every linear layer once, in the model's order, each on rows of its own width."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.linears = nn.ModuleList(module for module in model.modules() if isinstance(module, nn.Linear))

    def widths(self) -> list[int]:
        return sorted({linear.in_features for linear in self.linears if isinstance(linear, nn.Linear)})

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        by_width = {rows.shape[-1]: rows for rows in inputs}
        return [linear(by_width[linear.in_features]) for linear in self.linears]  # type: ignore[index]


class PackedLinears:
    """The same in a bare loop over weights that oneDNN has packed for a number of rows."""

    def __init__(self, linears: Linears, rows: int) -> None:
        layers = [layer for layer in linears.linears if isinstance(layer, nn.Linear)]
        pack = torch.ops.mkldnn._reorder_linear_weight
        self._layers = [(layer.in_features, pack(layer.weight, rows)) for layer in layers]

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        by_width = {rows.shape[-1]: rows for rows in inputs}
        multiply = torch.ops.mkldnn._linear_pointwise
        return [multiply(by_width[width], weight, None, "none", [], "") for width, weight in self._layers]


class LinearSide:
    """Times passes: eager, compiled for exactly this number of rows with frozen weights, and in a bare loop over weights that
    oneDNN has packed (on a CUDA device: replayed as a graph). Its library, not our kernels: the floor is somebody else's."""

    def __init__(self, folder: str, device: str) -> None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True)
        self.linears = Linears(model.eval().requires_grad_(False)).eval().to(device)
        self._device = device
        self._compiled = torch.compile(self.linears, dynamic=False, options={"freezing": True})

    def passes(self, rows: int, count: int) -> dict[str, Any]:
        """Median seconds of a pass, the fastest of the ways, and what it is in tokens a second."""
        inputs = [
            torch.randn(rows, width, dtype=torch.bfloat16, device=self._device) for width in self.linears.widths()
        ]
        with torch.no_grad():
            ways: dict[str, Any] = {"eager": self.linears, "compiled": self._compiled}
            if self._device == "cpu":
                ways["packed"] = PackedLinears(self.linears, rows)
            else:
                ways["replayed"] = _graph_of(self.linears, inputs)
            found = {name: self._time(run, inputs, count) for name, run in ways.items()}
        best = min(found.values())
        return {"seconds": best, **found, "tokens_per_second": rows / best}

    def _time(self, run: Any, inputs: list[Tensor], count: int) -> float:
        seconds = []
        for _ in range(count + 3):
            start = time.perf_counter()
            run(inputs)
            wait_for(self._device)
            seconds.append(time.perf_counter() - start)
        return median(seconds[3:])


def _graph_of(run: Any, inputs: list[Tensor]) -> Any:
    """A pass over these inputs as a CUDA graph."""
    run(inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(inputs)
    return lambda _inputs: graph.replay()


def begin(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Loads the layers from a folder."""
    side = LinearSide(options["folder"], options["device"])
    return {"passes": side.passes}, {"linears": len(side.linears.linears), "threads": torch.get_num_threads()}


if __name__ == "__main__":
    answer_questions(begin)
