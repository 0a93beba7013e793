// CompiledModel: runs an AOTInductor package without Python's global lock. torch's own loader holds the lock during the whole
// pass (github.com/pytorch/pytorch/issues/197516), which would stop every other thread of the server.
#include "team.h"

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/custom_class.h>

#if defined(_OPENMP) && defined(__x86_64__) && defined(__linux__)
#include <omp.h>
#endif

namespace {

constexpr int64_t FEW_TOKENS = 64;  // of a decode pass: a loop over them takes about as long as starting another thread

// While it lives, loops of the compiler run in the calling thread, and operations of ours in the team. OpenMP's threads spin after each
// of the few loops between our operations, on processors that the team and the event loop need.
struct LoopsInOneThread {
#if defined(_OPENMP) && defined(__x86_64__) && defined(__linux__)
  explicit LoopsInOneThread(int64_t tokens) {
    if (!steering::use_team || tokens > FEW_TOKENS) return;
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
    const LoopsInOneThread loops(inputs.at(0).numel());
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
