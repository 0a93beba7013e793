// What compiled graphs call by name (operations.py: GRAPH_ENTRIES). Through torch's dispatcher a call from a compiled graph
// costs several microseconds, and a decode pass makes five a layer.
#include "operations.h"

#include <torch/csrc/inductor/aoti_torch/utils.h>

#include <vector>

namespace {

const at::Tensor& tensor(AtenTensorHandle handle) { return *torch::aot_inductor::tensor_handle_to_tensor_pointer(handle); }

std::vector<at::Tensor> tensors(const AtenTensorHandle* handles, int64_t count) {
  std::vector<at::Tensor> found;
  found.reserve(count);
  for (int64_t index = 0; index < count; ++index) found.push_back(tensor(handles[index]));
  return found;
}

template <class T>
std::optional<T> given(const T* number) {
  return number ? std::optional<T>(*number) : std::nullopt;
}

}  // namespace

extern "C" {

AOTITorchError aoti_torch_cpu_linears(
    AtenTensorHandle rows, const AtenTensorHandle* packed, int64_t packed_count, const AtenTensorHandle* biases,
    int64_t bias_count, const int64_t* columns, int64_t column_count, const AtenTensorHandle* following,
    int64_t following_count, AtenTensorHandle* result) {
  AOTI_TORCH_CONVERT_EXCEPTION_TO_ERROR_CODE({
    *result = torch::aot_inductor::new_tensor_handle(steering::linears(
        tensor(rows), tensors(packed, packed_count), tensors(biases, bias_count), at::IntArrayRef(columns, column_count),
        tensors(following, following_count)));
  });
}

AOTITorchError aoti_torch_cpu_attend_rows(
    AtenTensorHandle query, AtenTensorHandle key, AtenTensorHandle value, AtenTensorHandle keys, AtenTensorHandle values,
    AtenTensorHandle positions, double scaling, const int64_t* window, const double* softcap, AtenTensorHandle* result) {
  AOTI_TORCH_CONVERT_EXCEPTION_TO_ERROR_CODE({
    *result = torch::aot_inductor::new_tensor_handle(steering::attend_rows(
        tensor(query), tensor(key), tensor(value), *torch::aot_inductor::tensor_handle_to_tensor_pointer(keys),
        *torch::aot_inductor::tensor_handle_to_tensor_pointer(values), tensor(positions), scaling, given(window),
        given(softcap)));
  });
}
}
