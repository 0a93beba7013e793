// Conversions for the C functions that AOTInductor graphs call by name (operations.py: AOTI_SHIMS), which stand at the end of
// each operation's file. A call through torch's dispatcher costs several microseconds, and a decode pass makes six a layer.
// What the operations compute: see operations.py.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>
#include <torch/csrc/inductor/aoti_torch/utils.h>

#include <optional>
#include <utility>

namespace steering {

inline at::Tensor& tensor(AtenTensorHandle handle) { return *torch::aot_inductor::tensor_handle_to_tensor_pointer(handle); }

inline AtenTensorHandle handle(at::Tensor&& result) { return torch::aot_inductor::new_tensor_handle(std::move(result)); }

// A list of a few tensors that needs no allocation. A pass makes hundreds of them, and allocations wait for memory, since the weights of
// the model have displaced the allocator's data from the caches.
using Tensors = c10::SmallVector<at::Tensor, 4>;

inline Tensors tensors(const AtenTensorHandle* handles, int64_t count) {
  Tensors result;
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
