// The arithmetic of 8-bit pixels, one rounding per operation, written once for the CPU and the GPU.
// The contract is in kernels/frame_pack.py.
#pragma once

#include <cstdint>

#include "streamt1/exact.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

namespace streamt1 {

enum class Pixel { kFloat32, kBFloat16, kFloat16, kUInt8 };

struct FrameShape {
  int64_t frames;
  int64_t height;
  int64_t width;
};

// A value x of the frames is x * gain + bias in [0, 1].
struct Range {
  float gain;
  float bias;
};

constexpr Range range_from(float lowest) {
  return lowest < 0.0f ? Range{0.5f, 0.5f} : Range{1.0f, 0.0f};
}

namespace pixels {

using exact::BFloat16;
using exact::bits_of;
using exact::Float16;
using exact::float_of;
using exact::product;
using exact::sum;

STREAMT1_BOTH float read(float value) { return value; }

STREAMT1_BOTH float read(BFloat16 value) { return float_of(uint32_t{value.bits} << 16); }

STREAMT1_BOTH float read(Float16 value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  const uint32_t magnitude = value.bits & 0x7FFFu;
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
  // The factor moves the exponent's bias from 15 to 127 and is exact; infinity becomes 65536, which
  // is clamped as well.
  const uint32_t finite = bits_of(float_of(magnitude << 13) * 0x1p112f);
  return float_of(sign | (magnitude > 0x7C00u ? 0x7FC00000u : finite));
#endif
}

// Written so that NaN fails the first comparison and becomes 0.
STREAMT1_BOTH float unit_of(float x, Range range) {
  const float scaled = sum(product(x, range.gain), range.bias);
  const float low = scaled > 0.0f ? scaled : 0.0f;
  return low < 1.0f ? low : 1.0f;
}

// Half up. The sum is never negative, so the truncation is a floor.
STREAMT1_BOTH uint8_t byte_of(float x) {
  return static_cast<uint8_t>(static_cast<int32_t>(sum(x, 0.5f)));
}

template <typename T>
STREAMT1_BOTH uint8_t quantise(T value, Range range) {
  return byte_of(product(unit_of(read(value), range), 255.0f));
}

STREAMT1_BOTH uint8_t quantise(uint8_t value, Range) { return value; }

struct Colour {
  float r, g, b;
};

STREAMT1_BOTH float luma(const Colour& c) {
  return sum(sum(product(c.r, 0.2126f), product(c.g, 0.7152f)), product(c.b, 0.0722f));
}

STREAMT1_BOTH uint8_t y_of(const Colour& c) {
  return byte_of(sum(product(luma(c), 219.0f), 16.0f));
}

STREAMT1_BOTH uint8_t cb_of(const Colour& mean) {
  constexpr float kScale = static_cast<float>(224.0 / 1.8556);
  return byte_of(sum(product(sum(mean.b, -luma(mean)), kScale), 128.0f));
}

STREAMT1_BOTH uint8_t cr_of(const Colour& mean) {
  constexpr float kScale = static_cast<float>(224.0 / 1.5748);
  return byte_of(sum(product(sum(mean.r, -luma(mean)), kScale), 128.0f));
}

STREAMT1_BOTH float mean_of(float top_left, float top_right, float bottom_left,
                            float bottom_right) {
  return product(sum(sum(top_left, top_right), sum(bottom_left, bottom_right)), 0.25f);
}

// To nearest, ties to even. The values are finite and far below the largest float16.
template <typename T>
T write(float value);

template <>
STREAMT1_BOTH float write<float>(float value) {
  return value;
}

template <>
STREAMT1_BOTH BFloat16 write<BFloat16>(float value) {
  const uint32_t bits = bits_of(value);
  return {static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16)};
}

template <>
STREAMT1_BOTH Float16 write<Float16>(float value) {
#if defined(__CUDA_ARCH__)
  return {__half_as_ushort(__float2half_rn(value))};
#else
  const uint32_t bits = bits_of(value);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  const uint32_t normal = (magnitude - (112u << 23) + 0x0FFFu + ((magnitude >> 13) & 1u)) >> 13;
  // Next to 0.5 a float32 has the spacing of the smallest float16: the sum does the rounding.
  const uint32_t tiny = bits_of(float_of(magnitude) + 0.5f) - 0x3F000000u;
  const uint32_t rounded = magnitude < 0x38800000u ? tiny : normal;
  return {static_cast<uint16_t>(((bits >> 16) & 0x8000u) | rounded)};
#endif
}

}  // namespace pixels
}  // namespace streamt1
