"""The linear layers of the model alone, lm_head included, as torch and oneDNN run them: a reference for decode passes."""

import time
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from benchmarks.contenders.protocol import serve_requests
from benchmarks.device_clock import wait_for

READ_BYTES = 1 << 30


class Linears(nn.Module):
    """Runs every linear layer once, in the model's order."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.linears = nn.ModuleList(module for module in model.modules() if isinstance(module, nn.Linear))

    def widths(self) -> list[int]:
        """Returns the input widths of all layers."""
        return sorted({linear.in_features for linear in self.linears if isinstance(linear, nn.Linear)})

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """Applies each layer to the rows of its width."""
        by_width = {rows.shape[-1]: rows for rows in inputs}
        return [linear(by_width[linear.in_features]) for linear in self.linears]  # type: ignore[index]  # torch types attributes of modules as tensors


class PackedLinears:
    """Runs the layers in a loop over weights that oneDNN packed for a number of rows."""

    def __init__(self, linears: Linears, rows: int) -> None:
        layers = [layer for layer in linears.linears if isinstance(layer, nn.Linear)]
        pack = torch.ops.mkldnn._reorder_linear_weight
        self._layers = [(layer.in_features, pack(layer.weight, rows)) for layer in layers]

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        by_width = {rows.shape[-1]: rows for rows in inputs}
        multiply = torch.ops.mkldnn._linear_pointwise
        return [multiply(by_width[width], weight, None, "none", [], "") for width, weight in self._layers]


class LinearContender:
    """Times passes: eager, compiled for one number of rows with frozen weights, and in a loop over weights packed by oneDNN, unless the
    processor has no instructions for bfloat16 (on a CUDA device: replayed as a graph). None of our kernels is used."""

    def __init__(self, folder: str, device: str) -> None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True)
        self.linears = Linears(model.eval().requires_grad_(False)).eval().to(device)
        self._device = device
        self._compiled = torch.compile(self.linears, dynamic=False, options={"freezing": True})

    def passes(self, rows: int, count: int) -> dict[str, Any]:
        """Returns the median seconds of a pass in each way, tokens per second of the fastest, and at one row the bytes
        per second that memory is read with, and how many are the weights."""
        inputs = [
            torch.randn(rows, width, dtype=torch.bfloat16, device=self._device) for width in self.linears.widths()
        ]
        with torch.no_grad():
            ways: dict[str, Any] = {"eager": self.linears, "compiled": self._compiled}
            if self._device != "cpu":
                ways["replayed"] = _graph_of(self.linears, inputs)
            elif multiplies_bfloat16():
                ways["packed"] = PackedLinears(self.linears, rows)
            found = {name: self._time(run, inputs, count) for name, run in ways.items()}
        best = min(found.values())
        read = self._bytes_per_second() if rows == 1 else None
        weights = sum(parameter.nbytes for parameter in self.linears.parameters())
        return {
            "seconds": best,
            **found,
            "tokens_per_second": rows / best,
            "bytes_per_second": read,
            "weight_bytes": weights,
        }

    def _bytes_per_second(self) -> float:
        """Returns how fast all threads read memory: with the bytes of the weights, the limit of a token that reads them once."""
        numbers = torch.ones(READ_BYTES // 4, device=self._device)
        seconds = self._time(lambda _: numbers.sum(), [], 5)
        return READ_BYTES / seconds

    def _time(self, run: Any, inputs: list[Tensor], count: int) -> float:
        seconds = []
        for _ in range(count + 3):
            start = time.perf_counter()
            run(inputs)
            wait_for(self._device)
            seconds.append(time.perf_counter() - start)
        return median(seconds[3:])


def multiplies_bfloat16() -> bool:
    """Whether oneDNN has this processor's own instructions for bfloat16: without them, a suite in it takes hours."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _graph_of(run: Any, inputs: list[Tensor]) -> Any:
    """Records a pass over these inputs as a CUDA graph."""
    run(inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(inputs)
    return lambda _inputs: graph.replay()


def begin(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Loads the layers from a folder."""
    layers = LinearContender(options["folder"], options["device"])
    return {"passes": layers.passes}, {
        "linears": len(layers.linears.linears),
        "threads": torch.get_num_threads(),
        "packed_by_onednn": options["device"] == "cpu" and multiplies_bfloat16(),
    }


if __name__ == "__main__":
    serve_requests(begin)
