// CompiledModel: runs an AOTInductor package without Python's global lock. torch's own loader holds the lock during the whole
// pass (github.com/pytorch/pytorch/issues/197516), which would stop every other thread of the server.
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/custom_class.h>

namespace {

struct CompiledModel : torch::CustomClassHolder {
  explicit CompiledModel(const std::string& package) : loader(package, "model", /*run_single_threaded=*/true) {}

  // torch releases the lock while it calls a method of a custom class
  std::vector<at::Tensor> run(std::vector<at::Tensor> inputs) { return loader.boxed_run(std::move(inputs)); }

  torch::inductor::AOTIModelPackageLoader loader;
};

}  // namespace

TORCH_LIBRARY(steering_compiled, library) {
  library.class_<CompiledModel>("CompiledModel")
      .def(torch::init<std::string>())
      .def("run", &CompiledModel::run);
}
