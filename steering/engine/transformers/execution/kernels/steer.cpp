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
constexpr int64_t GRAIN = 1 << 14;     // numbers worth a thread
constexpr float LEAST = 1e-12f;        // of a norm

Vector sum(Vector a, Vector b) { return a + b; }

// The bank at one layer: each token's row, and where 1 / |residual| of each is added.
struct Adds {
  const float* rows;
  const int64_t* places;
  float* inverse;
  int64_t known;  // rows from the first on that belong to this layer and those after it

  const float* row(int64_t token, int64_t width) const {
    TORCH_CHECK(places[token] >= 0 && places[token] < known, "a row of the bank for each token");
    return rows + places[token] * width;
  }
};

// One token's parts summed, and rounded as the model rounds; then its row of the bank, in float32.
template <typename scalar_t>
class Residual {
 public:
  explicit Residual(int64_t width) : width_(width), numbers_(width), other_(width) {}

  void begin(const scalar_t* first, const scalar_t* second) {
    at::vec::convert(first, numbers_.data(), width_);
    if (!second) return;
    at::vec::convert(second, other_.data(), width_);
    at::vec::map2<float>(sum, numbers_.data(), numbers_.data(), other_.data(), width_);
  }

  // What `end` wrote, as it would be read again.
  void read(const scalar_t* out) { at::vec::convert(out, numbers_.data(), width_); }

  void add(const float* row, float* inverse) {
    const auto square = [](Vector x) { return x * x; };
    const float squares = at::vec::map_reduce_all<float>(square, sum, numbers_.data(), width_);
    *inverse += 1.0f / std::max(std::sqrt(squares), LEAST);
    at::vec::map2<float>(sum, numbers_.data(), numbers_.data(), row, width_);
  }

  void end(scalar_t* out) const { at::vec::convert(numbers_.data(), out, width_); }

 private:
  int64_t width_;
  std::vector<float> numbers_, other_;
};

// out = the parts' sum, plus the bank's rows where there are adds.
void combine(const std::vector<at::Tensor>& parts, const Adds* adds, at::Tensor& out) {
  const int64_t count = out.size(0), width = out.size(1);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, out.scalar_type(), "steer", [&] {
    const auto* first = parts[0].const_data_ptr<scalar_t>();
    const auto* second = parts.size() > 1 ? parts[1].const_data_ptr<scalar_t>() : nullptr;
    auto* to = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, count, std::max<int64_t>(1, GRAIN / width), [&](int64_t begin, int64_t end) {
      Residual<scalar_t> residual(width);
      for (int64_t token = begin; token < end; ++token) {
        scalar_t* here = to + token * width;
        residual.begin(first + token * width, second ? second + token * width : nullptr);
        if (adds) {
          if (second) {
            residual.end(here);
            residual.read(here);
          }
          residual.add(adds->row(token, width), adds->inverse + token);
        }
        residual.end(here);
      }
    });
  });
}

Adds adds_of(const at::Tensor& rows, const at::Tensor& places, at::Tensor& inverse, int64_t layer, const at::Tensor& out) {
  const int64_t width = out.size(1), before = layer * rows.size(2);
  TORCH_CHECK(rows.is_contiguous() && rows.size(3) == width, "rows of the bank as wide as the residual");
  TORCH_CHECK(places.is_contiguous() && places.size(0) == out.size(0), "a place for each token");
  TORCH_CHECK(inverse.stride(1) == 1 && inverse.size(1) >= out.size(0), "a sum for each token");
  return {
      rows.const_data_ptr<float>() + before * width, places.const_data_ptr<int64_t>(),
      inverse.mutable_data_ptr<float>() + layer * inverse.stride(0), rows.numel() / width - before};
}

void visit(at::Tensor& residual, int64_t layer) {
  static const auto operation =
      c10::Dispatcher::singleton().findSchemaOrThrow("steering::visit", "").typed<void(at::Tensor&, int64_t)>();
  operation.call(residual, layer);
}

}  // namespace

at::Tensor steering::steer(
    at::TensorList parts, const at::Tensor& rows, const at::Tensor& places, at::Tensor& inverse, const at::Tensor& tasks,
    int64_t layer) {
  TORCH_CHECK(parts.size() == 1 || parts.size() == 2, "one part, or two");
  std::vector<at::Tensor> arriving;
  for (const at::Tensor& part : parts) {
    TORCH_CHECK(part.dim() == 2 && part.sizes() == parts[0].sizes() && part.dtype() == parts[0].dtype(), "parts (token, d_model)");
    arriving.push_back(part.contiguous());
  }
  auto out = at::empty_like(arriving[0]);
  const int64_t task = tasks.const_data_ptr<int64_t>()[layer];
  if (task == ADD) {
    const Adds adds = adds_of(rows, places, inverse, layer, out);
    combine(arriving, &adds, out);
    return out;
  }
  combine(arriving, nullptr, out);
  if (task == VISIT) visit(out, layer);
  return out;
}

TORCH_LIBRARY_IMPL(steering, CPU, library) { library.impl("steer", &steering::steer); }

extern "C" {

AOTITorchError aoti_torch_cpu_steer(
    const AtenTensorHandle* parts, int64_t part_count, AtenTensorHandle rows, AtenTensorHandle places,
    AtenTensorHandle inverse, AtenTensorHandle tasks, int64_t layer, AtenTensorHandle* result) {
  AOTI_TORCH_CONVERT_EXCEPTION_TO_ERROR_CODE({
    *result = torch::aot_inductor::new_tensor_handle(steering::steer(
        steering::tensors(parts, part_count), steering::tensor(rows), steering::tensor(places), steering::tensor(inverse),
        steering::tensor(tasks), layer));
  });
}
}
