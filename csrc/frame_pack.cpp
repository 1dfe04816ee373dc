#include "streamt1/frame_pack.h"

#include <algorithm>
#include <vector>

#include "streamt1/dispatch.h"

namespace streamt1 {
namespace {

using namespace pixels;

constexpr int64_t kPixelsWorthAThread = 1 << 15;

// The three colours of some pixels, as floats in [0, 1]. Passed by value: bytes may alias a
// reference.
struct Colours {
  const float* r;
  const float* g;
  const float* b;

  STREAMT1_INLINE Colour at(int64_t i) const { return {r[i], g[i], b[i]}; }
};

int64_t bytes_of(Pixel type) {
  if (type == Pixel::kUInt8) return 1;
  return type == Pixel::kFloat32 ? 4 : 2;
}

template <typename T>
STREAMT1_INLINE void quantise_all(uint8_t* out, const void* in, int64_t count, Range range) {
  const auto* from = static_cast<const T*>(in);
  for (int64_t i = 0; i < count; ++i) out[i] = quantise(from[i], range);
}

template <typename T>
STREAMT1_INLINE void read_all(float* out, const void* in, int64_t count, Range range) {
  const auto* from = static_cast<const T*>(in);
  for (int64_t i = 0; i < count; ++i) out[i] = unit_of(read(from[i]), range);
}

}  // namespace

// Outside the anonymous namespace: a clone needs a symbol that the loader can resolve.
STREAMT1_CLONES void quantise_row(uint8_t* out, const void* in, Pixel type, int64_t count,
                                  Range range) {
  if (type == Pixel::kFloat32) quantise_all<float>(out, in, count, range);
  if (type == Pixel::kBFloat16) quantise_all<BFloat16>(out, in, count, range);
  if (type == Pixel::kFloat16) quantise_all<Float16>(out, in, count, range);
}

STREAMT1_CLONES void interleave_row(uint8_t* out, const uint8_t* r, const uint8_t* g,
                                    const uint8_t* b, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    out[3 * i] = r[i];
    out[3 * i + 1] = g[i];
    out[3 * i + 2] = b[i];
  }
}

STREAMT1_CLONES void read_colour(float* out, const void* in, Pixel type, int64_t count,
                                 Range range) {
  if (type == Pixel::kFloat32) read_all<float>(out, in, count, range);
  if (type == Pixel::kBFloat16) read_all<BFloat16>(out, in, count, range);
  if (type == Pixel::kFloat16) read_all<Float16>(out, in, count, range);
  if (type == Pixel::kUInt8) {
    const auto* from = static_cast<const uint8_t*>(in);
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(from[3 * i]) / 255.0f;
  }
}

STREAMT1_CLONES void write_luma(uint8_t* out, Colours in, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = y_of(in.at(i));
}

// Two rows of `width` pixels -> the means of their 2x2 blocks.
STREAMT1_CLONES void mean_blocks(float* out, const float* in, int64_t width) {
  const float* below = in + width;
  for (int64_t x = 0; x < width / 2; ++x)
    out[x] = mean_of(in[2 * x], in[2 * x + 1], below[2 * x], below[2 * x + 1]);
}

STREAMT1_CLONES void write_chroma(uint8_t* u, uint8_t* v, Colours means, int64_t count) {
  for (int64_t i = 0; i < count; ++i) u[i] = cb_of(means.at(i));
  for (int64_t i = 0; i < count; ++i) v[i] = cr_of(means.at(i));
}

namespace {

int worth(const PackJob& job, int threads) {
  const int64_t all = job.shape.frames * job.shape.height * job.shape.width;
  return static_cast<int>(std::clamp<int64_t>(all / kPixelsWorthAThread, 1, threads));
}

// Reads `count` pixels, the first of them pixel `start` of frame `frame`, into `buffer` [3, count].
Colours read_pixels(float* buffer, const PackJob& job, int64_t frame, int64_t start,
                    int64_t count) {
  const int64_t plane = job.shape.height * job.shape.width;
  const bool interleaved = job.type == Pixel::kUInt8;
  for (int64_t c = 0; c < 3; ++c) {
    const int64_t at = 3 * plane * frame + (interleaved ? 3 * start + c : c * plane + start);
    const auto* in = static_cast<const char*>(job.frames) + at * bytes_of(job.type);
    read_colour(buffer + c * count, in, job.type, count, job.range);
  }
  return {buffer, buffer + count, buffer + 2 * count};
}

}  // namespace

void pack_rgb24(const PackJob& job, int threads) {
  const auto [frames, height, width] = job.shape;
  const int64_t rows = frames * height, stride = width;
  threads = worth(job, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<uint8_t> bytes(3 * stride);
#pragma omp for
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t frame = row / job.shape.height, y = row % job.shape.height;
      for (int64_t c = 0; c < 3; ++c) {
        const int64_t at = ((3 * frame + c) * job.shape.height + y) * stride;
        const auto* in = static_cast<const char*>(job.frames) + at * bytes_of(job.type);
        quantise_row(bytes.data() + c * stride, in, job.type, stride, job.range);
      }
      const uint8_t* r = bytes.data();
      interleave_row(job.out + 3 * row * stride, r, r + stride, r + 2 * stride, stride);
    }
  }
}

void pack_yuv420(const PackJob& job, int threads) {
  const int64_t width = job.shape.width, plane = job.shape.height * width;
  const int64_t pairs = job.shape.height / 2, all = job.shape.frames * pairs;
  threads = worth(job, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<float> buffer(6 * width), means(3 * (width / 2));
    const Colours blocks = {means.data(), means.data() + width / 2, means.data() + width};
#pragma omp for
    for (int64_t pair = 0; pair < all; ++pair) {
      const int64_t frame = pair / pairs, start = pair % pairs * 2 * width;
      const Colours in = read_pixels(buffer.data(), job, frame, start, 2 * width);
      uint8_t* y = job.out + frame * plane * 3 / 2;
      uint8_t* u = y + plane + start / 4;
      uint8_t* v = u + plane / 4;
      write_luma(y + start, in, 2 * width);
      for (int64_t c = 0; c < 3; ++c)
        mean_blocks(means.data() + c * (width / 2), buffer.data() + 2 * c * width, width);
      write_chroma(u, v, blocks, width / 2);
    }
  }
}

}  // namespace streamt1
