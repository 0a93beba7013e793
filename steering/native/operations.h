// Our operations, as operations.py names them; all tensors bfloat16 but for biases (float32) and indices (int64).
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

namespace steering {

// rows (..., width); one a layer: packed (panel, pair, column, 2), biases (at least the panels' columns), columns.
// following: what the next call will read, fetched while this one ends. -> (..., all columns), the layers' side by side
at::Tensor linears(
    const at::Tensor& rows, at::TensorList packed, at::TensorList biases, at::IntArrayRef columns,
    at::TensorList following);

// query, key, value (row, head, 1, width); row r is slot r of keys and values (slot, kv_head, position, width), which take
// the new key and value at the row's position first. -> (row, 1, head, width)
at::Tensor attend_rows(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, at::Tensor& keys, at::Tensor& values,
    const at::Tensor& positions, double scaling, std::optional<int64_t> window, std::optional<double> softcap);

// query (1, head, token, width); keys, values (slot, kv_head, position, width), this pass's already written; segments
// (segment, 4): first token, tokens, slot, position of the first. -> (1, token, head, width)
at::Tensor attend_segments(
    const at::Tensor& query, const at::Tensor& keys, const at::Tensor& values, const at::Tensor& segments, double scaling,
    std::optional<int64_t> window, std::optional<double> softcap);

}  // namespace steering
