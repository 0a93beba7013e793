// Steering of the residual stream inside a compiled graph: after each block it copies the residual, adds the bank's rows to it,
// or calls back into Python, as the layer's opcode says.
//
// One operation for all three, so that the surrounding graph does the same arithmetic for every row: a row's bits do not
// depend on how the rows next to it are steered. Any floating dtype, any CPU.
#include "operations.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace {

using namespace steering;
using Vector = at::vec::Vectorized<float>;

constexpr int64_t ADD = 1, CALLBACK = 2;  // callbacks.Opcode
constexpr int64_t GRAIN = 1 << 11;        // elements for which another thread is started
constexpr float MIN_NORM = 1e-12f;

Vector sum(Vector a, Vector b) { return a + b; }

// The bank at one layer: each token's row, and where its 1 / |residual| is accumulated.
struct BankLayer {
  const float* rows;
  const int64_t* indices;
  float* inverse_norms;
  int64_t count;  // rows of this layer and of those after it

  const float* row(int64_t token, int64_t width) const {
    TORCH_CHECK(indices[token] >= 0 && indices[token] < count, "steer: row index ", indices[token], " of ", count, " bank rows");
    return rows + indices[token] * width;
  }
};

// out = the sum of the parts, plus the bank's rows if there is a bank; in float32.
void combine(const std::vector<at::Tensor>& parts, const BankLayer* bank, at::Tensor& out) {
  const int64_t count = out.size(0), width = out.size(1);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, out.scalar_type(), "steer", [&] {
    const auto* first = parts[0].const_data_ptr<scalar_t>();
    const auto* second = parts.size() > 1 ? parts[1].const_data_ptr<scalar_t>() : nullptr;
    auto* result = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, count, std::max<int64_t>(1, GRAIN / width), [&](int64_t begin, int64_t end) {
      static thread_local std::vector<float> memory;  // kept: threads that allocate wait for each other
      memory.resize(2 * width);
      float* values = memory.data();
      float* summand = values + width;
      for (int64_t token = begin; token < end; ++token) {
        scalar_t* to = result + token * width;
        at::vec::convert(first + token * width, values, width);
        if (second) {
          at::vec::convert(second + token * width, summand, width);
          at::vec::map2<float>(sum, values, values, summand, width);
        }
        if (bank) {
          if (second) {  // round the sum where the model rounds it
            at::vec::convert(values, to, width);
            at::vec::convert(to, values, width);
          }
          const float squares = at::vec::map_reduce_all<float>([](Vector x) { return x * x; }, sum, values, width);
          bank->inverse_norms[token] += 1.0f / std::max(std::sqrt(squares), MIN_NORM);
          at::vec::map2<float>(sum, values, values, bank->row(token, width), width);
        }
        at::vec::convert(values, to, width);
      }
    });
  });
}

BankLayer bank_layer(
    const at::Tensor& rows, const at::Tensor& indices, at::Tensor& inverse_norms, int64_t layer, const at::Tensor& out) {
  const int64_t width = out.size(1), before = layer * rows.size(2);
  TORCH_CHECK(rows.is_contiguous() && rows.size(3) == width, "steer: bank rows must be contiguous and as wide as the residual");
  TORCH_CHECK(indices.is_contiguous() && indices.size(0) == out.size(0), "steer: expected one row index per token");
  TORCH_CHECK(inverse_norms.stride(1) == 1 && inverse_norms.size(1) >= out.size(0), "steer: expected one inverse norm per token");
  return {
      rows.const_data_ptr<float>() + before * width, indices.const_data_ptr<int64_t>(),
      inverse_norms.mutable_data_ptr<float>() + layer * inverse_norms.stride(0), rows.numel() / width - before};
}

void hook_callback(at::Tensor& residual, int64_t layer) {
  static const auto operation =
      c10::Dispatcher::singleton().findSchemaOrThrow("steering::hook_callback", "").typed<void(at::Tensor&, int64_t)>();
  operation.call(residual, layer);
}

at::Tensor steer(
    at::TensorList parts, const at::Tensor& bank_rows, const at::Tensor& row_indices, at::Tensor& inverse_norms,
    const at::Tensor& opcodes, int64_t layer) {
  TORCH_CHECK(parts.size() == 1 || parts.size() == 2, "steer: expected one or two parts, got ", parts.size());
  std::vector<at::Tensor> contiguous;
  for (const at::Tensor& part : parts) {
    TORCH_CHECK(
        part.dim() == 2 && part.sizes() == parts[0].sizes() && part.dtype() == parts[0].dtype(),
        "steer: parts must be (token, d_model) of one shape and dtype");
    contiguous.push_back(part.contiguous());
  }
  auto out = at::empty_like(contiguous[0]);
  const int64_t opcode = opcodes.const_data_ptr<int64_t>()[layer];
  if (opcode == ADD) {
    const BankLayer bank = bank_layer(bank_rows, row_indices, inverse_norms, layer, out);
    combine(contiguous, &bank, out);
    return out;
  }
  combine(contiguous, nullptr, out);
  if (opcode == CALLBACK) hook_callback(out, layer);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(steering, CPU, library) { library.impl("steer", &steer); }

extern "C" AOTITorchError aoti_torch_cpu_steer(
    const AtenTensorHandle* parts, int64_t part_count, AtenTensorHandle bank_rows, AtenTensorHandle row_indices,
    AtenTensorHandle inverse_norms, AtenTensorHandle opcodes, int64_t layer, AtenTensorHandle* result) {
  AOTI_TORCH_CONVERT_EXCEPTION_TO_ERROR_CODE({
    *result = handle(steer(
        tensors(parts, part_count), tensor(bank_rows), tensor(row_indices), tensor(inverse_norms), tensor(opcodes), layer));
  });
}
