// Our operations, as operations.py names them; tensors are bfloat16 but for biases (float32), indices (int64) and what `steer`
// takes, which is any type.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

namespace steering {

// rows (..., width); one a layer: packed (panel, pair, column, 2), biases (at least the panels' columns), columns.
// following: what the next call will read, fetched while this one ends. -> (..., all columns), the layers' side by side
at::Tensor linears(
    const at::Tensor& rows, at::TensorList packed, at::TensorList biases, at::IntArrayRef columns,
    at::TensorList following);

// The same for two layers of as many columns, of which SiLU(first) * second is all that is wanted. -> (..., columns)
at::Tensor gated_linears(
    const at::Tensor& rows, at::TensorList packed, at::TensorList biases, int64_t columns, at::TensorList following);

// query, key, value (row, head, 1, width); row r is slot r of keys and values (slot, kv_head, position, width), which take
// the new key and value at the row's position first. -> (row, 1, head, width)
at::Tensor attend_rows(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, at::Tensor& keys, at::Tensor& values,
    const at::Tensor& positions, double scaling, std::optional<int64_t> window, std::optional<double> softcap);

// query, key, value (1, head, token, width); keys, values (slot, kv_head, position, width), which take this pass's first;
// segments (segment, 4): first token, tokens, slot, position of the first; loans (loan, 3): borrower, lender, position, copied
// from slot to slot before anyone attends. -> (1, token, head, width)
at::Tensor attend_segments(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, at::Tensor& keys, at::Tensor& values,
    const at::Tensor& segments, const at::Tensor& loans, double scaling, std::optional<int64_t> window,
    std::optional<double> softcap);

// parts: the residual (token, d_model) after a block, or two whose sum it is -> as it goes on. tasks: int64, one a layer
// (graph_calls.Task). Where the task is to add: rows (phase, layer, slot, d_model) float32, the bank's; places (token): each
// token's row of it at layer 0, counted through phases, layers and slots; 1 / |residual| is added to inverse
// (layer, at least token) float32.
at::Tensor steer(
    at::TensorList parts, const at::Tensor& rows, const at::Tensor& places, at::Tensor& inverse, const at::Tensor& tasks,
    int64_t layer);

// logits (row, vocab) -> (row, 2): the first of the likeliest tokens of each row, and 1 where all its logits are finite.
at::Tensor likeliest(const at::Tensor& logits);

}  // namespace steering
