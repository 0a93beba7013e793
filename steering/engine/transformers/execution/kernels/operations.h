// Declares our operations; operations.py registers their schemas. Tensors are bfloat16, except biases and the bank (float32),
// indices (int64) and the parts of `steer` (any floating type).
#pragma once
#include <ATen/core/Tensor.h>
#include <torch/csrc/inductor/aoti_torch/utils.h>

#include <optional>
#include <tuple>
#include <utility>
#include <vector>

namespace steering {

// rows (..., width) times several weights, each packed as (panel, pair, column, 2) with its bias (at least as long as its
// panels are wide) and its number of columns -> (..., all columns), the layers' outputs concatenated.
// prefetch: the packed weights that the next call reads.
at::Tensor packed_linear(
    const at::Tensor& rows, at::TensorList weights, at::TensorList biases, at::IntArrayRef columns, at::TensorList prefetch);

// SiLU(rows * gate) * (rows * up) for two weights of equal size -> (..., columns).
at::Tensor packed_swiglu(
    const at::Tensor& rows, at::TensorList weights, at::TensorList biases, int64_t columns, at::TensorList prefetch);

// query, key, value (1, head, token, width); keys, values (kv_head, slot, width), blocks of 16 slots arranged as query_tile.h
// says, into which this pass's states are written. cosines, sines (1, 1, token, width): queries and keys are rotated by them
// (rotation.h). segments (segment, 3): first token, tokens, first position; they may share
// full blocks.
// block_tables (segment, block): the blocks of each segment's sequence, in order. -> (1, token, head, width)
at::Tensor paged_attention(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, at::Tensor& keys, at::Tensor& values,
    const at::Tensor& segments, const at::Tensor& block_tables, double scaling, std::optional<int64_t> window,
    std::optional<double> softcap, const std::optional<at::Tensor>& cosines, const std::optional<at::Tensor>& sines);

// rows (..., width) over their root mean square, times weight (width,). zero_centered: times 1 + weight.
at::Tensor rms_norm(const at::Tensor& rows, const at::Tensor& weight, double epsilon, bool zero_centered);

// (first + second, rms_norm of that sum).
std::tuple<at::Tensor, at::Tensor> add_rms_norm(
    const at::Tensor& first, const at::Tensor& second, const at::Tensor& weight, double epsilon, bool zero_centered);

// parts: the residual (token, d_model) after a block, or two summands of it -> the steered residual. opcodes (layer,): see
// callbacks.Opcode. With ADD: bank_rows (phase, layer, slot, d_model) float32; row_indices (token,): each token's row at
// layer 0, flattened over (phase, layer, slot); 1 / |residual| is added to inverse_norms (layer, at least token) float32.
at::Tensor steer(
    at::TensorList parts, const at::Tensor& bank_rows, const at::Tensor& row_indices, at::Tensor& inverse_norms,
    const at::Tensor& opcodes, int64_t layer);

// logits (row, vocab), settings (row, 4) float32: temperature, top_k or 0, top_p or infinity, log(min_p); states (row, 4) of
// numpy's SFC64 -> (row, 2): each row's token, and 1 if its logits are finite or masked by -infinity. Temperature 0: the first
// index of the maximum.
at::Tensor sample(const at::Tensor& logits, const at::Tensor& settings, const at::Tensor& states);

// Conversions for the C functions that AOTInductor graphs call by name (operations.py: AOTI_SHIMS), which stand at the end of
// each operation's file. A call through torch's dispatcher costs several microseconds, and a decode pass makes six a layer.

inline at::Tensor& tensor(AtenTensorHandle handle) { return *torch::aot_inductor::tensor_handle_to_tensor_pointer(handle); }

inline AtenTensorHandle handle(at::Tensor&& result) { return torch::aot_inductor::new_tensor_handle(std::move(result)); }

inline std::vector<at::Tensor> tensors(const AtenTensorHandle* handles, int64_t count) {
  std::vector<at::Tensor> result;
  result.reserve(count);
  for (int64_t index = 0; index < count; ++index) result.push_back(tensor(handles[index]));
  return result;
}

inline std::optional<at::Tensor> optional_tensor(const AtenTensorHandle* value) {
  return value ? std::optional<at::Tensor>(tensor(*value)) : std::nullopt;
}

template <class T>
std::optional<T> optional(const T* value) {
  return value ? std::optional<T>(*value) : std::nullopt;
}

}  // namespace steering
