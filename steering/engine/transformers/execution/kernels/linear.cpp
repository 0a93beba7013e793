// Linear layers in bfloat16 from weights packed once (`operations.packed`), read from memory a panel ahead of their use.
//
// Layers that take the same rows are one call: their panels are shared out among the threads as one. Two layers whose product,
// the first through SiLU, is all that is used are one call too, which never writes them out.
#include "graph_entry.h"
#include "operations.h"
#include "tile.h"

#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
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

// Layers that take the same rows of `width` numbers and write their columns side by side, `stride` a row. gated: two layers,
// of which SiLU(first) * second is written where the first would be.
struct Call {
  std::vector<Layer> layers;
  const half* left;
  int64_t rows, width, stride;
  bool gated = false;

  int64_t panel_count() const {
    if (gated) return layers[0].panel_count();
    int64_t panels = 0;
    for (const Layer& layer : layers) panels += layer.panel_count();
    return panels;
  }
};

struct Panel {
  const Layer* layer;
  int64_t index;

  const half* weights(int64_t width) const { return layer->panels + index * width * WIDTH; }
};

// The panel at a place counted through all layers.
Panel panel_at(const Call& call, int64_t place) {
  const Layer* layer = call.layers.data();
  for (; place >= layer->panel_count(); ++layer) place -= layer->panel_count();
  return {layer, place};
}

// `rows` rows from the `first` times one panel, while the panel at `next` is fetched. keep(row, vector, sums) takes what comes.
template <class Keep>
void multiply(const Call& call, const Panel& panel, const half* next, int64_t first, int64_t rows, const Keep& keep) {
  const int64_t width = call.width, start = panel.index * WIDTH;
  const int64_t tiles = (rows + MOST_ROWS - 1) / MOST_ROWS;
  Ahead ahead{reinterpret_cast<const char*>(next), (VECTORS + tiles - 1) / tiles};
  int64_t unread = next ? VECTORS : 0;
  in_tiles(rows, [&](int64_t row, int64_t count) {
    const auto begin = [&](int, int vector) { return _mm512_loadu_ps(panel.layer->bias + start + vector * LANES); };
    const auto end = [&](int at, int vector, __m512 sums) { keep(row + at, vector, sums); };
    ahead.lines = std::min(ahead.lines, unread);
    unread -= ahead.lines;
    tile_of<VECTORS>(
        count, call.left + (first + row) * width, width, panel.weights(width), width / 2, ahead, begin, end);
  });
}

// Sixteen numbers of a row, those of them that the layer has.
void write(const Call& call, const Panel& panel, int64_t row, int vector, __m256i numbers) {
  const int64_t column = panel.index * WIDTH + vector * LANES;
  const int64_t valid = std::clamp<int64_t>(panel.layer->columns - column, 0, LANES);
  half* to = panel.layer->out + row * call.stride + column;
  if (valid == LANES) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), numbers);
  else if (valid > 0) _mm256_mask_storeu_epi16(to, static_cast<__mmask16>((1u << valid) - 1), numbers);
}

__m512 rounded(__m512 numbers) { return widened(narrowed(numbers)); }

// SiLU of gates in bfloat16, times `numbers`; rounded wherever a model that computes step by step rounds.
__m256i gated(const half* gates, __m512 numbers) {
  const __m512 gate = widened(gates), one = _mm512_set1_ps(1.0f);
  const __m512 fade = at::vec::Vectorized<float>(_mm512_sub_ps(_mm512_setzero_ps(), gate)).exp_u20();
  return narrowed(_mm512_mul_ps(rounded(_mm512_div_ps(gate, _mm512_add_ps(one, fade))), rounded(numbers)));
}

// One item of a call: the panel at a place, or both panels of a pair.
void compute(const Call& call, int64_t place, const half* next, int64_t first, int64_t rows) {
  if (!call.gated) {
    const Panel panel = panel_at(call, place);
    multiply(call, panel, next, first, rows, [&](int64_t row, int vector, __m512 sums) {
      write(call, panel, first + row, vector, narrowed(sums));
    });
    return;
  }
  alignas(64) static thread_local std::array<half, BLOCK * WIDTH> scratch;
  half* gates = scratch.data();  // once: to find a thread's own costs a call
  const Panel gate{&call.layers[0], place}, up{&call.layers[1], place};
  const auto of = [gates](int64_t row, int vector) { return gates + row * WIDTH + vector * LANES; };
  multiply(call, gate, up.weights(call.width), first, rows, [&](int64_t row, int vector, __m512 sums) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(of(row, vector)), narrowed(sums));
  });
  multiply(call, up, next, first, rows, [&](int64_t row, int vector, __m512 sums) {
    write(call, gate, first + row, vector, gated(of(row, vector), sums));
  });
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

// One block of rows by a thread's panels [begin, end), each fetched while the one before it is computed; then what `after` is.
void share(const Call& call, int64_t begin, int64_t end, const half* after, int64_t first, int64_t rows) {
  for (int64_t place = begin; place < end; ++place)
    compute(call, place, place + 1 < end ? panel_at(call, place + 1).weights(call.width) : after, first, rows);
}

// All panels by all rows, these in blocks as even as can be. Each thread has panels of its own.
void run(const Call& call, at::TensorList following) {
  const int64_t panels = call.panel_count(), blocks = (call.rows + BLOCK - 1) / BLOCK;
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), panels);
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t thread = first; thread < last; ++thread) {
      const int64_t begin = panels * thread / threads, end = panels * (thread + 1) / threads;
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t row = call.rows * block / blocks, stop = call.rows * (block + 1) / blocks;
        share(call, begin, end, begins(following, thread, threads), row, stop - row);
      }
    }
  });
}

// Rows and layers as a call that writes to `out`, the layers' columns side by side.
Call call_of(
    const at::Tensor& rows, at::TensorList packed, at::TensorList biases, at::IntArrayRef columns, at::Tensor& out) {
  TORCH_CHECK(biases.size() == packed.size() && columns.size() == packed.size(), "a bias and columns for each weight");
  const int64_t width = rows.size(-1);
  auto* to = reinterpret_cast<half*>(out.mutable_data_ptr());
  Call call{{}, reinterpret_cast<const half*>(rows.const_data_ptr()), rows.numel() / width, width, out.size(-1)};
  for (size_t index = 0; index < packed.size(); ++index) {
    const auto* weights = reinterpret_cast<const half*>(packed[index].const_data_ptr());
    const Layer layer{weights, biases[index].const_data_ptr<float>(), to, columns[index]};
    const std::vector<int64_t> expected{layer.panel_count(), width / 2, WIDTH, 2};
    TORCH_CHECK(
        rows.scalar_type() == at::kBFloat16 && packed[index].scalar_type() == at::kBFloat16 && width % 2 == 0 &&
            packed[index].is_contiguous() && packed[index].sizes() == at::IntArrayRef(expected) &&
            biases[index].numel() >= layer.panel_count() * WIDTH,
        "weights are packed for other rows");
    call.layers.push_back(layer);
    to += layer.columns;
  }
  return call;
}

at::Tensor empty_like_but(const at::Tensor& rows, int64_t columns) {
  auto shape = rows.sizes().vec();
  shape.back() = columns;
  return at::empty(shape, rows.options());
}

}  // namespace

namespace steering {

at::Tensor linears(
    const at::Tensor& rows, at::TensorList packed, at::TensorList biases, at::IntArrayRef columns,
    at::TensorList following) {
  const auto given = rows.contiguous();
  auto out = empty_like_but(given, std::accumulate(columns.begin(), columns.end(), int64_t{0}));
  run(call_of(given, packed, biases, columns, out), following);
  return out;
}

at::Tensor gated_linears(
    const at::Tensor& rows, at::TensorList packed, at::TensorList biases, int64_t columns, at::TensorList following) {
  TORCH_CHECK(packed.size() == 2, "two layers: a gate, and what passes it");
  const auto given = rows.contiguous();
  auto out = empty_like_but(given, columns);
  Call call = call_of(given, packed, biases, {columns, columns}, out);
  call.gated = true;
  run(call, following);
  return out;
}

}  // namespace steering

TORCH_LIBRARY_IMPL(steering, CPU, library) {
  library.impl("linears", &steering::linears);
  library.impl("gated_linears", &steering::gated_linears);
}

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

AOTITorchError aoti_torch_cpu_gated_linears(
    AtenTensorHandle rows, const AtenTensorHandle* packed, int64_t packed_count, const AtenTensorHandle* biases,
    int64_t bias_count, int64_t columns, const AtenTensorHandle* following, int64_t following_count,
    AtenTensorHandle* result) {
  AOTI_TORCH_CONVERT_EXCEPTION_TO_ERROR_CODE({
    *result = torch::aot_inductor::new_tensor_handle(steering::gated_linears(
        steering::tensor(rows), steering::tensors(packed, packed_count), steering::tensors(biases, bias_count), columns,
        steering::tensors(following, following_count)));
  });
}
}
