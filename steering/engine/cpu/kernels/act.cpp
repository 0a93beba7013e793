// The operation behind the layers of vLLM: adds to the residual stream what the edits of each token's request say, in place, and calls
// Python only where more is to be done; see steering/engine/vllm/operation.py. Most calls of a pass have nothing to do.
#include "edits.h"

#include <ATen/Dispatch.h>
#include "team.h"
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <optional>
#include <vector>

namespace {

using namespace steering;

constexpr int64_t LEFT_TO_PYTHON = -1, NOTHING = -2;  // operation.py
constexpr int64_t STRIDE = 1024;                       // between the kinds of hook points, hook_points.py

// The pass that runs. tables: see edits.h; none where nothing is edited. tasks (kind, layer): NOTHING, LEFT_TO_PYTHON, or the number of
// the layer among those that are edited. first: where the doses of the first of these are noted.
struct Pass {
  std::vector<at::Tensor> tables;
  at::Tensor tasks;
  int64_t first;
};
std::optional<Pass> running;

void begin_pass(at::TensorList tables, const at::Tensor& tasks, int64_t first) {
  if (!tasks.numel()) return running.reset();
  TORCH_CHECK(tasks.dim() == 2 && tasks.is_contiguous(), "begin_pass: expected tasks (kind, layer)");
  if (!tables.empty()) LayerEdits::check(tables);
  const int64_t notes = tables.empty() ? 0 : tables[7].size(0);
  TORCH_CHECK(tasks.max().item<int64_t>() + first < notes, "begin_pass: expected a note per edited layer");
  running = Pass{tables.vec(), tasks, first};
}

// hidden = hidden + (edited - stream), where stream = hidden + residual in float32.
void edit(at::Tensor& hidden, const at::Tensor* residual, const LayerEdits& layer) {
  const int64_t count = hidden.size(0), width = hidden.size(1);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, hidden.scalar_type(), "act", [&] {
    auto* changed = hidden.mutable_data_ptr<scalar_t>();
    const auto* other = residual ? residual->const_data_ptr<scalar_t>() : nullptr;
    steering::parallel_for(0, count, std::max<int64_t>(1, GRAIN / width), [&](int64_t begin, int64_t end) {
      static thread_local std::vector<float> memory;  // kept: threads that allocate wait for each other
      memory.resize(6 * width);
      float *own = memory.data(), *stream = own + width, *edited = own + 2 * width;
      for (int64_t token = begin; token < end; ++token) {
        if (!*layer.rows_of(token)) continue;
        scalar_t* to = changed + token * width;
        at::vec::convert(to, own, width);
        std::copy(own, own + width, stream);
        if (other) {
          at::vec::convert(other + token * width, edited, width);
          at::vec::map2<float>(sum, stream, stream, edited, width);
        }
        std::copy(stream, stream + width, edited);
        layer.apply(token, edited, own + 3 * width);
        at::vec::map3<float>([](Vector x, Vector y, Vector z) { return x + (y - z); }, own, own, edited, stream, width);
        at::vec::convert(own, to, width);
      }
    });
  });
}

void act(at::Tensor& hidden, const std::optional<at::Tensor>& residual, int64_t point) {
  static const auto python = c10::Dispatcher::singleton()
                                 .findSchemaOrThrow("steering::act_in_python", "")
                                 .typed<void(at::Tensor&, const std::optional<at::Tensor>&, int64_t)>();
  if (!running) return python.call(hidden, residual, point);
  const int64_t layer = point % STRIDE, kind = point / STRIDE;
  const int64_t task = running->tasks.const_data_ptr<int64_t>()[kind * running->tasks.size(1) + layer];
  if (task == NOTHING) return;
  const auto& tables = running->tables;
  const auto same = [&](const at::Tensor& other) {
    return other.is_contiguous() && other.sizes() == hidden.sizes() && other.dtype() == hidden.dtype();
  };
  if (task == LEFT_TO_PYTHON || hidden.dim() != 2 || hidden.size(0) != tables[4].size(0) || hidden.size(1) != tables[0].size(1) ||
      !same(hidden) || (residual && !same(*residual)))
    return python.call(hidden, residual, point);
  edit(hidden, residual ? &*residual : nullptr, LayerEdits(tables, layer, running->first + task));
}

}  // namespace

TORCH_LIBRARY_IMPL(steering, CPU, library) {
  library.impl("act", &act);
  library.impl("begin_pass", &begin_pass);
}
