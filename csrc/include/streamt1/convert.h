// bfloat16 and float16 to float32 and back: round to nearest, ties to even; NaN stays NaN. Plain
// integer arithmetic and selections, so that loops over them vectorise on any instruction set.
#pragma once

#include <cstdint>
#include <type_traits>

#include "streamt1/dispatch.h"
#include "streamt1/exact.h"

namespace streamt1 {

enum class Float { kFloat32, kBFloat16, kFloat16 };

// The bits of a value. Scalar types of their own: loops over a struct do not vectorise.
enum class BFloat16 : uint16_t {};
enum class Float16 : uint16_t {};

STREAMT1_INLINE float to_float(float value) { return value; }

STREAMT1_INLINE float to_float(BFloat16 value) {
  return exact::float_of(static_cast<uint32_t>(value) << 16);
}

STREAMT1_INLINE float to_float(Float16 value) {
  const uint32_t magnitude = static_cast<uint32_t>(value) & 0x7FFFu;
  const uint32_t sign = (static_cast<uint32_t>(value) & 0x8000u) << 16;
  constexpr uint32_t kRebias = 112u << 23;  // the exponent's bias goes from 15 to 127
  const uint32_t normal = (magnitude << 13) + kRebias;
  const uint32_t special = normal + kRebias;  // infinity and NaN: the exponent becomes 255
  const auto steps = static_cast<float>(static_cast<int32_t>(magnitude));  // of 2^-24
  const uint32_t tiny = exact::bits_of(steps * 0x1p-24f);
  const uint32_t finite = magnitude < 0x0400u ? tiny : normal;
  return exact::float_of(sign | (magnitude < 0x7C00u ? finite : special));
}

template <typename T>
T from_float(float value);

template <>
STREAMT1_INLINE float from_float<float>(float value) {
  return value;
}

// The lower half may hold anything: what counts are the upper 16 bits.
STREAMT1_INLINE uint32_t rounded_to_upper_half(float value) {
  const uint32_t bits = exact::bits_of(value);
  const uint32_t rounded = bits + 0x7FFFu + ((bits >> 16) & 1u);
  return value != value ? bits | 0x00400000u : rounded;
}

template <>
STREAMT1_INLINE BFloat16 from_float<BFloat16>(float value) {
  return BFloat16(rounded_to_upper_half(value) >> 16);
}

template <>
STREAMT1_INLINE Float16 from_float<Float16>(float value) {
  const uint32_t bits = exact::bits_of(value);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  // From 65520 on the carry reaches the exponent and makes infinity.
  const uint32_t normal = (magnitude - (112u << 23) + 0x0FFFu + ((magnitude >> 13) & 1u)) >> 13;
  // Next to 0.5 a float32 has the spacing of the smallest float16: the sum does the rounding.
  const uint32_t tiny = exact::bits_of(exact::float_of(magnitude) + 0.5f) - 0x3F000000u;
  const uint32_t finite = magnitude < 0x38800000u ? tiny : normal;
  const uint32_t large = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;
  return Float16(((bits >> 16) & 0x8000u) | (magnitude < 0x47800000u ? finite : large));
}

// to_float(from_float<T>(value)), cheaper: a float32 that a T can hold.
template <typename T>
STREAMT1_INLINE float round_to(float value) {
  if constexpr (std::is_same_v<T, float>)
    return value;
  else if constexpr (std::is_same_v<T, BFloat16>)
    return exact::float_of(rounded_to_upper_half(value) & 0xFFFF0000u);
  else
    return to_float(from_float<T>(value));
}

}  // namespace streamt1
