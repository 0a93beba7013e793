// What happens to the residual after a block of a compiled pass: nothing, the bank's rows, or whatever Python does.
//
// One operation in one graph for all of it, so that what surrounds it is the same arithmetic for every row: a row gets the
// same bits beside rows that are steered in other ways as it gets alone.
#include "graph_entry.h"
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

using Vector = at::vec::Vectorized<float>;

constexpr int64_t ADD = 1, VISIT = 2;  // graph_calls.Task
constexpr int64_t GRAIN = 1 << 15;     // numbers worth a thread
constexpr float LEAST = 1e-12f;        // of a norm

// out = residual + row in float32; 1 / |residual| goes to `inverse`.
template <typename scalar_t>
void add_row(const scalar_t* residual, const float* row, scalar_t* out, float* inverse, int64_t width, float* scratch) {
  at::vec::convert(residual, scratch, width);
  const float squares = at::vec::map_reduce_all<float>(
      [](Vector x) { return x * x; }, [](Vector a, Vector b) { return a + b; }, scratch, width);
  *inverse += 1.0f / std::max(std::sqrt(squares), LEAST);
  at::vec::map2<float>([](Vector x, Vector y) { return x + y; }, scratch, scratch, row, width);
  at::vec::convert(scratch, out, width);
}

void add_rows(const at::Tensor& residual, const at::Tensor& rows, at::Tensor& inverse, int64_t layer, at::Tensor& out) {
  const int64_t count = residual.size(0), width = residual.size(1);
  TORCH_CHECK(rows.stride(2) == 1 && rows.size(2) == width && rows.size(1) >= count, "a row of the bank for each token");
  TORCH_CHECK(inverse.stride(1) == 1 && inverse.size(1) >= count, "a sum for each token");
  const float* bank = rows.const_data_ptr<float>() + layer * rows.stride(0);
  float* met = inverse.mutable_data_ptr<float>() + layer * inverse.stride(0);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, residual.scalar_type(), "steer", [&] {
    const auto* from = residual.const_data_ptr<scalar_t>();
    auto* to = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, count, std::max<int64_t>(1, GRAIN / width), [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(width);
      for (int64_t token = begin; token < end; ++token)
        add_row(
            from + token * width, bank + token * rows.stride(1), to + token * width, met + token, width, scratch.data());
    });
  });
}

void visit(at::Tensor& residual, int64_t layer) {
  static const auto operation =
      c10::Dispatcher::singleton().findSchemaOrThrow("steering::visit", "").typed<void(at::Tensor&, int64_t)>();
  operation.call(residual, layer);
}

}  // namespace

at::Tensor steering::steer(
    const at::Tensor& residual, const at::Tensor& rows, at::Tensor& inverse, const at::Tensor& tasks, int64_t layer) {
  TORCH_CHECK(residual.dim() == 2, "residual (token, d_model)");
  const int64_t task = tasks.const_data_ptr<int64_t>()[layer];
  const auto arriving = residual.contiguous();
  if (task == ADD) {
    auto out = at::empty_like(arriving);
    add_rows(arriving, rows, inverse, layer, out);
    return out;
  }
  auto out = arriving.clone();
  if (task == VISIT) visit(out, layer);
  return out;
}

TORCH_LIBRARY_IMPL(steering, CPU, library) { library.impl("steer", &steering::steer); }

extern "C" {

AOTITorchError aoti_torch_cpu_steer(
    AtenTensorHandle residual, AtenTensorHandle rows, AtenTensorHandle inverse, AtenTensorHandle tasks, int64_t layer,
    AtenTensorHandle* result) {
  AOTI_TORCH_CONVERT_EXCEPTION_TO_ERROR_CODE({
    *result = torch::aot_inductor::new_tensor_handle(
        steering::steer(steering::tensor(residual), steering::tensor(rows), steering::tensor(inverse), steering::tensor(tasks), layer));
  });
}
}
