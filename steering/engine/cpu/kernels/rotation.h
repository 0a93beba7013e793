// Rotary position embeddings (RoFormer, arXiv 2104.09864), applied to queries and keys where attention reads them.
#pragma once
#include "gemm_tile.h"

#include <optional>

namespace steering {

// Cosines and sines of each token's position, one value for each of the `width` inputs of a head. Without them nothing is rotated.
struct Rotation {
  const bf16 *cosines = nullptr, *sines = nullptr;
  int64_t stride = 0;

  // Writes x * cosines + (upper inputs of x with opposite sign, lower inputs of x) * sines, rounded to bfloat16 after every
  // operation, as a model that computes operation by operation rounds. width: a multiple of 32.
  template <class Number>
  void apply(const bf16* x, int64_t token, int64_t width, Number* out) const {
    const bf16 *cosine = cosines + token * stride, *sine = sines + token * stride;
    const int64_t middle = width / 2;
    const auto turned = [](Floats a, const bf16* cosine, Floats b, const bf16* sine) {
      return round_to_bf16(a * load_float(cosine)) + round_to_bf16(b * load_float(sine));
    };
    for (int64_t at = 0; at < middle; at += LANES) {
      const Floats low = load_float(x + at), high = load_float(x + middle + at);
      store_rounded(out + at, turned(low, cosine + at, zero() - high, sine + at));
      store_rounded(out + middle + at, turned(high, cosine + middle + at, low, sine + middle + at));
    }
  }

  explicit operator bool() const { return cosines != nullptr; }
};

inline std::optional<at::Tensor> contiguous(const std::optional<at::Tensor>& tensor) {
  return tensor ? std::optional<at::Tensor>(tensor->contiguous()) : std::nullopt;
}

// From contiguous tensors (1, 1, token, width), or none.
inline Rotation rotation(
    const std::optional<at::Tensor>& cosines, const std::optional<at::Tensor>& sines, int64_t tokens, int64_t width) {
  if (!cosines && !sines) return {};
  TORCH_CHECK(cosines && sines, "paged_attention: expected cosines and sines, or neither");
  for (const at::Tensor& tensor : {*cosines, *sines})
    TORCH_CHECK(
        tensor.dim() == 4 && tensor.size(0) == 1 && tensor.size(1) == 1 && tensor.size(2) == tokens &&
            tensor.size(3) == width && tensor.scalar_type() == at::kBFloat16,
        "paged_attention: expected cosines and sines (1, 1, token, width) in bfloat16");
  return {bf16_data(*cosines), bf16_data(*sines), width};
}

}  // namespace steering
