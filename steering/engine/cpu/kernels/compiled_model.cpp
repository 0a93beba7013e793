// CompiledModel: runs an AOTInductor package without Python's global lock. torch's own loader holds the lock during the whole
// pass (github.com/pytorch/pytorch/issues/197516), which would stop every other thread of the server.
#include "team.h"

#include <ATen/TensorIterator.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/custom_class.h>

#if defined(_OPENMP) && defined(__x86_64__) && defined(__linux__)
#include <omp.h>
#endif

namespace {

constexpr size_t TOKENS = 0, VECTORS = 5;  // of the inputs of graphs.PassGraph: token ids, and the first table of edits (row, d_model)

// While it lives, loops of the compiler run in the calling thread, and operations of ours in the team, where the residuals of a pass are
// no more numbers than ATen gives to one thread. OpenMP's threads spin after each of the few loops between our operations, on
// processors that the team and the event loop need.
struct LoopsInOneThread {
#if defined(_OPENMP) && defined(__x86_64__) && defined(__linux__)
  explicit LoopsInOneThread(int64_t numbers) {
    if (!steering::use_team || numbers > at::internal::GRAIN_SIZE) return;
    steering::team_threads = threads = at::get_num_threads();
    omp_set_num_threads(1);
  }
  ~LoopsInOneThread() {
    if (!threads) return;
    steering::team_threads = 0;
    omp_set_num_threads(threads);
  }
  int threads = 0;
#else
  explicit LoopsInOneThread(int64_t) {}
#endif
};

struct CompiledModel : torch::CustomClassHolder {
  explicit CompiledModel(const std::string& package) : loader(package, "model", /*run_single_threaded=*/true) {}

  // torch releases the lock while it calls a method of a custom class
  std::vector<at::Tensor> run(std::vector<at::Tensor> inputs) {
    const bool pass = inputs.size() > VECTORS;  // and no other graph
    const LoopsInOneThread loops(pass ? inputs[TOKENS].numel() * inputs[VECTORS].size(-1) : INT64_MAX);
    return loader.boxed_run(std::move(inputs));
  }

  torch::inductor::AOTIModelPackageLoader loader;
};

}  // namespace

TORCH_LIBRARY(steering_compiled, library) {
  library.class_<CompiledModel>("CompiledModel")
      .def(torch::init<std::string>())
      .def("run", &CompiledModel::run);
}
