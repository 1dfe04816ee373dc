// The arithmetic of ema_merge, once for the CPU and for CUDA: every operation is rounded by itself.
#pragma once

#include <cstdint>
#include <cstring>

#include "streamt1/ema_merge.h"
#include "streamt1/exact.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace streamt1 {
namespace ema {

constexpr uint32_t kStream = 0x454D4131u;  // "EMA1": keeps these random bits apart from the noise's

using exact::BFloat16;
using exact::bits_of;
using exact::difference;
using exact::Float16;
using exact::float_of;
using exact::product;
using exact::sum;

// 16 bytes, read and written at once.
template <typename T>
struct alignas(16) Vector {
  static constexpr int kSize = 16 / sizeof(T);
  T at[kSize];
};

STREAMT1_BOTH float widen(float value) { return value; }
STREAMT1_BOTH float widen(BFloat16 value) { return float_of(uint32_t{value.bits} << 16); }

// To nearest, ties to even; any NaN stays one.
STREAMT1_BOTH void narrow(float value, float* out) { *out = value; }

STREAMT1_BOTH void narrow(float value, BFloat16* out) {
#ifdef __CUDA_ARCH__
  const __nv_bfloat16 rounded = __float2bfloat16_rn(value);
  memcpy(out, &rounded, sizeof rounded);
#else
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  out->bits = static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
#endif
}

#ifdef __CUDA_ARCH__
STREAMT1_BOTH float widen(Float16 value) {
  __half half;
  memcpy(&half, &value, sizeof half);
  return __half2float(half);
}

STREAMT1_BOTH void narrow(float value, Float16* out) {
  const __half rounded = __float2half_rn(value);
  memcpy(out, &rounded, sizeof rounded);
}
#else
STREAMT1_BOTH float widen(Float16 value) {
  const uint32_t magnitude = value.bits & 0x7FFFu;
  // The factor moves the exponent's bias from 15 to 127 and is exact, subnormals included.
  const float finite = float_of(magnitude << 13) * 0x1p112f;
  const uint32_t special = 0x7F800000u | (magnitude << 13);
  const uint32_t bits = magnitude < 0x7C00u ? bits_of(finite) : special;
  return float_of(bits | uint32_t{value.bits & 0x8000u} << 16);
}

STREAMT1_BOTH void narrow(float value, Float16* out) {
  const uint32_t bits = bits_of(value), magnitude = bits & 0x7FFFFFFFu;
  const uint32_t normal = (magnitude - 0x38000000u + 0x0FFFu + ((magnitude >> 13) & 1u)) >> 13;
  // Below the smallest normal value the addition of 1/2 rounds at the right place.
  const uint32_t small = bits_of(float_of(magnitude) + 0.5f) - 0x3F000000u;
  const uint32_t special = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;
  const uint32_t finite = magnitude < 0x38800000u ? small : normal;
  const uint32_t half = magnitude >= 0x477FF000u ? special : finite;  // 65520 and more: infinity
  out->bits = static_cast<uint16_t>(half | (bits >> 16 & 0x8000u));
}
#endif

template <typename T>
STREAMT1_BOTH float rounded_as(float value) {
  T narrowed;
  narrow(value, &narrowed);
  return widen(narrowed);
}

// `random` holds 16 bits: the value moves away from zero as often as its cut-off part is large.
STREAMT1_BOTH BFloat16 narrow_randomly(float value, uint32_t random) {
  const uint32_t bits = bits_of(value);
  const bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  return {static_cast<uint16_t>(nan ? 0x7FC0u : (bits + random) >> 16)};
}

// Four words, 16 bits for each of eight neighbours: Philox4x32-10 of (octet, plane, step, kStream).
STREAMT1_BOTH void random_words(uint32_t out[4], uint32_t octet, uint32_t plane,
                                const EmaMerge& m) {
  uint32_t c0 = octet, c1 = plane, c2 = m.step, c3 = kStream, k0 = m.key[0], k1 = m.key[1];
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

STREAMT1_BOTH void turn(float* even, float* odd, float cos, float sin) {
  const float x = *even, y = *odd;
  *even = difference(product(x, cos), product(y, sin));
  *odd = sum(product(x, sin), product(y, cos));
}

STREAMT1_BOTH float mix(float old, float fresh, const EmaMerge& m) {
  return sum(product(m.alpha, old), product(m.rest, fresh));
}

// `fresh` must have been rounded as T when it was turned.
template <typename T>
STREAMT1_BOTH T mix_released(float old, float fresh, const EmaMerge& m) {
  T out;
  narrow(sum(rounded_as<T>(product(m.alpha, old)), rounded_as<T>(product(m.rest, fresh))), &out);
  return out;
}

// One CUDA thread: 16 bytes of the plane, vector number `vector` of it.
template <typename T, Storage kStorage>
STREAMT1_BOTH void merge_vector(const EmaMerge& m, int64_t plane, uint32_t vector) {
  constexpr int kSize = Vector<T>::kSize;
  const int64_t start = int64_t{vector} * kSize;
  const auto at = [start, plane](auto* base, int64_t stride) {
    return base + plane * stride + start;
  };
  const auto taken =
      *reinterpret_cast<const Vector<T>*>(at(static_cast<const T*>(m.evicted), m.evicted_stride));
  Vector<T> sink, out;
  float old[kSize], fresh[kSize];
  if (kStorage == Storage::kFloat32Shadow && m.shadow_in != nullptr) {
    const auto* shadow =
        reinterpret_cast<const Vector<float>*>(at(m.shadow_in, m.shadow_in_stride));
    for (int i = 0; i < kSize; ++i) old[i] = shadow[i / 4].at[i % 4];
  } else {
    sink = *reinterpret_cast<const Vector<T>*>(at(static_cast<const T*>(m.sink), m.sink_stride));
    for (int i = 0; i < kSize; ++i) old[i] = widen(sink.at[i]);
  }
  for (int i = 0; i < kSize; ++i) fresh[i] = widen(taken.at[i]);
  if (plane < m.planes / 2) {
    const auto vectors_of_head = static_cast<uint32_t>(m.head_dim / kSize);
    const int first = static_cast<int>(vector % vectors_of_head) * (kSize / 2);
    for (int j = 0; j < kSize / 2; ++j)
      if (first + j < m.turned) {
        turn(&fresh[2 * j], &fresh[2 * j + 1], m.cos[first + j], m.sin[first + j]);
        if (kStorage == Storage::kReleased) {
          fresh[2 * j] = rounded_as<T>(fresh[2 * j]);
          fresh[2 * j + 1] = rounded_as<T>(fresh[2 * j + 1]);
        }
      }
  }
  if constexpr (kStorage == Storage::kReleased) {
    for (int i = 0; i < kSize; ++i) out.at[i] = mix_released<T>(old[i], fresh[i], m);
  } else if constexpr (kStorage == Storage::kStochastic) {
    uint32_t words[4];
    random_words(words, vector, static_cast<uint32_t>(plane), m);
    for (int i = 0; i < kSize; ++i) {
      const uint32_t random = words[i / 2] >> 16 * (i % 2) & 0xFFFFu;
      out.at[i] = narrow_randomly(mix(old[i], fresh[i], m), random);
    }
  } else {
    for (int i = 0; i < kSize; ++i) old[i] = mix(old[i], fresh[i], m);
    for (int i = 0; i < kSize; ++i) narrow(old[i], &out.at[i]);
  }
  if constexpr (kStorage == Storage::kFloat32Shadow) {
    auto* shadow = reinterpret_cast<Vector<float>*>(at(m.shadow_out, m.shadow_out_stride));
    for (int i = 0; i < kSize; i += 4)
      shadow[i / 4] = {{old[i], old[i + 1], old[i + 2], old[i + 3]}};
  }
  *reinterpret_cast<Vector<T>*>(at(static_cast<T*>(m.out), m.out_stride)) = out;
}

template <typename T, Storage kStorage>
struct Form {
  using Type = T;
  static constexpr Storage storage = kStorage;
};

// Calls `call` with the Form of a merge. float32 has one: its released roundings are its own.
template <typename Call>
void with_form(const EmaMerge& m, const Call& call) {
  const auto narrow_forms = [&](auto type) {
    using T = decltype(type);
    if (m.storage == Storage::kOnce) call(Form<T, Storage::kOnce>());
    if (m.storage == Storage::kFloat32Shadow) call(Form<T, Storage::kFloat32Shadow>());
    if (m.storage == Storage::kReleased) call(Form<T, Storage::kReleased>());
  };
  if (m.type == KVType::kFloat32) return call(Form<float, Storage::kOnce>());
  if (m.type == KVType::kFloat16) return narrow_forms(Float16());
  if (m.storage == Storage::kStochastic) return call(Form<BFloat16, Storage::kStochastic>());
  narrow_forms(BFloat16());
}

}  // namespace ema
}  // namespace streamt1
