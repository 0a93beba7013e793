// What compiled graphs call by name (operations.py: GRAPH_ENTRIES) stands at the end of each operation's file. Through torch's
// dispatcher a call from a compiled graph costs several microseconds, and a decode pass makes six a layer.
#pragma once
#include <ATen/core/Tensor.h>
#include <torch/csrc/inductor/aoti_torch/utils.h>

#include <optional>
#include <vector>

namespace steering {

inline at::Tensor& tensor(AtenTensorHandle handle) { return *torch::aot_inductor::tensor_handle_to_tensor_pointer(handle); }

inline std::vector<at::Tensor> tensors(const AtenTensorHandle* handles, int64_t count) {
  std::vector<at::Tensor> found;
  found.reserve(count);
  for (int64_t index = 0; index < count; ++index) found.push_back(tensor(handles[index]));
  return found;
}

template <class T>
std::optional<T> given(const T* number) {
  return number ? std::optional<T>(*number) : std::nullopt;
}

}  // namespace steering
