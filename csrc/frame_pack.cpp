#include "streamt1/frame_pack.h"

#include <cstring>
#include <vector>

#include "streamt1/dispatch.h"

namespace streamt1 {
namespace {

STREAMT1_INLINE float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Written so that NaN fails the first comparison and becomes 0.
STREAMT1_INLINE float clamp_unit(float x) {
  const float low = x > 0.0f ? x : 0.0f;
  return low < 1.0f ? low : 1.0f;
}

STREAMT1_INLINE float unit_of_float16(uint16_t bits) {
  const uint32_t magnitude = bits & 0x7FFFu;
  // The factor moves the exponent's bias from 15 to 127 and is exact; infinity becomes 65536.
  const float value = float_of(magnitude << 13) * 0x1p112f;
  const bool zero = (bits & 0x8000u) != 0 || magnitude > 0x7C00u;  // negative or NaN
  return zero ? 0.0f : clamp_unit(value);
}

// Half up. The sum is never negative, so the truncation is a floor.
STREAMT1_INLINE uint8_t byte_of(float x) {
  return static_cast<uint8_t>(static_cast<int32_t>(x + 0.5f));
}

STREAMT1_INLINE float luma(float r, float g, float b) {
  return (0.2126f * r + 0.7152f * g) + 0.0722f * b;
}

// The three colours of some pixels, as floats in [0, 1].
struct Colours {
  const float* r;
  const float* g;
  const float* b;
};

int64_t bytes_of(Pixel type) {
  if (type == Pixel::kUInt8) return 1;
  return type == Pixel::kFloat32 ? 4 : 2;
}

}  // namespace

// Outside the anonymous namespace: a clone needs a symbol that the loader can resolve.
STREAMT1_CLONES void read_colour(float* out, const void* in, Pixel type, int64_t count) {
  if (type == Pixel::kFloat32) {
    const auto* from = static_cast<const float*>(in);
    for (int64_t i = 0; i < count; ++i) out[i] = clamp_unit(from[i]);
  } else if (type == Pixel::kBFloat16) {
    const auto* from = static_cast<const uint16_t*>(in);
    for (int64_t i = 0; i < count; ++i) out[i] = clamp_unit(float_of(uint32_t{from[i]} << 16));
  } else if (type == Pixel::kFloat16) {
    const auto* from = static_cast<const uint16_t*>(in);
    for (int64_t i = 0; i < count; ++i) out[i] = unit_of_float16(from[i]);
  } else {
    const auto* from = static_cast<const uint8_t*>(in);
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(from[3 * i]) / 255.0f;
  }
}

STREAMT1_CLONES void write_rgb24(uint8_t* out, const Colours& in, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    out[3 * i] = byte_of(in.r[i] * 255.0f);
    out[3 * i + 1] = byte_of(in.g[i] * 255.0f);
    out[3 * i + 2] = byte_of(in.b[i] * 255.0f);
  }
}

STREAMT1_CLONES void write_luma(uint8_t* out, const Colours& in, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    out[i] = byte_of(219.0f * luma(in.r[i], in.g[i], in.b[i]) + 16.0f);
}

// Two rows of `width` pixels -> half a row of each chroma.
STREAMT1_CLONES void write_chroma(uint8_t* u, uint8_t* v, const Colours& in, int64_t width) {
  const auto mean = [width](const float* at) {
    return ((at[0] + at[1]) + (at[width] + at[width + 1])) * 0.25f;
  };
  for (int64_t x = 0; x < width / 2; ++x) {
    const float r = mean(in.r + 2 * x), g = mean(in.g + 2 * x), b = mean(in.b + 2 * x);
    const float value = luma(r, g, b);
    u[x] = byte_of(static_cast<float>(224.0 / 1.8556) * (b - value) + 128.0f);
    v[x] = byte_of(static_cast<float>(224.0 / 1.5748) * (r - value) + 128.0f);
  }
}

namespace {

// Reads `count` pixels, the first of them pixel `start` of frame `frame`, into `buffer` [3, count].
Colours read_pixels(float* buffer, const void* frames, Pixel type, int64_t plane, int64_t frame,
                    int64_t start, int64_t count) {
  const bool interleaved = type == Pixel::kUInt8;
  for (int64_t c = 0; c < 3; ++c) {
    const int64_t at = 3 * plane * frame + (interleaved ? 3 * start + c : c * plane + start);
    const auto* in = static_cast<const char*>(frames) + at * bytes_of(type);
    read_colour(buffer + c * count, in, type, count);
  }
  return {buffer, buffer + count, buffer + 2 * count};
}

}  // namespace

void pack_rgb24(uint8_t* out, const void* frames, Pixel type, const FrameShape& shape,
                [[maybe_unused]] int threads) {
  const int64_t plane = shape.height * shape.width;
  const int64_t rows = shape.frames * shape.height;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<float> buffer(3 * shape.width);
#pragma omp for
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t frame = row / shape.height, start = row % shape.height * shape.width;
      const Colours in = read_pixels(buffer.data(), frames, type, plane, frame, start, shape.width);
      write_rgb24(out + 3 * row * shape.width, in, shape.width);
    }
  }
}

void pack_yuv420(uint8_t* out, const void* frames, Pixel type, const FrameShape& shape,
                 [[maybe_unused]] int threads) {
  const int64_t plane = shape.height * shape.width;
  const int64_t pairs = shape.height / 2;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<float> buffer(6 * shape.width);
#pragma omp for
    for (int64_t pair = 0; pair < shape.frames * pairs; ++pair) {
      const int64_t frame = pair / pairs, start = pair % pairs * 2 * shape.width;
      const Colours in =
          read_pixels(buffer.data(), frames, type, plane, frame, start, 2 * shape.width);
      uint8_t* y = out + frame * plane * 3 / 2;
      uint8_t* u = y + plane + start / 4;
      uint8_t* v = u + plane / 4;
      write_luma(y + start, in, 2 * shape.width);
      write_chroma(u, v, in, shape.width);
    }
  }
}

}  // namespace streamt1
