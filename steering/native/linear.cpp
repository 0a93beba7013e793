// Linear layers in bfloat16 from weights packed once (`packed_linears`), read from memory a panel ahead of their use.
//
// Layers that take the same rows are one call: their panels are shared out among the threads as one.
#include "graph_entry.h"
#include "operations.h"
#include "tile.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>
#include <vector>

namespace {

using namespace steering;

constexpr int VECTORS = 3;
constexpr int64_t WIDTH = VECTORS * LANES;  // columns a panel
constexpr int64_t BLOCK = 512;              // rows, at most, that go through all panels together: they stay in the cache

struct Layer {
  const half* panels;
  const float* bias;  // one a column of the panels
  half* out;          // its first column of the first row
  int64_t columns;

  int64_t panel_count() const { return (columns + WIDTH - 1) / WIDTH; }
};

// Layers that take the same rows of `width` numbers and write their columns side by side, `stride` a row.
struct Call {
  std::vector<Layer> layers;
  const half* left;
  int64_t rows, width, stride;
};

struct Panel {
  const Layer* layer;
  int64_t index;

  const half* weights(int64_t width) const { return layer->panels + index * width * WIDTH; }
};

// `rows` rows from the `first` times one panel, while the panel at `next` is fetched.
void multiply(const Call& call, const Panel& panel, const half* next, int64_t first, int64_t rows) {
  const int64_t width = call.width, start = panel.index * WIDTH;
  const Layer& layer = *panel.layer;
  const int64_t tiles = (rows + MOST_ROWS - 1) / MOST_ROWS;
  Ahead ahead{reinterpret_cast<const char*>(next), (VECTORS + tiles - 1) / tiles};
  int64_t unread = next ? VECTORS : 0;
  in_tiles(rows, [&](int64_t row, int64_t count) {
    const auto begin = [&](int, int vector) { return _mm512_loadu_ps(layer.bias + start + vector * LANES); };
    const auto end = [&](int at, int vector, __m512 sums) {
      const int64_t column = start + vector * LANES;
      const int64_t valid = std::clamp<int64_t>(layer.columns - column, 0, LANES);
      half* to = layer.out + (first + row + at) * call.stride + column;
      if (valid == LANES) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrowed(sums));
      else if (valid > 0) _mm256_mask_storeu_epi16(to, static_cast<__mmask16>((1u << valid) - 1), narrowed(sums));
    };
    ahead.lines = std::min(ahead.lines, unread);
    unread -= ahead.lines;
    tile_of<VECTORS>(
        count, call.left + (first + row) * width, width, panel.weights(width), width / 2, ahead, begin, end);
  });
}

// One thread's panels, rows in blocks as even as can be. after: what it will read in the call that follows.
void share(const Call& call, const std::vector<Panel>& panels, const half* after) {
  const int64_t blocks = (call.rows + BLOCK - 1) / BLOCK;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = call.rows * block / blocks, end = call.rows * (block + 1) / blocks;
    for (size_t index = 0; index < panels.size(); ++index) {
      const half* next = index + 1 < panels.size() ? panels[index + 1].weights(call.width) : after;
      multiply(call, panels[index], next, first, end - first);
    }
  }
}

// Panels [begin, end) of all layers together.
std::vector<Panel> panels_of(const std::vector<Layer>& layers, int64_t begin, int64_t end) {
  std::vector<Panel> found;
  int64_t before = 0;
  for (const Layer& layer : layers) {
    for (int64_t index = std::max<int64_t>(begin - before, 0); index < std::min(end - before, layer.panel_count()); ++index)
      found.push_back({&layer, index});
    before += layer.panel_count();
  }
  return found;
}

// Where the share `thread` of `threads` begins in weights packed for a call to come.
const half* begins(at::TensorList packed, int64_t thread, int64_t threads) {
  int64_t panels = 0;
  for (const at::Tensor& weight : packed) panels += weight.size(0);
  int64_t place = panels * thread / threads;
  for (const at::Tensor& weight : packed) {
    if (place < weight.size(0)) return reinterpret_cast<const half*>(weight.const_data_ptr()) + place * weight.stride(0);
    place -= weight.size(0);
  }
  return nullptr;
}

}  // namespace

namespace steering {

at::Tensor linears(
    const at::Tensor& rows, at::TensorList packed, at::TensorList biases, at::IntArrayRef columns,
    at::TensorList following) {
  TORCH_CHECK(biases.size() == packed.size() && columns.size() == packed.size(), "a bias and columns for each weight");
  const auto given = rows.contiguous();
  const int64_t width = given.size(-1), total = std::accumulate(columns.begin(), columns.end(), int64_t{0});
  auto shape = given.sizes().vec();
  shape.back() = total;
  auto out = at::empty(shape, given.options());
  auto* to = reinterpret_cast<half*>(out.mutable_data_ptr());
  Call call{{}, reinterpret_cast<const half*>(given.const_data_ptr()), given.numel() / width, width, total};
  int64_t panels = 0;
  for (size_t index = 0; index < packed.size(); ++index) {
    const auto *weights = reinterpret_cast<const half*>(packed[index].const_data_ptr());
    const Layer layer{weights, biases[index].const_data_ptr<float>(), to, columns[index]};
    const std::vector<int64_t> expected{layer.panel_count(), width / 2, WIDTH, 2};
    TORCH_CHECK(
        given.scalar_type() == at::kBFloat16 && packed[index].scalar_type() == at::kBFloat16 && width % 2 == 0 &&
            packed[index].is_contiguous() && packed[index].sizes() == at::IntArrayRef(expected) &&
            biases[index].numel() >= layer.panel_count() * WIDTH,
        "weights are packed for other rows");
    call.layers.push_back(layer);
    to += layer.columns;
    panels += layer.panel_count();
  }
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), panels);
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t thread = first; thread < last; ++thread)
      share(
          call, panels_of(call.layers, panels * thread / threads, panels * (thread + 1) / threads),
          begins(following, thread, threads));
  });
  return out;
}

}  // namespace steering

TORCH_LIBRARY_IMPL(steering, CPU, library) { library.impl("linears", &steering::linears); }

extern "C" {

AOTITorchError aoti_torch_cpu_linears(
    AtenTensorHandle rows, const AtenTensorHandle* packed, int64_t packed_count, const AtenTensorHandle* biases,
    int64_t bias_count, const int64_t* columns, int64_t column_count, const AtenTensorHandle* following,
    int64_t following_count, AtenTensorHandle* result) {
  AOTI_TORCH_CONVERT_EXCEPTION_TO_ERROR_CODE({
    *result = torch::aot_inductor::new_tensor_handle(steering::linears(
        steering::tensor(rows), steering::tensors(packed, packed_count), steering::tensors(biases, bias_count), at::IntArrayRef(columns, column_count),
        steering::tensors(following, following_count)));
  });
}
}
