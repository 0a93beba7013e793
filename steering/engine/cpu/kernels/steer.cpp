// Steering of the residual stream inside a compiled graph: after each block it copies the residual, applies the edits of each
// token's request to it, and calls back into Python where something is decided or read between layers, as the layer's task says.
//
// One operation for all of it, so that the surrounding graph does the same arithmetic for every row: a row's bits do not
// depend on how the rows next to it are steered. Any floating dtype, any CPU. What is computed: LayerEdits.apply in
// steering/injection/apply.py, in float32.
#include "edits.h"
#include "operations.h"

#include <ATen/Dispatch.h>
#include "team.h"
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <vector>

namespace {

using namespace steering;

constexpr int64_t DECIDE = 1, EDIT = 2, READ = 4;  // graphs.Task

// out = the sum of the parts, rounded as the model rounds it, then edited in float32 where there are edits. exact: where the
// result is kept in float32 too.
void combine(at::TensorList parts, const LayerEdits* layer, at::Tensor& out, float* exact) {
  const int64_t count = out.size(0), width = out.size(1);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, out.scalar_type(), "steer", [&] {
    const auto* first = parts[0].const_data_ptr<scalar_t>();
    const auto* second = parts.size() > 1 ? parts[1].const_data_ptr<scalar_t>() : nullptr;
    auto* result = out.mutable_data_ptr<scalar_t>();
    steering::parallel_for(0, count, std::max<int64_t>(1, GRAIN / width), [&](int64_t begin, int64_t end) {
      static thread_local std::vector<float> memory;  // kept: threads that allocate wait for each other
      memory.resize(4 * width);
      float* values = memory.data();
      for (int64_t token = begin; token < end; ++token) {
        scalar_t* to = result + token * width;
        if (layer && token + 1 < end) layer->prefetch(token + 1);
        at::vec::convert(first + token * width, values, width);
        if (second) {
          at::vec::convert(second + token * width, values + width, width);
          at::vec::map2<float>(sum, values, values, values + width, width);
        }
        if (layer) {
          if (second) {
            at::vec::convert(values, to, width);
            at::vec::convert(to, values, width);
          }
          layer->apply(token, values, values + width);
          if (exact) std::copy(values, values + width, exact + token * width);
        }
        at::vec::convert(values, to, width);
      }
    });
  });
}

void call_back(const at::Tensor& residual, int64_t layer, bool read) {
  static const auto operation = c10::Dispatcher::singleton()
                                    .findSchemaOrThrow("steering::residual_callback", "")
                                    .typed<void(const at::Tensor&, int64_t, bool)>();
  operation.call(residual, layer, read);
}

at::Tensor steer(
    at::TensorList parts, const at::Tensor& vectors, const at::Tensor& numbers, const at::Tensor& codes, const at::Tensor& rows,
    const at::Tensor& slots, const at::Tensor& weights, at::Tensor& left, at::Tensor& edits, at::Tensor& changes,
    at::Tensor& scaled, const at::Tensor& tasks, int64_t layer) {
  TORCH_CHECK(parts.size() == 1 || parts.size() == 2, "steer: expected one or two parts, got ", parts.size());
  Tensors contiguous;
  for (const at::Tensor& part : parts) {
    TORCH_CHECK(
        part.dim() == 2 && part.sizes() == parts[0].sizes() && part.dtype() == parts[0].dtype(),
        "steer: parts must be (token, d_model) of one shape and dtype");
    contiguous.push_back(part.contiguous());
  }
  auto out = at::empty_like(contiguous[0]);
  const int64_t* task = tasks.const_data_ptr<int64_t>() + 2 * layer;
  if (*task & DECIDE) {
    combine(contiguous, nullptr, out, nullptr);
    call_back(out, layer, false);
    contiguous.assign(1, out);
  }
  at::Tensor left_layer = out;  // what callbacks read
  if (*task & EDIT) {
    const std::array<at::Tensor, 10> tables{vectors, numbers, codes, rows, slots, weights, left, edits, changes, scaled};
    LayerEdits::check(tables);
    TORCH_CHECK(vectors.size(1) == out.size(1), "steer: edits must be as wide as the residual");
    TORCH_CHECK(slots.size(0) == out.size(0) && task[1] < edits.size(0), "steer: expected one slot per token, and a note");
    const LayerEdits here(tables, layer, task[1]);
    const bool separate = (*task & READ) && out.scalar_type() != at::kFloat;
    if (separate) left_layer = at::empty(out.sizes(), out.options().dtype(at::kFloat));
    combine(contiguous, &here, out, separate ? left_layer.mutable_data_ptr<float>() : nullptr);
  } else if (!(*task & DECIDE)) {
    combine(contiguous, nullptr, out, nullptr);
  }
  if (*task & READ) call_back(left_layer, layer, true);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(steering, CPU, library) { library.impl("steer", &steer); }

extern "C" AOTITorchError aoti_torch_cpu_steer(
    const AtenTensorHandle* parts, int64_t part_count, AtenTensorHandle vectors, AtenTensorHandle numbers, AtenTensorHandle codes,
    AtenTensorHandle rows, AtenTensorHandle slots, AtenTensorHandle weights, AtenTensorHandle left, AtenTensorHandle edits,
    AtenTensorHandle changes, AtenTensorHandle scaled, AtenTensorHandle tasks, int64_t layer, AtenTensorHandle* result) {
  AOTI_TORCH_CONVERT_EXCEPTION_TO_ERROR_CODE({
    *result = handle(steer(
        tensors(parts, part_count), tensor(vectors), tensor(numbers), tensor(codes), tensor(rows), tensor(slots), tensor(weights),
        tensor(left), tensor(edits), tensor(changes), tensor(scaled), tensor(tasks), layer));
  });
}
