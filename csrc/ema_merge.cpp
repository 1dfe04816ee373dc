#include "streamt1/ema_merge.h"

#include <algorithm>
#include <stdexcept>

#include "streamt1/ema_merge.cuh"

namespace streamt1 {
namespace {

KVType type_of(const std::string& name) {
  if (name == "float32") return KVType::kFloat32;
  if (name == "bfloat16") return KVType::kBFloat16;
  if (name == "float16") return KVType::kFloat16;
  throw std::invalid_argument("dtype: want float32, bfloat16 or float16, got " + name);
}

Storage storage_of(const std::string& name, KVType type) {
  if (name == "once") return Storage::kOnce;
  if (name == "released") return Storage::kReleased;
  if (name == "fp32_shadow" && type != KVType::kFloat32) return Storage::kFloat32Shadow;
  if (name == "stochastic" && type == KVType::kBFloat16) return Storage::kStochastic;
  throw std::invalid_argument("storage: there is no " + name + " of this dtype");
}

constexpr int kTile = 2048;  // elements worked on together; whole heads and whole octets of them

template <typename T>
STREAMT1_INLINE void widen_all(float* out, const void* base, int64_t at, int count) {
  const T* from = static_cast<const T*>(base) + at;
#pragma omp simd
  for (int i = 0; i < count; ++i) out[i] = ema::widen(from[i]);
}

// Turns the leading pairs of every head of `keys`.
STREAMT1_INLINE void turn_all(float* keys, int count, const EmaMerge& m) {
  for (int head = 0; head < count; head += m.head_dim)
#pragma omp simd
    for (int j = 0; j < m.turned; ++j)
      ema::turn(&keys[head + 2 * j], &keys[head + 2 * j + 1], m.cos[j], m.sin[j]);
}

STREAMT1_INLINE void round_randomly(ema::BFloat16* out, const float* mixed, int count,
                                    uint32_t octet, uint32_t plane, const EmaMerge& m) {
  alignas(64) uint32_t words[kTile / 2];
  const int octets = (count + 7) / 8;
#pragma omp simd
  for (int i = 0; i < octets; ++i) {
    uint32_t w[4];
    ema::random_words(w, octet + static_cast<uint32_t>(i), plane, m);
    words[4 * i] = w[0], words[4 * i + 1] = w[1], words[4 * i + 2] = w[2], words[4 * i + 3] = w[3];
  }
  for (int i = 0; i < count / 2; ++i) {
    out[2 * i] = ema::narrow_randomly(mixed[2 * i], words[i] & 0xFFFFu);
    out[2 * i + 1] = ema::narrow_randomly(mixed[2 * i + 1], words[i] >> 16);
  }
}

template <typename T>
STREAMT1_INLINE void merge_tile(const EmaMerge& m, int64_t plane, int64_t start, int count) {
  alignas(64) float old[kTile], fresh[kTile];
  T* out = static_cast<T*>(m.out) + plane * m.out_stride + start;
  widen_all<T>(fresh, m.evicted, plane * m.evicted_stride + start, count);
  if (m.shadow_in != nullptr)
    widen_all<float>(old, m.shadow_in, plane * m.shadow_in_stride + start, count);
  else
    widen_all<T>(old, m.sink, plane * m.sink_stride + start, count);
  if (m.turned > 0 && plane < m.planes / 2) turn_all(fresh, count, m);
  if (m.storage == Storage::kReleased) {
#pragma omp simd
    for (int i = 0; i < count; ++i)
      out[i] = ema::mix_released<T>(old[i], ema::rounded_as<T>(fresh[i]), m);
    return;
  }
#pragma omp simd
  for (int i = 0; i < count; ++i) old[i] = ema::mix(old[i], fresh[i], m);
  if (m.shadow_out != nullptr)
    std::copy(old, old + count, m.shadow_out + plane * m.shadow_out_stride + start);
  if (m.storage == Storage::kStochastic) {
    auto* at = static_cast<ema::BFloat16*>(m.out) + plane * m.out_stride + start;
    const auto octet = static_cast<uint32_t>(start / 8);
    return round_randomly(at, old, count, octet, static_cast<uint32_t>(plane), m);
  }
#pragma omp simd
  for (int i = 0; i < count; ++i) ema::narrow(old[i], &out[i]);
}

}  // namespace

// Outside the anonymous namespace: a clone needs a symbol that the loader can resolve.
STREAMT1_CLONES void ema_merge_tile(const EmaMerge& m, int64_t plane, int64_t start, int count) {
  if (m.type == KVType::kFloat32)
    merge_tile<float>(m, plane, start, count);
  else if (m.type == KVType::kBFloat16)
    merge_tile<ema::BFloat16>(m, plane, start, count);
  else
    merge_tile<ema::Float16>(m, plane, start, count);
}

EmaMerge ema_merge_of(const std::array<uintptr_t, 5>& addresses,
                      const std::array<int64_t, 5>& strides, const std::array<int64_t, 3>& sizes,
                      const std::string& dtype, const std::string& storage, double alpha,
                      const std::vector<float>& cos, const std::vector<float>& sin,
                      const std::array<uint32_t, 3>& bits) {
  const auto [planes, elements, head_dim] = sizes;
  if (planes < 1 || elements < 1 || head_dim < 2 || head_dim % 2 || elements % head_dim)
    throw std::invalid_argument("sizes: want planes of whole heads and an even head_dim");
  if (planes > kMaxPlanes || head_dim > kMaxHeadDim || elements > kMaxElements)
    throw std::invalid_argument("sizes: want a head_dim of at most 256, fewer planes or elements");
  const auto turned = static_cast<int64_t>(cos.size());
  if (cos.size() != sin.size() || turned > std::min<int64_t>(kMaxTurned, head_dim / 2))
    throw std::invalid_argument("cos, sin: want one of each for every pair that turns");
  for (int i = 0; i < 3; ++i)
    if (addresses[i] == 0) throw std::invalid_argument("addresses: want out, sink and evicted");
  EmaMerge m{};
  m.type = type_of(dtype);
  m.storage = storage_of(storage, m.type);
  m.out = reinterpret_cast<void*>(addresses[0]);
  m.sink = reinterpret_cast<const void*>(addresses[1]);
  m.evicted = reinterpret_cast<const void*>(addresses[2]);
  m.shadow_in = reinterpret_cast<const float*>(addresses[3]);
  m.shadow_out = reinterpret_cast<float*>(addresses[4]);
  const bool shadow = m.storage == Storage::kFloat32Shadow;
  if (shadow != (m.shadow_out != nullptr) || (m.shadow_in != nullptr && !shadow))
    throw std::invalid_argument("shadow_out: want it with fp32_shadow and only there");
  m.out_stride = strides[0], m.sink_stride = strides[1], m.evicted_stride = strides[2];
  m.shadow_in_stride = strides[3], m.shadow_out_stride = strides[4];
  m.planes = planes, m.elements = elements;
  m.head_dim = static_cast<int32_t>(head_dim), m.turned = static_cast<int32_t>(turned);
  m.alpha = static_cast<float>(alpha), m.rest = static_cast<float>(1.0 - alpha);
  m.key[0] = bits[0], m.key[1] = bits[1], m.step = bits[2];
  std::copy(cos.begin(), cos.end(), m.cos);
  std::copy(sin.begin(), sin.end(), m.sin);
  return m;
}

void check_vectors(const EmaMerge& m) {
  const int64_t size = m.type == KVType::kFloat32 ? 4 : 8;
  bool fits = m.head_dim % size == 0;
  const void* const bases[] = {m.out, m.sink, m.evicted, m.shadow_in, m.shadow_out};
  for (const void* base : bases) fits = fits && reinterpret_cast<uintptr_t>(base) % 16 == 0;
  for (const int64_t stride : {m.out_stride, m.sink_stride, m.evicted_stride})
    fits = fits && stride % size == 0;
  for (const int64_t stride : {m.shadow_in_stride, m.shadow_out_stride})
    fits = fits && stride % 4 == 0;
  if (!fits)
    throw std::invalid_argument(
        "impl='cuda': want a head_dim, addresses and strides in whole 16 bytes; use impl='triton'");
}

void ema_merge(const EmaMerge& m, [[maybe_unused]] int threads) {
  const int64_t octet_of_heads = 8 * m.head_dim;
  const int64_t tile = kTile / octet_of_heads * octet_of_heads;
  const int64_t tiles = (m.elements + tile - 1) / tile;
#pragma omp parallel for num_threads(threads) if (threads > 1 && m.planes * tiles > 16)
  for (int64_t work = 0; work < m.planes * tiles; ++work) {
    const int64_t plane = work / tiles, start = work % tiles * tile;
    ema_merge_tile(m, plane, start, static_cast<int>(std::min(tile, m.elements - start)));
  }
}

void ema_merge_emulated(const EmaMerge& m) {
  ema::with_form(m, [&](auto form) {
    using Form = decltype(form);
    using T = typename Form::Type;
    const auto vectors = static_cast<uint32_t>(m.elements / ema::Vector<T>::kSize);
    for (int64_t plane = 0; plane < m.planes; ++plane)
      for (uint32_t vector = 0; vector < vectors; ++vector)
        ema::merge_vector<T, Form::storage>(m, plane, vector);
  });
}

}  // namespace streamt1
