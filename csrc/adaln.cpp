#include "streamt1/adaln.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "streamt1/dispatch.h"

namespace streamt1 {
namespace {

constexpr float kEps = 1e-6f;
constexpr int64_t kParallelElements = 1 << 15;  // less is done before a second thread wakes up

// A span of tokens within one frame, and float32 scratch of [width] each.
struct Span {
  int64_t batch, frame, first, count;
  float* values;
  float* gate;
  float* scale;
  float* shift;
};

template <typename T>
STREAMT1_INLINE const T* vector_of(const FrameVectors& vectors, const Span& span) {
  return static_cast<const T*>(vectors.data) + span.batch * vectors.batch_stride +
         span.frame * vectors.frame_stride;
}

template <typename T, typename Address>
STREAMT1_INLINE T* row_of(const Rows<Address>& rows, int64_t b, int64_t s) {
  return static_cast<T*>(rows.data) + b * rows.batch_stride + s * rows.token_stride;
}

// x[i] += gate[i] * y[i], rounded as it is stored.
template <typename T>
STREAMT1_INLINE void add_row(float* __restrict x, T* __restrict total, const T* __restrict y,
                             const float* __restrict gate, int64_t width) {
  for (int64_t i = 0; i < width; ++i) {
    const T rounded = from_float<T>(x[i] + to_float(y[i]) * gate[i]);
    total[i] = rounded;
    x[i] = to_float(rounded);
  }
}

template <typename T>
STREAMT1_INLINE void norm_row(T* __restrict out, float* __restrict x, const float* __restrict scale,
                              const float* __restrict shift, int64_t width) {
  const auto count = static_cast<float>(width);
  const float mean = sum_row(width, [x](int64_t i) { return x[i]; }) / count;
  const float variance = sum_row(width,
                                 [x, mean](int64_t i) {
                                   const float d = x[i] - mean;
                                   return d * d;
                                 }) /
                         count;
  const float factor = 1.0f / std::sqrt(variance + kEps);
  for (int64_t i = 0; i < width; ++i)
    out[i] = from_float<T>((x[i] - mean) * factor * scale[i] + shift[i]);
}

template <typename T>
STREAMT1_INLINE void span_rows(const Adaln& job, const AdalnShape& shape, const Span& span) {
  const int64_t width = shape.width, tokens = shape.frames * shape.patches;
  if (job.gate.data)
    read_row(span.gate, vector_of<T>(job.gate, span), width);
  else
    std::fill_n(span.gate, width, 1.0f);
  if (job.out) {
    read_row(span.scale, vector_of<T>(job.scale, span), width);
    read_row(span.shift, vector_of<T>(job.shift, span), width);
    for (int64_t i = 0; i < width && job.one_plus; ++i) span.scale[i] += 1.0f;
  }
  for (int64_t i = 0; i < span.count; ++i) {
    const int64_t s = span.frame * shape.patches + span.first + i;
    const int64_t at = (span.batch * tokens + s) * width;
    read_row(span.values, row_of<const T>(job.x, span.batch, s), width);
    if (job.total)
      add_row(span.values, static_cast<T*>(job.total) + at,
              row_of<const T>(job.y, span.batch, s), span.gate, width);
    if (job.out)
      norm_row(static_cast<T*>(job.out) + at, span.values, span.scale, span.shift, width);
  }
}

}  // namespace

// Outside the anonymous namespace: a clone needs a symbol that the loader can resolve.
STREAMT1_CLONES void adaln_span(const Adaln& job, const AdalnShape& shape, const Span& span,
                                Float type) {
  if (type == Float::kFloat32)
    span_rows<float>(job, shape, span);
  else if (type == Float::kBFloat16)
    span_rows<BFloat16>(job, shape, span);
  else
    span_rows<Float16>(job, shape, span);
}

void adaln(const Adaln& job, const AdalnShape& shape, Float type, [[maybe_unused]] int threads) {
  constexpr int64_t kSpanTokens = 16;
  const int64_t spans = (shape.patches + kSpanTokens - 1) / kSpanTokens;
  const int64_t frames = shape.batch * shape.frames;
  const bool parallel = threads > 1 && frames * shape.patches * shape.width > kParallelElements;
#pragma omp parallel num_threads(threads) if (parallel)
  {
    std::vector<float> scratch(4 * shape.width);
    float* at = scratch.data();
#pragma omp for schedule(static)
    for (int64_t n = 0; n < frames * spans; ++n) {
      const int64_t frame = n / spans, first = n % spans * kSpanTokens;
      adaln_span(job, shape,
                 {frame / shape.frames, frame % shape.frames, first,
                  std::min(kSpanTokens, shape.patches - first), at, at + shape.width,
                  at + 2 * shape.width, at + 3 * shape.width},
                 type);
    }
  }
}

}  // namespace streamt1
